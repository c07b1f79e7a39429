//! System calls of a user program.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::bare::BareMmu;
use crate::machine::bare::descriptors::{CODE, SYSRET_BASE};
use crate::machine::primitive::Primitive;
use crate::memory::frames::Frame;
use crate::memory::paging::{Access, AddressSpace, MapError, Span};
use crate::memory::{Memory, PRIVATE, direct_map};
use crate::single::Single;

const EFER: u32 = 0xc000_0080;
const EFER_SYSCALL: u64 = 1;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SYSCALL_MASK: u32 = 0xc000_0084;
/// RFLAGS.IF and RFLAGS.DF.
const CLEARED: u64 = 1 << 9 | 1 << 10;

/// The program's address space.
static SPACE: Single<Option<AddressSpace>> = Single::new(None);
/// System calls that the kernel answered.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// The stack of whoever started the program.
static STACK: AtomicU64 = AtomicU64::new(0);

/// A system call and the return from it.
pub const SYSCALL: Primitive<BareMmu> = Primitive {
    prepare,
    finish,
    ..Primitive::new("syscall", "a system call of a user program, and the return from it", start, |_, did| {
        CALLS.load(Ordering::Relaxed) == did.all
    })
};

fn prepare(memory: &mut Memory<BareMmu>) -> Result<[u64; 3], MapError> {
    CALLS.store(0, Ordering::Relaxed);
    let Memory { mmu, frames, space: kernel, .. } = memory;
    let frame = frames.allocate().ok_or(MapError::OutOfFrames)?;
    let mut space = AddressSpace::new(mmu, frames, kernel)?;
    space.map_run(mmu, frames, Span::pages(PRIVATE, 1), frame, Access::User)?;
    // SAFETY: the program, which is shorter, and code after it go to a frame that was just allocated.
    unsafe { (program as *const u8).copy_to(direct_map(frame) as *mut u8, 64) };
    space.activate(mmu);
    // SAFETY: there is no other reference; the entry code lets nothing in that the kernel did not start.
    unsafe {
        *SPACE.get() = Some(space);
        write_msr(EFER, read_msr(EFER) | EFER_SYSCALL);
        write_msr(STAR, u64::from(SYSRET_BASE) << 48 | u64::from(CODE) << 32);
        write_msr(LSTAR, enter as *const () as u64);
        write_msr(SYSCALL_MASK, CLEARED);
    }
    Ok([PRIVATE, frame.0, 0])
}

fn finish(memory: &mut Memory<BareMmu>, [_, frame, _]: [u64; 3]) {
    let Memory { mmu, frames, space: kernel, .. } = memory;
    kernel.activate(mmu);
    // SAFETY: there is no other reference.
    if let Some(space) = unsafe { SPACE.get() }.take() {
        space.destroy(mmu, frames);
    }
    if let Err(error) = frames.free(Frame(frame)) {
        panic!("a nanobenchmark's frame was freed by someone else: {error:?}");
    }
}

/// Starts the program; returns when it says that it has ended. It changes no register that a caller relies on.
#[unsafe(naked)]
unsafe extern "C" fn start(n: u64, program: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        "mov [rip + {stack}], rsp",
        "xor eax, eax",
        "mov rcx, rsi",
        "mov r11d, 2", // interrupts off
        "sysretq",
        stack = sym STACK,
    )
}

/// Where system calls arrive: EAX is 0, or the program has ended.
#[unsafe(naked)]
unsafe extern "C" fn enter() -> ! {
    naked_asm!(
        "test eax, eax",
        "jnz 2f",
        "inc qword ptr [rip + {calls}]",
        "sysretq",
        "2:",
        "mov rsp, [rip + {stack}]",
        "ret",
        calls = sym CALLS,
        stack = sym STACK,
    )
}

/// The program, position-independent.
#[unsafe(naked)]
unsafe extern "C" fn program() -> ! {
    naked_asm!("2:", ".rept 4", "syscall", ".endr", "sub rdi, 4", "jnz 2b", "mov eax, 1", "syscall", "ud2")
}

unsafe fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller names a register that exists.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

unsafe fn write_msr(number: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller answers for the value.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}
