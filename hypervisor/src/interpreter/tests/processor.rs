//! The interpreter against the processor: random instructions, executed by both with the same registers and memory.
//!
//! The processor executes them on the process engine, at CPL 3. Compared are all general registers, RIP, the flags that
//! are defined, the data page, and, for instructions of SSE, XMM0 to XMM7; or the exception, its error code and
//! address.

use iced_x86::{Instruction, Mnemonic};

use super::generator::{BATCH, Case, Numbers, batch, case, differs_by_vendor, is_undefined, undefined_flags};
use super::sandbox::{Sandbox, processor};
use crate::engine::Exit;
use crate::engine::process::ProcessMachine;
use crate::interpreter::{Failure, Interpreter, Left};
use crate::machine::memory::{Backing, MachineMemory, Maddr, PAGE_SIZE};
use crate::testing::engine::{CODE_VA, DATA_VA, World};
use crate::testing::skip::skip;
use crate::x86::exception::Exception;
use crate::x86::registers::Regs;
use crate::x86::rflags::{DF, STATUS};

/// Cases of the ordinary run.
const CASES: u64 = 20_000;
/// The length of a page.
const PAGE: usize = PAGE_SIZE as usize;

/// Whether an instruction of SSE is one of those that the interpreter has: what its general form answers.
pub(super) fn is_integer_vector(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let name = format!("{:?}", insn.mnemonic());
    let float =
        ["Add", "Sub", "Mul", "Div", "Sqrt", "Rcp", "Rsqrt", "Max", "Min", "Cvt", "Cmp", "Comis", "Ucomis"];
    let stray =
        matches!(insn.mnemonic(), Movnti | Clflush | Mfence | Lfence | Sfence | Pause | Fxsave | Fxrstor);
    let mmx = (0..insn.op_count()).any(|op| insn.op_register(op).is_mm());
    !mmx && !stray && !float.iter().any(|prefix| name.starts_with(prefix))
}

/// The processor's side: a guest of the process engine.
fn world() -> Option<World> {
    let make = |m: &MachineMemory, l: &crate::machine::layout::HypervisorLayout| {
        ProcessMachine::new(m, l).map(|machine| Box::new(machine) as Box<dyn crate::engine::Machine>)
    };
    match World::new(Backing::Memfd, make) {
        Ok(world) => Some(world),
        Err(why) => {
            skip("process-engine", why);
            None
        }
    }
}

/// What an instruction left behind.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    regs: Regs,
    raised: Option<Exception>,
}

fn normal(mut regs: Regs, undefined: u64) -> Regs {
    regs.rflags &= (STATUS | DF) & !undefined;
    regs.selectors = Default::default();
    (regs.fs_base, regs.gs_base) = (0, 0);
    regs
}

struct Bench {
    world: World,
    specialised: Interpreter<Sandbox>,
    general: Interpreter<Sandbox>,
    memories: [std::sync::Arc<MachineMemory>; 2],
    data: Box<[u8; PAGE]>,
}

impl Bench {
    fn new() -> Option<Self> {
        let world = world()?;
        let ((specialised, first), (general, second)) = (processor(false), processor(false));
        Some(Self { world, specialised, general, memories: [first, second], data: Box::new([0; PAGE]) })
    }

    /// Executes `program`, in which the instruction is at `at`, by all three; a difference is described.
    fn compare(&mut self, case: &Case, program: &[u8], at: u64) -> Result<(), String> {
        let Self { world, specialised, general, memories, data } = self;
        let end = CODE_VA + program.len() as u64;
        let (code_page, data_page) = (world.mfn_of(CODE_VA).maddr(), world.mfn_of(DATA_VA).maddr());
        // Two bytes of CLI, so that a branch over one byte arrives, too.
        let whole = [program, &[0xfa, 0xfa]].concat();
        world.memory.write(code_page, &whole).unwrap();
        world.memory.write(data_page, &data[..]).unwrap();
        world.regs = case.regs;
        let exit = world.run();
        let raised = match exit {
            Exit::Fault(fault) if fault.vector == 13 && (end..=end + 1).contains(&world.regs.rip) => None,
            Exit::Fault(fault) => Some(Exception { error: Exception::from(fault).error, ..fault.into() }),
            other => return Err(format!("the processor left by {other:?}")),
        };
        // The engine says where the instruction is that faulted.
        let undefined = if raised.is_some() { STATUS } else { undefined_flags(&case.insn, &case.regs) };
        let expected = Outcome { regs: normal(world.regs, undefined), raised: raised.map(comparable) };
        let mut after = [0; PAGE];
        world.memory.read(data_page, &mut after).unwrap();
        let both = [(specialised, &memories[0], true), (general, &memories[1], false)];
        for (interpreter, memory, is_specialised) in both {
            memory.write(Maddr(0), &whole).unwrap();
            memory.write(Maddr(PAGE_SIZE), &data[..]).unwrap();
            let got = interpret(interpreter, &case.regs, end, is_specialised);
            let got = Outcome { regs: normal(got.regs, undefined), raised: got.raised.map(comparable) };
            let mut memory_after = [0; PAGE];
            memory.read(Maddr(PAGE_SIZE), &mut memory_after).unwrap();
            let place = (0..PAGE).find(|i| after[*i] != memory_after[*i]);
            if got != expected || place.is_some() {
                let which = if is_specialised { "specialised" } else { "general" };
                return Err(format!(
                    "{} ({which})\n  bytes {:02x?}\n  before {:x?}\n  processor {expected:x?}\n  interpreter {got:x?}\n  memory {:x?}",
                    case.insn,
                    &program[at as usize..],
                    case.regs,
                    place.map(|i| (i, after[i], memory_after[i])),
                ));
            }
        }
        Ok(())
    }
}

