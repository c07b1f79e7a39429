//! LAR, LSL, VERR, VERW; segment registers read, pushed and popped.

use core::arch::naked_asm;

use crate::machine::bare::descriptors::{CODE, DATA, USER_DATA};

use super::Answer;
use super::guard::{Attempt, attempt};
use super::tables::USER_DATA_BASE;

const REFUSED: u64 = u64::MAX;
const ALLOWED: Answer = Answer::Effect("allowed");

/// What it says of the kernel's own selector.
fn ask(code: Attempt, selector: u16) -> Answer {
    match attempt(code, selector.into(), 0) {
        Answer::Value(REFUSED) => Answer::Effect("refused"),
        other => other,
    }
}

pub(super) fn lar() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(selector: u64, _: u64) -> u64 {
        // Without the bits that are undefined.
        naked_asm!("lar eax, edi", "jnz 2f", "and eax, 0x00f0ff00", "ret", "2:", "mov rax, -1", "ret")
    }
    // 64-bit code, present, DPL 0, accessed.
    (Answer::Value(0x00a0_9b00), ask(read, CODE))
}

pub(super) fn lsl() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(selector: u64, _: u64) -> u64 {
        naked_asm!("lsl eax, edi", "jnz 2f", "ret", "2:", "mov rax, -1", "ret")
    }
    (Answer::Value(0xffff_ffff), ask(read, DATA))
}

/// As [`ask`], for an instruction that only says whether.
fn may(code: Attempt) -> Answer {
    match ask(code, DATA) {
        Answer::Value(_) => ALLOWED,
        other => other,
    }
}

pub(super) fn verr() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn test(selector: u64, _: u64) -> u64 {
        naked_asm!("xor eax, eax", "verr di", "jz 2f", "mov rax, -1", "2:", "ret")
    }
    (ALLOWED, may(test))
}

pub(super) fn verw() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn test(selector: u64, _: u64) -> u64 {
        naked_asm!("xor eax, eax", "verw di", "jz 2f", "mov rax, -1", "2:", "ret")
    }
    (ALLOWED, may(test))
}

pub(super) fn mov_cs() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(_: u64, _: u64) -> u64 {
        naked_asm!("mov eax, cs", "ret")
    }
    (Answer::Value(CODE.into()), attempt(read, 0, 0))
}

pub(super) fn mov_ss() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(_: u64, _: u64) -> u64 {
        naked_asm!("mov eax, ss", "ret")
    }
    (Answer::Value(DATA.into()), attempt(read, 0, 0))
}

/// 64-bit code can push FS and GS only.
pub(super) fn push_fs() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn push(selector: u64, _: u64) -> u64 {
        // PUSH FS, of 64 bits, for which the assembler has no name.
        naked_asm!(
            "mov fs, edi",
            ".byte 0x0f, 0xa0",
            "xor ecx, ecx",
            "mov fs, ecx",
            "pop rax",
            "movzx eax, ax",
            "ret"
        )
    }
    (Answer::Value(DATA.into()), attempt(push, DATA.into(), 0))
}

/// What is loaded shows in the base: of two words, the one at the segment's base must be read. A kernel outside of ring
/// 0 can load user mode's selector without a trap, but gets another table's descriptor.
pub(super) fn pop_fs() -> (Answer, Answer) {
    const WORDS: usize = USER_DATA_BASE as usize / 8 + 1;
    #[unsafe(naked)]
    unsafe extern "C" fn pop(selector: u64, word: u64) -> u64 {
        // POP FS, of 64 bits.
        naked_asm!("push rdi", ".byte 0x0f, 0xa1", "mov rax, fs:[rsi]", "xor ecx, ecx", "mov fs, ecx", "ret")
    }
    let mut words = [0u64; WORDS];
    words[0] = 0x5105;
    words[WORDS - 1] = 0xba5e;
    let here = match attempt(pop, USER_DATA.into(), words.as_ptr() as u64) {
        Answer::Value(0xba5e) => Answer::Effect("this-segment"),
        Answer::Value(0x5105) => Answer::Effect("another-segment"),
        other => other,
    };
    (Answer::Effect("this-segment"), here)
}
