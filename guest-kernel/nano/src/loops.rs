//! The loops themselves: unrolled by four, so that `n` is a multiple of four and not 0, and aligned, so that they lie in
//! the same place of a cache line in each image.

use core::arch::naked_asm;

use crate::compute::ALU_WORDS;

/// The loop around a body: what is subtracted.
#[unsafe(naked)]
pub extern "C" fn empty(n: u64) {
    naked_asm!(".p2align 6", "2:", "sub rdi, 4", "jnz 2b", "ret")
}

/// `n` calls of a leaf that adds 1; returns the sum.
#[unsafe(naked)]
pub(crate) extern "C" fn callret(n: u64) -> u64 {
    naked_asm!(
        "xor eax, eax",
        ".p2align 6",
        "2:",
        "call 3f",
        "call 3f",
        "call 3f",
        "call 3f",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
        ".p2align 6",
        "3:",
        "add rax, 1",
        "ret",
    )
}

/// The function that [`indirect`] calls for `ADDED - 1`: it adds to the sum in RAX.
#[unsafe(naked)]
unsafe extern "C" fn target<const ADDED: u8>() {
    naked_asm!(".p2align 4", "add rax, {added}", "ret", added = const ADDED)
}

/// The functions that [`indirect`] calls in turn.
pub(crate) static TARGETS: [unsafe extern "C" fn(); 16] = [
    target::<1>,
    target::<2>,
    target::<3>,
    target::<4>,
    target::<5>,
    target::<6>,
    target::<7>,
    target::<8>,
    target::<9>,
    target::<10>,
    target::<11>,
    target::<12>,
    target::<13>,
    target::<14>,
    target::<15>,
    target::<16>,
];

/// `n` calls through `table`, whose entries up to index `mask` are called in turn; returns the sum.
///
/// # Safety
/// `table` is [`TARGETS`], and `mask` is 2^k - 1 and below 16.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn indirect(n: u64, table: *const unsafe extern "C" fn(), mask: u32) -> u64 {
    naked_asm!(
        "xor eax, eax",
        "xor ecx, ecx",
        ".p2align 6",
        "2:",
        ".rept 4",
        "call [rsi + rcx * 8]",
        "inc ecx",
        "and ecx, edx",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret",
    )
}

/// The loop of [`indirect`] without its calls.
#[unsafe(naked)]
pub(crate) extern "C" fn indirect_empty(n: u64) {
    naked_asm!(
        ".p2align 6",
        "2:",
        ".rept 4",
        "inc ecx",
        "and ecx, edx",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "ret"
    )
}

/// The Fibonacci number of `k`, by two recursive calls each.
#[unsafe(naked)]
pub(crate) extern "C" fn fib(k: u64) -> u64 {
    naked_asm!(
        ".p2align 6",
        "4:",
        "cmp rdi, 2",
        "jae 2f",
        "mov rax, rdi",
        "ret",
        "2:",
        "push rbx",
        "lea rbx, [rdi - 2]",
        "dec rdi",
        "call 4b",
        "mov rdi, rbx",
        "mov rbx, rax",
        "call 4b",
        "add rax, rbx",
        "pop rbx",
        "ret",
    )
}

/// `passes` times over the words at `words`: nine instructions for each, of which one loads and one stores. Each pass
/// inverts the bits of `mask` in every word; returns the sum of the passes' checksums.
///
/// # Safety
/// [`ALU_WORDS`] words at `words` belong to the caller; `passes` is not 0.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn alu(words: *mut u64, passes: u64, mask: u64) -> u64 {
    naked_asm!(
        "mov r8, rdx",
        "xor eax, eax",
        "2:",
        "xor edx, edx",
        "xor ecx, ecx",
        ".p2align 6",
        "3:",
        "mov r9, [rdi + rcx * 8]",
        "xor r9, r8",
        "mov [rdi + rcx * 8], r9",
        "rol r9, 7",
        "lea rdx, [rdx + rdx * 4]",
        "add rdx, r9",
        "inc ecx",
        "cmp ecx, {words}",
        "jb 3b",
        "add rax, rdx",
        "dec rsi",
        "jnz 2b",
        "ret",
        words = const ALU_WORDS,
    )
}

/// Bytes that [`smc`] needs.
pub const SMC_BYTES: usize = 16;

/// `n` times: stores another number into an instruction that loads a number, runs it, and adds what it loaded; returns
/// the sum, which is `n * (n + 1) / 2`.
///
/// # Safety
/// [`SMC_BYTES`] bytes at `code`, aligned to 16, belong to the caller, and can be read, written and executed.
#[unsafe(naked)]
pub unsafe extern "C" fn smc(n: u64, code: *mut u8) -> u64 {
    naked_asm!(
        // At 3: mov eax, imm32; ret. The immediate is aligned.
        "mov byte ptr [rsi + 3], 0xb8",
        "mov byte ptr [rsi + 8], 0xc3",
        "add rsi, 3",
        "xor edx, edx",
        "xor ecx, ecx",
        ".p2align 6",
        "2:",
        ".rept 4",
        "inc ecx",
        "mov [rsi + 1], ecx",
        "call rsi",
        "add rdx, rax",
        ".endr",
        "sub rdi, 4",
        "jnz 2b",
        "mov rax, rdx",
        "ret",
    )
}
