//! Vector registers, the widest that the processor and XCR0 offer, across system calls, task switches and signals.

use std::arch::global_asm;

use libc::{c_int, c_void};

use crate::random::{Random, compare};
use crate::{Outcome, spoils, sys};

/// Bytes of all registers: 32 of 64 bytes and seven masks at most.
const BYTES: usize = 32 * 64 + 7 * 8;
/// While the registers are full: how often the process yields and sends a signal, and for how many turns of a loop it
/// then waits.
const ROUNDS: u64 = 20;
const TURNS: u64 = 20_000;

/// Loads the registers from `load`, waits, and stores them at `store`: see `kept!`.
type Keep = unsafe extern "sysv64" fn(load: *const u8, store: *mut u8, turns: u64, rounds: u64, pid: u32);

/// The size of the widest usable register, in bytes.
pub fn width() -> usize {
    kind().0
}

/// The width, the bytes of all registers of that width, and the function that keeps values in them.
fn kind() -> (usize, usize, Keep) {
    if is_x86_feature_detected!("avx512bw") {
        (64, BYTES, paravane_torture_keep_zmm)
    } else if is_x86_feature_detected!("avx") {
        (32, 16 * 32, paravane_torture_keep_ymm)
    } else {
        (16, 16 * 16, paravane_torture_keep_xmm)
    }
}

/// Fills all registers, and compares them after system calls, switches to processes that do the same, and signals
/// whose handler overwrites the registers.
pub fn run(random: &mut Random) -> Outcome {
    let (_, len, keep) = kind();
    let before = random.bytes(BYTES);
    let mut after = vec![0; BYTES];
    sys::handle(libc::SIGUSR1, on_signal)?;
    sys::handle(libc::SIGALRM, on_signal)?;
    sys::every(sys::PERIOD);
    // SAFETY: the processor has the registers that this function uses; it reads and writes `len` bytes, and this
    // calling convention lets a function change all vector registers.
    unsafe { keep(before.as_ptr(), after.as_mut_ptr(), TURNS, ROUNDS, std::process::id()) };
    sys::every(0);
    if spoils("vectors") {
        after[len - 1] ^= 1;
    }
    compare("registers", &after[..len], &before[..len])
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let (_, _, keep) = kind();
    let other = [0xa5; BYTES];
    let mut after = [0; BYTES];
    // SAFETY: as in `run`; the kernel restores the interrupted code's registers.
    unsafe { keep(other.as_ptr(), after.as_mut_ptr(), 1, 0, 0) };
    std::hint::black_box(after);
}

/// The body of a function of type [`Keep`]: loads, waits, stores.
///
/// Arguments: rdi, rsi, rdx, rcx, r8. SYSCALL overwrites rax, rcx and r11; 24 is `sched_yield`, 62 `kill`, 10 SIGUSR1.
macro_rules! kept {
    ($name:literal, $load:literal, $store:literal) => {
        global_asm!(
            concat!(".globl ", $name),
            concat!(".type ", $name, ", @function"),
            concat!($name, ":"),
            "mov r9, rcx",
            "mov r10, rsi",
            $load,
            "2:",
            "mov rax, rdx",
            "3:",
            "dec rax",
            "jnz 3b",
            "test r9, r9",
            "jz 4f",
            "mov eax, 24",
            "syscall",
            "mov eax, 62",
            "mov edi, r8d",
            "mov esi, 10",
            "syscall",
            "dec r9",
            "jmp 2b",
            "4:",
            $store,
            "ret",
            concat!(".size ", $name, ", . - ", $name),
        );
    };
}

kept!(
    "paravane_torture_keep_zmm",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
     vmovdqu64 zmm\\n, [rdi + \\n * 64]
     .endr
     .irp n,1,2,3,4,5,6,7
     kmovq k\\n, [rdi + 2040 + \\n * 8]
     .endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
     vmovdqu64 [r10 + \\n * 64], zmm\\n
     .endr
     .irp n,1,2,3,4,5,6,7
     kmovq [r10 + 2040 + \\n * 8], k\\n
     .endr
     vzeroupper"
);
kept!(
    "paravane_torture_keep_ymm",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
     vmovdqu ymm\\n, [rdi + \\n * 32]
     .endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
     vmovdqu [r10 + \\n * 32], ymm\\n
     .endr
     vzeroupper"
);
kept!(
    "paravane_torture_keep_xmm",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
     movdqu xmm\\n, [rdi + \\n * 16]
     .endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
     movdqu [r10 + \\n * 16], xmm\\n
     .endr"
);

// SAFETY: `kept!` assembles these three functions above, with these arguments and without a return value.
unsafe extern "sysv64" {
    fn paravane_torture_keep_zmm(load: *const u8, store: *mut u8, turns: u64, rounds: u64, pid: u32);
    fn paravane_torture_keep_ymm(load: *const u8, store: *mut u8, turns: u64, rounds: u64, pid: u32);
    fn paravane_torture_keep_xmm(load: *const u8, store: *mut u8, turns: u64, rounds: u64, pid: u32);
}
