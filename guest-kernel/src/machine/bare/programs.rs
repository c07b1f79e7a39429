//! Programs: ring 3, entered by IRETQ, left by SYSCALL, an exception or an interrupt.
//!
//! What interrupts a program arrives with interrupts off, on a handler's stack, and goes back to the stack of whoever
//! started the program; the frame is copied before anything else can arrive.

use core::arch::{asm, global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::user::{Left, Registers, UserContext};

use super::descriptors::{CODE, PROGRAM_CODE, PROGRAM_DATA, SYSRET_BASE};
use super::mmu::{self, BareMmu};
use super::pic::FIRST_IRQ;
use super::traps::{self, Frame as TrapFrame, GENERAL_PROTECTION, PAGE_FAULT};
use crate::memory::frames::Frame;
use crate::memory::paging::Mmu;
use crate::single::Single;

const EFER: u32 = 0xc000_0080;
/// EFER.SCE and EFER.NXE.
const EFER_BITS: u64 = 1 | 1 << 11;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SYSCALL_MASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
/// RFLAGS.TF, IF, DF, NT (with which IRETQ raises #GP) and AC.
const CLEARED: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 18;

/// The vector of a frame that stands for a system call.
const SYSCALL: u64 = 0x100;

/// The stack of whoever started the program.
static RETURN_SP: AtomicU64 = AtomicU64::new(0);
/// Where the program's vector registers are saved.
static VECTORS: AtomicU64 = AtomicU64::new(0);
/// The program's stack pointer, while a system call has no stack yet.
static USER_SP: AtomicU64 = AtomicU64::new(0);
/// The program that ran last, by where its state is, and the bases of FS and GS that were loaded for it. Another one
/// has both loaded anew: a program can change them without the kernel, by loading a selector.
static LOADED: Single<Option<(usize, [u64; 2])>> = Single::new(None);
static KERNEL_MXCSR: u32 = 0x1f80;
/// The stack that a system call's frame is made on.
static CALL_STACK: Single<[u128; 16]> = Single::new([0; 16]);

/// Allows SYSCALL, and pages without execution.
pub fn allow() {
    // SAFETY: these registers exist on every x86-64 processor, and the code at `arrive` is made for SYSCALL.
    unsafe {
        write_msr(EFER, read_msr(EFER) | EFER_BITS);
        write_msr(STAR, u64::from(SYSRET_BASE) << 48 | u64::from(CODE) << 32);
        write_msr(LSTAR, arrive as *const () as u64);
        write_msr(SYSCALL_MASK, CLEARED);
    }
}

/// Runs a program. Interrupts are off before and after.
pub fn run(root: Frame, context: &mut UserContext) -> Left {
    if !is_canonical(context.registers.rip) {
        // IRETQ would raise this exception in the kernel, before it has left it.
        return Left::Fault { vector: GENERAL_PROTECTION, error: 0, address: 0 };
    }
    if mmu::expected_root() != root {
        BareMmu::new(root).switch(root);
    }
    load_bases(context);
    VECTORS.store(context.vectors.as_mut_ptr() as u64, Ordering::Relaxed);
    let frame = frame_of(&context.registers);
    // SAFETY: interrupts are off, and the frame is one of user mode.
    let frame = unsafe { &*enter(&raw const frame) };
    context.registers = registers_of(frame);
    let (vector, error) = (frame.vector, frame.error_code);
    match vector {
        SYSCALL => Left::Syscall,
        vector if vector < FIRST_IRQ as u64 => {
            let address = if vector == PAGE_FAULT { traps::fault_address() } else { 0 };
            Left::Fault { vector: vector as u8, error, address }
        }
        vector => {
            traps::interrupt(vector);
            Left::Interrupted
        }
    }
}

const fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

fn load_bases(context: &UserContext) {
    let bases = [context.fs_base, context.gs_base];
    let wanted = Some(((&raw const *context).addr(), bases));
    // SAFETY: the reference ends with this function; interrupt handlers have none.
    let loaded = unsafe { LOADED.get() };
    if *loaded != wanted {
        *loaded = wanted;
        for (register, base) in [FS_BASE, GS_BASE].into_iter().zip(bases) {
            // SAFETY: the kernel uses neither; a base that is not canonical was refused.
            unsafe { write_msr(register, base) };
        }
    }
}

/// The next program has its bases loaded, whichever it is.
pub fn forget() {
    // SAFETY: as in `load_bases`.
    unsafe { *LOADED.get() = None };
}

fn frame_of(r: &Registers) -> TrapFrame {
    TrapFrame {
        registers: [
            r.r15, r.r14, r.r13, r.r12, r.r11, r.r10, r.r9, r.r8, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rcx,
            r.rax,
        ],
        vector: 0,
        error_code: 0,
        rip: r.rip,
        cs: PROGRAM_CODE.into(),
        rflags: r.checked_flags(),
        rsp: r.rsp,
        ss: PROGRAM_DATA.into(),
    }
}

fn registers_of(frame: &TrapFrame) -> Registers {
    let [r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax] = frame.registers;
    let TrapFrame { rip, rflags, rsp, .. } = *frame;
    Registers { r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, rflags, rsp }
}

/// Enters user mode; returns with the frame that interrupted it.
#[unsafe(naked)]
unsafe extern "C" fn enter(frame: *const TrapFrame) -> *const TrapFrame {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {return_sp}], rsp",
        "mov rsi, [rip + {vectors}]",
        "fxrstor64 [rsi]",
        "mov rsp, rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        return_sp = sym RETURN_SP,
        vectors = sym VECTORS,
    )
}

// Where SYSCALL arrives, on the program's stack pointer: makes the frame that an interrupt would have made. And where
// `trap_common` sends what interrupted a program, with the stack pointer at the frame.
global_asm!(
    ".pushsection .text.programs, \"ax\", @progbits",
    "program_calls:",
    "mov [rip + {user_sp}], rsp",
    "lea rsp, [rip + {stack} + {stack_size}]",
    "push {user_data}",
    "push qword ptr [rip + {user_sp}]",
    "push r11",
    "push {user_code}",
    "push rcx",
    "push 0",
    "push {syscall}",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    ".globl program_left",
    "program_left:",
    "cld",
    "mov rax, rsp",
    "mov rsi, [rip + {vectors}]",
    "fxsave64 [rsi]",
    "fninit",
    "ldmxcsr [rip + {mxcsr}]",
    "mov rsp, [rip + {return_sp}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    user_sp = sym USER_SP,
    stack = sym CALL_STACK,
    stack_size = const size_of::<[u128; 16]>(),
    user_data = const PROGRAM_DATA,
    user_code = const PROGRAM_CODE,
    syscall = const SYSCALL,
    vectors = sym VECTORS,
    mxcsr = sym KERNEL_MXCSR,
    return_sp = sym RETURN_SP,
);

// SAFETY: a label of the assembly above; only its address is used.
unsafe extern "C" {
    #[link_name = "program_calls"]
    fn arrive();
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
