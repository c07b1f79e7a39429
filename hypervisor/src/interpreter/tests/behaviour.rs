//! What is not one instruction's: changing code, the interrupt shadow, single-stepping, how far a run goes.

use super::sandbox::{Sandbox, processor};
use crate::interpreter::{Failure, Interpreter, Left};
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};
use crate::testing::engine::DATA_VA;
use crate::x86::exception::vector;
use crate::x86::registers::Regs;

/// Executes `code` in the page of data, which can be written, from CPL 0 until an event cannot be delivered: there is
/// no IDT. HLT with interrupts off ends it, too.
fn run(interpreter: &mut Interpreter<Sandbox>, memory: &MachineMemory, code: &[u8]) -> Left<(), ()> {
    memory.write(Maddr(PAGE_SIZE), code).unwrap();
    resume(interpreter)
}

fn resume(interpreter: &mut Interpreter<Sandbox>) -> Left<(), ()> {
    let regs = Regs { rip: DATA_VA, rsp: DATA_VA + 0x800, rflags: 2, ..Regs::default() };
    interpreter.core().set_regs(&regs);
    interpreter.core().cpu.user = false;
    interpreter.core().cpu.interrupts = false;
    interpreter.run(|| false)
}

/// A loop that adds 1 to its own immediate operand three times.
#[test]
fn code_that_changes_itself_is_executed_as_changed() {
    let code = [
        &[0xb9, 3, 0, 0, 0][..],                  // mov ecx, 3
        &[0xb8, 5, 0, 0, 0],                      // again: mov eax, 5
        &[0x80, 0x05, 0xf5, 0xff, 0xff, 0xff, 1], // add byte [rip - 11], 1: the 5 above
        &[0xff, 0xc9, 0x75, 0xf0],                // dec ecx; jnz again
        &[0xf4],                                  // hlt
    ]
    .concat();
    for keeps in [true, false] {
        let (mut interpreter, memory) = processor(keeps);
        assert_eq!(run(&mut interpreter, &memory, &code), Left::Failed(Failure::HaltedForEver));
        assert_eq!(interpreter.regs().rax, 7, "keeps {keeps}");
        let counts = interpreter.take_counts();
        assert_eq!(counts.instructions, 1 + 3 * 4, "keeps {keeps}");
    }
}

/// A store that another thread makes is noticed when it has been announced, and only then has to be.
#[test]
fn code_that_a_device_changed_is_decoded_again() {
    let (mut interpreter, memory) = processor(true);
    let code = |value: u8| [0xb8, value, 0, 0, 0, 0xf4];
    run(&mut interpreter, &memory, &code(1));
    let seen = |interpreter: &mut Interpreter<Sandbox>| {
        (interpreter.regs().rax, interpreter.take_counts().decoded != 0)
    };
    assert_eq!(seen(&mut interpreter), (1, true));
    resume(&mut interpreter);
    assert_eq!(seen(&mut interpreter), (1, false));
    memory.write(Maddr(PAGE_SIZE), &code(2)).unwrap();
    interpreter.machine().foreign_writes += 1;
    resume(&mut interpreter);
    assert_eq!(seen(&mut interpreter), (2, true));
    interpreter.machine().foreign_writes += 1;
    resume(&mut interpreter);
    assert_eq!(seen(&mut interpreter), (2, false), "nothing changed");
}

/// The interrupt comes after the instruction behind STI: not before it, and not later.
#[test]
fn the_shadow_of_sti_is_one_instruction() {
    let code = [0xfb, 0xb8, 1, 0, 0, 0, 0xbb, 2, 0, 0, 0, 0xf4]; // sti; mov eax, 1; mov ebx, 2; hlt
    for keeps in [true, false] {
        let (mut interpreter, memory) = processor(keeps);
        interpreter.machine().interrupts = true;
        let left = run(&mut interpreter, &memory, &code);
        assert!(matches!(left, Left::Failed(Failure::TripleFault { .. })), "{left:?}");
        let regs = interpreter.regs();
        assert_eq!((regs.rax, regs.rbx, regs.rip), (1, 0, DATA_VA + 6), "keeps {keeps}");
    }
}

