//! Far CALL, JMP and RET, and IRETQ, with the selectors of user mode.
//!
//! A kernel that runs outside of ring 0 runs on such selectors itself, though it does not know. For it these are
//! transfers within its ring, which succeed; on the machine the first two are refused, and the others lead to user mode,
//! where the kernel's pages cannot be used.

use core::arch::naked_asm;

use crate::machine::bare::descriptors::{USER_CODE, USER_DATA};

use super::Answer;
use super::guard::{Attempt, GENERAL_PROTECTION, PAGE_FAULT, attempt, resume};

/// What the code at the other end says.
const ARRIVED: u64 = 1;

fn go(code: Attempt) -> Answer {
    match attempt(code, USER_CODE.into(), USER_DATA.into()) {
        Answer::Value(ARRIVED) => Answer::Effect("went-on"),
        other => other,
    }
}

pub(super) fn far_call() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn call(code: u64, _: u64) -> u64 {
        naked_asm!(
            "lea rax, [rip + 2f]",
            "push rax",
            "mov [rsp + 4], edi", // an offset of 32 bits, then the selector
            "call fword ptr [rsp]",
            "2:",
            "mov eax, {arrived}",
            "jmp {resume}",
            arrived = const ARRIVED,
            resume = sym resume,
        )
    }
    (Answer::Fault(GENERAL_PROTECTION), go(call))
}

pub(super) fn far_jmp() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn jump(code: u64, _: u64) -> u64 {
        naked_asm!(
            "lea rax, [rip + 2f]",
            "push rax",
            "mov [rsp + 4], edi",
            "jmp fword ptr [rsp]",
            "2:",
            "mov eax, {arrived}",
            "jmp {resume}",
            arrived = const ARRIVED,
            resume = sym resume,
        )
    }
    (Answer::Fault(GENERAL_PROTECTION), go(jump))
}

pub(super) fn far_ret() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn ret(code: u64, data: u64) -> u64 {
        naked_asm!(
            "mov rcx, rsp",
            "push rsi",
            "push rcx",
            "push rdi",
            "lea rax, [rip + 2f]",
            "push rax",
            "retfq",
            "2:",
            "mov eax, {arrived}",
            "jmp {resume}",
            arrived = const ARRIVED,
            resume = sym resume,
        )
    }
    (Answer::Fault(PAGE_FAULT), go(ret))
}

pub(super) fn iretq() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn ret(code: u64, data: u64) -> u64 {
        naked_asm!(
            "mov rcx, rsp",
            "push rsi",
            "push rcx",
            "push 2",
            "push rdi",
            "lea rax, [rip + 2f]",
            "push rax",
            "iretq",
            "2:",
            "mov eax, {arrived}",
            "jmp {resume}",
            arrived = const ARRIVED,
            resume = sym resume,
        )
    }
    (Answer::Fault(PAGE_FAULT), go(ret))
}
