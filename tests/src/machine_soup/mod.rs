//! Random bare kernels that use all of their machine, and find the same by every technique.
//!
//! A seed determines a kernel. It is a sequence of steps, each of which sets registers and executes one instruction or
//! a few: privileged ones, accesses to devices and to memory, changes of a page table, exceptions, and user programs.
//! After an exception the handler goes on with the next step. Everything that a step leaves behind is mixed into one
//! number: registers, and of an exception its vector, error code, RIP, level, interrupt flag and CR2. The kernel prints
//! that number as its last act, so that two techniques agree on it, or differ; and before it, four letters for what it
//! was before each step, so that one sees where they part.
//!
//! What is left out is what techniques at CPL 3 are known not to show (docs/technique-trap.md), what an engine or QEMU
//! is known to lose (INT 0x80 halves RAX in a process, a refused SYSCALL takes RCX and R11; QEMU checks neither the
//! reserved bits of CR0 and CR8 nor whether a base is canonical), and what depends on time.

mod code;
mod steps;

use self::code::{Tables, handlers, prologue, report};
use crate::images::{ENTRY, Kind, SIZE, VIRT_BASE, kernel};
use crate::random::SplitMix64;

/// The number of steps in a kernel.
pub const STEPS: u64 = 144;
const STEP_BYTES: u64 = 192;

// Offsets from [`ENTRY`].
const HANDLERS: u64 = 0x400;
const COMMON: u64 = 0x700;
const FIRST: u64 = 0xa00;
const REPORT: u64 = FIRST + STEPS * STEP_BYTES;
/// User programs, each in a slot of its own.
const USER: u64 = 0x8000;
const USER_PROGRAMS: u64 = 32;
const USER_BYTES: u64 = 64;
/// What pointers point to; user programs may, too.
const DATA: u64 = 0x9000;
const DATA_BYTES: u64 = 0x1000;
/// A page whose mapping the kernel changes.
const SCRATCH: u64 = 0xa000;
const TABLES: u64 = 0xb000;
const NEXT: u64 = 0xc800;
const SUM: u64 = 0xc808;
/// The linear address of the entry that maps [`SCRATCH`].
const SLOT: u64 = 0xc810;
/// CR3 as it was.
const ROOT: u64 = 0xc818;
/// The number before each step.
const LOG: u64 = 0xc900;
const STACK: u64 = SIZE - 0x1000;

const _: () = assert!(REPORT + 0x100 <= USER && USER_PROGRAMS * USER_BYTES <= DATA - USER);

/// The kernel for a seed.
pub fn machine_soup(seed: u64) -> Vec<u8> {
    let mut cook = Cook { random: SplitMix64::new(seed) };
    let mut code = Vec::new();
    put(&mut code, 0, &prologue());
    let (stubs, common) = handlers();
    put(&mut code, HANDLERS, &stubs);
    put(&mut code, COMMON, &common);
    for n in 0..STEPS {
        let at = FIRST + n * STEP_BYTES;
        let step = cook.step(n, at);
        put(&mut code, at, &step);
    }
    put(&mut code, REPORT, &report());
    for n in 0..USER_PROGRAMS {
        let program = cook.user_program();
        put(&mut code, USER + n * USER_BYTES, &program);
    }
    let data: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| cook.random.any().to_le_bytes()).collect();
    put(&mut code, DATA, &data);
    put(&mut code, TABLES, &Tables::bytes());
    kernel(Kind::Bare, &code)
}

/// Puts bytes at an offset, over what is there.
fn put(code: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let (start, end) = (at as usize, at as usize + bytes.len());
    assert!(end as u64 <= STACK - 0x1000, "broken test: {end:#x}");
    if code.len() < end {
        code.resize(end, 0xcc);
    }
    code[start..end].copy_from_slice(bytes);
}

struct Cook {
    random: SplitMix64,
}

/// The physical address of an offset.
const fn physical(offset: u64) -> u64 {
    ENTRY - VIRT_BASE + offset
}