/// POPF that sets TF: the trap comes after the next instruction.
#[test]
fn a_single_step_ends_after_its_instruction() {
    // push 0x102; popfq; mov eax, 1; mov ebx, 2; hlt
    let code = [0x68, 2, 1, 0, 0, 0x9d, 0xb8, 1, 0, 0, 0, 0xbb, 2, 0, 0, 0, 0xf4];
    for keeps in [true, false] {
        let (mut interpreter, memory) = processor(keeps);
        let left = run(&mut interpreter, &memory, &code);
        assert!(matches!(left, Left::Failed(Failure::TripleFault { .. })), "{left:?}");
        let regs = interpreter.regs();
        assert_eq!((regs.rax, regs.rbx, regs.rip), (1, 0, DATA_VA + 11), "keeps {keeps}");
        assert_ne!(interpreter.cpu().debug[6] & crate::x86::debug::DR6_SINGLE_STEP, 0);
    }
}

/// STI holds back interrupts for an instruction, and no trap of a single step.
#[test]
fn a_single_step_of_sti_ends_after_it() {
    // push 0x102; popfq; sti; mov eax, 1; hlt
    let code = [0x68, 2, 1, 0, 0, 0x9d, 0xfb, 0xb8, 1, 0, 0, 0, 0xf4];
    for keeps in [true, false] {
        let (mut interpreter, memory) = processor(keeps);
        let left = run(&mut interpreter, &memory, &code);
        assert!(matches!(left, Left::Failed(Failure::TripleFault { .. })), "{left:?}");
        let regs = interpreter.regs();
        assert_eq!((regs.rax, regs.rip), (0, DATA_VA + 7), "keeps {keeps}");
    }
}

/// A loop that never ends is left when somebody calls, within a run.
#[test]
fn an_endless_loop_can_be_called_back() {
    for keeps in [true, false] {
        let (mut interpreter, memory) = processor(keeps);
        memory.write(Maddr(PAGE_SIZE), &[0xeb, 0xfe]).unwrap();
        interpreter.core().set_regs(&Regs { rip: DATA_VA, rflags: 2, ..Regs::default() });
        let mut asked = 0;
        let left = interpreter.run(|| {
            asked += 1;
            asked == 10
        });
        assert_eq!(left, Left::Called);
        let counts = interpreter.take_counts();
        assert!((9..=9 * 64).contains(&counts.instructions), "keeps {keeps}: {counts:?}");
    }
}

/// An instruction in two pages is executed, and faults with the second page's address where that is missing.
#[test]
fn instructions_that_cross_pages() {
    let (mut interpreter, memory) = processor(true);
    memory.write(Maddr(2 * PAGE_SIZE - 2), &[0xb8, 1]).unwrap(); // mov eax, imm32, two bytes of it
    let start = DATA_VA + PAGE_SIZE - 2;
    interpreter.core().set_regs(&Regs { rip: start, rflags: 2, ..Regs::default() });
    let left = interpreter.run(|| false);
    assert!(matches!(left, Left::Failed(Failure::TripleFault { .. })), "{left:?}");
    let raised = interpreter.core().raised;
    assert_eq!(
        (raised.vector, raised.address, interpreter.regs().rip),
        (vector::PAGE, DATA_VA + PAGE_SIZE, start)
    );
}

/// An instruction that the machine has and the interpreter has not ends the guest; one that it has not is #UD.
#[test]
fn what_is_missing_is_named() {
    let (mut interpreter, memory) = processor(false);
    let left = run(&mut interpreter, &memory, &[0xd9, 0xe8]); // fld1
    let Left::Failed(Failure::Unknown(insn)) = left else { panic!("{left:?}") };
    assert_eq!(insn.to_string(), "fld1");
    let left = run(&mut interpreter, &memory, &[0xc5, 0xf8, 0x57, 0xc0]); // vxorps xmm0, xmm0, xmm0
    assert!(matches!(left, Left::Failed(Failure::TripleFault { .. })), "{left:?}");
    assert_eq!(interpreter.core().raised.vector, vector::UNDEFINED);
}
