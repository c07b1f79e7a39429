//! The symbols that compiled Rust expects of a C runtime. As assembly: the compiler may turn a loop that copies into a
//! call of `memcpy`.

use core::arch::global_asm;

global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp, rust_eh_personality, _Unwind_Resume",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    // Backwards, where the destination begins inside the source.
    "memmove:",
    "mov rax, rdi",
    "sub rax, rsi",
    "cmp rax, rdx",
    "mov rax, rdi",
    "jae memcpy",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "cmp rcx, rcx", // equal, if there is nothing to compare
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "2: ret",
    // Named by prebuilt code, never called: a panic ends the program.
    "rust_eh_personality:",
    "_Unwind_Resume:",
    "ud2",
);
