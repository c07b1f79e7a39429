//! Every template in single steps on every engine: at each instruction boundary the guest's state is either that before
//! the guest's instruction or that after it, wherever an interrupt or a fault would find it.

use cases::{Case, cases};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::codegen::emitter::{Dead, Emitter, Environment, TRAP};
use crate::codegen::recipe::{Point, Recipe, Then, restore};
use crate::codegen::state_page::StatePage;
use crate::engine::kvm::KvmMachine;
use crate::engine::process::{ProcessMachine, probe};
use crate::engine::{Exit, Machine};
use crate::exec::virtual_cpu::{TableRegister, VirtualCpu};
use crate::machine::memory::Backing;
use crate::testing::engine::{CODE_VA, DATA, DATA_VA, STACK_TOP, World};
use crate::testing::skip::skip;
use crate::x86::exception::{Fault, vector};
use crate::x86::registers::Regs;
use crate::x86::rflags;

mod cases;

const STATE_VA: u64 = 0x41_0000;
/// Where the guest's instruction is.
const GUEST: u64 = 0x4000_0123;
/// RSP at it.
const RSP: u64 = STACK_TOP - 0x200;
const KERNEL_CS: u16 = 0x10;
const KERNEL_SS: u16 = 0x18;

/// The world of each engine that works here.
pub(crate) fn worlds() -> Vec<(&'static str, World)> {
    let mut worlds = Vec::new();
    match probe() {
        Ok(()) => {
            let world = World::new(Backing::Memfd, |memory, layout| {
                ProcessMachine::new(memory, layout).map(|e| Box::new(e) as Box<dyn Machine>)
            });
            worlds.push(("process", world.unwrap()));
        }
        Err(missing) => skip("process", missing),
    }
    match World::new(Backing::Anonymous, |memory, layout| {
        KvmMachine::new(memory, layout, None, 1).map(|e| Box::new(e) as Box<dyn Machine>)
    }) {
        Ok(world) => worlds.push(("kvm", world)),
        Err(missing) => skip("kvm", missing),
    }
    worlds
}

/// The guest's state, as far as a template may change it.
#[derive(Clone, Debug, PartialEq)]
struct State {
    regs: Regs,
    cpu: String,
    stack: Vec<u64>,
    data: Vec<u64>,
}

impl State {
    /// Whether it is the other one, but for these flags.
    fn is(&self, other: &Self, ignored: u64) -> bool {
        let without = |regs: Regs| Regs { rflags: regs.rflags & !ignored, ..regs };
        without(self.regs) == without(other.regs)
            && (&self.cpu, &self.stack, &self.data) == (&other.cpu, &other.stack, &other.data)
    }
}

fn virtual_cpu() -> VirtualCpu {
    let mut cpu = VirtualCpu::new(0x1000);
    cpu.cr2 = 0x7777_0000_1234;
    cpu.cr8 = 5;
    (cpu.selectors.cs, cpu.selectors.ss, cpu.selectors.gs) = (KERNEL_CS, KERNEL_SS, 0x2b);
    cpu.task.selector = 0x28;
    cpu.ldt.selector = 0x38;
    cpu.idt = TableRegister { base: 0xffff_8880_1234_5678, limit: 0xfff };
    cpu.gdt = TableRegister { base: 0x4010_0000, limit: 0x7f };
    cpu
}

fn registers(w: &World) -> Regs {
    let mut regs = w.regs;
    for (n, value) in (0..16).zip((1u64..).map(|n| n * 0x0101_0101_0101_0101)) {
        *crate::exec::operand::register_mut(&mut regs, n) = value;
    }
    Regs { rip: GUEST, rsp: RSP, rflags: 0x202 | rflags::CF | rflags::SF | rflags::AF, ..regs }
}

const STACK_WORDS: u64 = 16;

/// What the guest can see, in this state of its registers.
fn state(w: &mut World, cpu: &VirtualCpu, regs: Regs) -> State {
    let cpu = VirtualCpu { shadowed_rip: None, ..cpu.clone() };
    // What lies below RSP an interrupt would overwrite.
    let stack = (0..STACK_WORDS).map(|n| RSP - 32 + n * 8);
    let stack = stack.map(|va| if va < regs.rsp { 0 } else { w.peek(va) }).collect();
    let data = (0..8).map(|n| w.peek(DATA_VA + n * 8)).collect();
    let regs = Regs { rflags: regs.rflags & !rflags::TF, ..regs };
    State { regs, cpu: format!("{cpu:?}"), stack, data }
}

struct Run<'a> {
    w: &'a mut World,
    points: Vec<Point>,
    page: StatePage,
    cpu: VirtualCpu,
}

impl Run<'_> {
    /// The guest's state as an exit at this point would find it, and what the exit would be about.
    fn whole(&mut self) -> (State, Then) {
        let (mut cpu, mut regs) = (self.cpu.clone(), self.w.regs);
        self.page.read_back(&self.w.memory, &mut cpu);
        let recipe = restore(|_| &self.points, CODE_VA, &self.w.memory, self.page, &mut cpu, &mut regs);
        let recipe = recipe.unwrap_or_else(|| panic!("no recipe at {:#x}", self.w.regs.rip));
        (state(self.w, &cpu, regs), recipe.then)
    }

    /// Executes one instruction of the template.
    fn step(&mut self) -> Exit {
        let at = self.w.regs.rip;
        // POPFQ would clear the flag by which all this works.
        let byte = self.w.peek(at & !7) >> (at % 8 * 8) & 0xff;
        let popped = (byte == 0x9d).then_some(self.w.regs.rsp);
        if let Some(word) = popped {
            let value = self.w.peek(word);
            self.w.poke(word, value | rflags::TF);
        }
        self.w.regs.rflags |= rflags::TF;
        let exit = self.w.run();
        let pushed = (byte == 0x9c).then_some(self.w.regs.rsp);
        for word in [popped, pushed].into_iter().flatten() {
            let value = self.w.peek(word);
            self.w.poke(word, value & !rflags::TF);
        }
        exit
    }
}

