//! PUSHF and POPF: the interrupt flag, read and written.

use core::arch::naked_asm;

use crate::interrupts::timer;
use crate::machine::{Current, Machine};

use super::Answer;
use super::guard::attempt;

const OFF: Answer = Answer::Effect("interrupts-off");
const ON: Answer = Answer::Effect("interrupts-on");

/// Interrupts are off: it must say so.
pub(super) fn pushf() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(_: u64, _: u64) -> u64 {
        naked_asm!("cli", "pushfq", "pop rax", "shr eax, 9", "and eax, 1", "ret")
    }
    let here = match attempt(read, 0, 0) {
        Answer::Value(0) => OFF,
        Answer::Value(_) => ON,
        fault => fault,
    };
    (OFF, here)
}

/// Interrupts are on, and it turns them off: none must arrive.
pub(super) fn popf() -> (Answer, Answer) {
    const DELAY_NS: u64 = 100_000;
    const PATIENCE_NS: u64 = 200_000_000;
    #[unsafe(naked)]
    unsafe extern "C" fn write(_: u64, _: u64) -> u64 {
        naked_asm!("push 2", "popfq", "ret")
    }
    Current::interrupts_on();
    let outcome = attempt(write, 0, 0);
    let before = timer::count();
    let armed = Current::clock();
    Current::arm_timer(armed + DELAY_NS);
    while timer::count() == before && Current::clock() < armed + PATIENCE_NS {
        core::hint::spin_loop();
    }
    let arrived = timer::count() != before;
    Current::interrupts_off();
    let here = match outcome {
        Answer::Value(_) if arrived => ON,
        Answer::Value(_) => OFF,
        fault => fault,
    };
    (OFF, here)
}