/// CR2 counts for page faults only.
fn comparable(exception: Exception) -> Exception {
    if exception.vector == 14 { exception } else { Exception { address: 0, ..exception } }
}

fn interpret(interpreter: &mut Interpreter<Sandbox>, regs: &Regs, end: u64, specialised: bool) -> Outcome {
    interpreter.core().set_regs(regs);
    interpreter.core().cpu.shadowed_rip = None;
    for _ in 0..128 {
        if (end..=end + 1).contains(&interpreter.regs().rip) {
            return Outcome { regs: interpreter.regs(), raised: None };
        }
        match interpreter.step(specialised) {
            Ok(()) => {}
            Err(Left::Failed(Failure::TripleFault { .. })) => {
                return Outcome { regs: interpreter.regs(), raised: Some(interpreter.core().raised) };
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("it does not end");
}

/// `movups xmmN, [r15 + N * 16 + first]` for N from 0 to 7, or, with opcode 0x11, the other way.
fn moves(opcode: u8, first: u32) -> Vec<u8> {
    let one = |n: u8| {
        let place = (u32::from(n) * 16 + first).to_le_bytes();
        [&[0x41, 0x0f, opcode, 0x87 | n << 3][..], &place[..]].concat()
    };
    (0..8).flat_map(one).collect()
}

fn random_instructions(seed: u64, cases: u64) {
    let Some(mut bench) = Bench::new() else { return };
    let mut numbers = Numbers(seed);
    let (load, store) = (moves(0x10, 0), moves(0x11, 128));
    let (mut done, mut different) = (0, std::collections::BTreeMap::<String, (u64, String)>::new());
    while done < cases {
        for byte in bench.data.chunks_exact_mut(8).skip(done as usize % 8).step_by(8) {
            byte.copy_from_slice(&numbers.value().to_le_bytes());
        }
        let vector = numbers.below(4) == 0;
        if numbers.below(4) != 0 {
            let case = batch(&mut numbers, vector);
            done += BATCH;
            let bytes = &case.bytes[..];
            let program = if vector { [&load[..], bytes, &store[..]].concat() } else { bytes.to_vec() };
            if let Err(difference) = bench.compare(&case, &program, 0) {
                different.entry("a batch".to_owned()).or_insert((0, difference)).0 += 1;
            }
            continue;
        }
        let at = if vector { load.len() as u64 } else { 0 };
        let case = case(&mut numbers, vector, at);
        if is_undefined(&case.insn, &case.regs) || differs_by_vendor(&case.insn) {
            continue;
        }
        done += 1;
        let program =
            if vector { [&load[..], &case.bytes[..], &store[..]].concat() } else { case.bytes.clone() };
        if let Err(difference) = bench.compare(&case, &program, at) {
            let name = format!("{:?}", case.insn.code());
            different.entry(name).or_insert((0, difference)).0 += 1;
        }
    }
    for (name, (count, first)) in &different {
        println!("{name}: {count}, the first: {first}");
    }
    println!("{done} instructions compared, {} kinds differ", different.len());
    assert!(different.is_empty());
}

#[test]
fn random_instructions_do_what_the_processor_does() {
    random_instructions(11, CASES);
}

/// As many as the issue asks for: minutes.
#[test]
#[ignore = "takes minutes"]
fn millions_of_random_instructions_do_what_the_processor_does() {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    random_instructions(number("PARAVANE_SEED", 12), number("PARAVANE_CASES", 10_000_000));
}