fn decode(code: &[u8]) -> Instruction {
    Decoder::with_ip(64, code, GUEST, DecoderOptions::NONE).decode()
}

/// Emits the code for a case; where it ends well is a trapping byte.
fn emit(case: &Case, w: &mut World, by_call: bool) -> (Vec<u8>, Vec<Point>, u64) {
    let (mut bytes, mut points) = (Vec::new(), Vec::new());
    let gate = by_call.then_some(CODE_VA);
    let env = Environment::here(STATE_VA, gate);
    let stub = w.engine.hypercall_stub(0);
    let mut e = Emitter::new(&mut bytes, &mut points, CODE_VA, 0, env);
    e.gate(&stub).unwrap();
    let start = e.here();
    let insn = decode(case.code);
    let mut end = Recipe::at(insn.next_ip());
    if insn.mnemonic() == Mnemonic::Iretq {
        end = e.return_from_interrupt(&insn).unwrap();
        for register in 0..3 {
            end = e.reload(end, register).unwrap();
        }
    } else {
        e.sensitive(&insn, Dead { flags: case.dead });
    }
    e.op(end, &[TRAP]);
    (bytes, points, start)
}

/// Runs a case; returns at how many points it looked.
fn run(case: &Case, w: &mut World, by_call: bool) -> usize {
    let (code, points, start) = emit(case, w, by_call);
    w.load(&code);
    let mut cpu = virtual_cpu();
    let mut regs = registers(w);
    let mut words = [0x5a5a; 8];
    (case.prepare)(&mut cpu, &mut regs, &mut words);
    for n in 0..STACK_WORDS {
        w.poke(RSP - 32 + n * 8, 0x1111 * n);
    }
    for (n, word) in (0..).zip(words) {
        w.poke(RSP + n * 8, word);
        w.poke(DATA_VA + n * 8, 0xdddd_dddd_dddd_dddd);
    }
    // What POPF and IRETQ load replaces flags that nothing reads any more.
    let loads_flags = matches!(decode(case.code).mnemonic(), Mnemonic::Popfq | Mnemonic::Iretq);
    let ignored = if case.dead || loads_flags { rflags::STATUS } else { 0 };
    let ignored_after = if loads_flags { 0 } else { ignored };
    let before = state(w, &cpu, regs);
    let after = case.does.map(|does| {
        let (mut cpu, mut regs) = (cpu.clone(), regs);
        does(&mut cpu, &mut regs, w);
        // What IRETQ and POPF load is theirs.
        let after = state(w, &cpu, regs);
        for n in 0..STACK_WORDS {
            let word = words.get((n as usize).wrapping_sub(4)).copied();
            w.poke(RSP - 32 + n * 8, word.unwrap_or(0x1111 * n));
        }
        for n in 0..8 {
            w.poke(DATA_VA + n * 8, 0xdddd_dddd_dddd_dddd);
        }
        after
    });
    let page = StatePage::new(w.mfn_of(STATE_VA).maddr());
    page.publish(&w.memory, &cpu, case.pending);
    w.regs = Regs { rip: start, ..regs };
    let mut run = Run { w, points, page, cpu };
    let (mut done, mut looked) = (false, 0);
    loop {
        let (now, then) = run.whole();
        looked += 1;
        if after.as_ref().is_some_and(|after| now.is(after, ignored_after)) {
            done = true;
        } else {
            assert!(!done, "{}: went back at {:#x}", case.name, run.w.regs.rip);
            let mut now = now;
            if case.stores_twice {
                now.data.clone_from(&before.data);
            }
            let whole = now.is(&before, ignored);
            assert!(whole, "{} at {:#x}\n{now:?}\n{before:?}\n{after:?}", case.name, run.w.regs.rip);
        }
        match run.step() {
            Exit::Fault(Fault { vector: vector::DEBUG, .. }) => {}
            Exit::Fault(Fault { vector: vector::PROTECTION, .. }) | Exit::Hypercall | Exit::Syscall => {
                let (now, left) = run.whole();
                let ends =
                    after.as_ref().map_or(now.is(&before, ignored), |after| now.is(after, ignored_after));
                assert!(ends, "{}: at the end\n{now:?}\n{before:?}\n{after:?}", case.name);
                assert_eq!(left == Then::Callout, after.is_none(), "{}: {left:?} {then:?}", case.name);
                return looked;
            }
            other => panic!("{} at {:#x}: {other:?}", case.name, run.w.regs.rip),
        }
        assert!(looked < 200, "{} does not end", case.name);
    }
}

#[test]
fn an_exit_at_any_instruction_finds_a_whole_state() {
    for (engine, mut w) in worlds() {
        let frame = w.frame();
        w.map(STATE_VA, frame, DATA);
        let mut looked = 0;
        for case in cases() {
            for by_call in [false, true] {
                looked += run(&case, &mut w, by_call);
            }
        }
        println!("{engine}: {looked} points");
        assert!(looked > 200, "{engine}: {looked} points only");
    }
}
