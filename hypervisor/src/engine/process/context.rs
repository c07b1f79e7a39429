//! From a hand-over to what the architecture would say: registers, and a trap.
//!
//! All of it is read from memory that the guest can write, and a user program can write it as well as its kernel. So
//! a claim is cut down to what code at CPL 3 can bring about by honest means: the vectors that it can raise, with error
//! codes that they have, flags that it can set, bases that are canonical. No value is used as an address or a length
//! before it was bounded, and none is read twice: another thread of the guest may write to it meanwhile. Linux's signal
//! frame: `struct rt_sigframe` (asm/sigcontext.h, asm/ucontext.h); error codes
//! and vectors as the processor raised them.

use super::area::{Area, Lane, room};
use super::child::HandOver;
use super::script::SIGNALS;
use super::stub::{self, KICK_SIGNAL, KIND_HYPERCALL, KIND_KICKED};
use crate::engine::canonical;
use crate::x86::exception::selector_error::{EXTERNAL, IDT, INDEX_SHIFT};
use crate::x86::exception::{Fault, page_error, vector};
use crate::x86::registers::Regs;
use crate::x86::rflags;

const USER_CS: u64 = 0x33;
const USER_SS: u64 = 0x2b;

/// Where an FPU state is after a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FpuAt {
    /// In the registers of the process, with a copy at [`room::FPU_OUT`].
    Registers,
    /// In the signal frame, at this offset of the room; the registers were reset.
    Frame(u64),
}

impl FpuAt {
    /// Where in the room the image is.
    pub fn offset(self) -> u64 {
        match self {
            Self::Registers => room::FPU_OUT,
            Self::Frame(offset) => offset,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trap {
    Hypercall,
    Syscall,
    /// A page fault: the address, and whether it was a store or an instruction fetch.
    Page {
        address: u64,
        write: bool,
        fetch: bool,
    },
    Fault(Fault),
    Kick,
    /// A kick on the way in: the registers are what they were to be.
    KickBeforeEntry,
}

/// A hand-over, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    pub trap: Trap,
    /// Meaningless for [`Trap::KickBeforeEntry`].
    pub regs: Regs,
    pub fpu: FpuAt,
}

/// Decodes a hand-over; `None` for one that the stub never makes: the guest made it up, and its state is lost.
pub(super) fn decode(area: &Area, lane: Lane, h: &HandOver, fpu_size: u64) -> Option<Stop> {
    match h.kind {
        KIND_HYPERCALL => {
            let regs = possible(saved_by_stub(area, h));
            Some(Stop { trap: Trap::Hypercall, regs, fpu: FpuAt::Registers })
        }
        KIND_KICKED => {
            Some(Stop { trap: Trap::KickBeforeEntry, regs: Regs::default(), fpu: FpuAt::Registers })
        }
        signal => {
            let signal = SIGNALS.into_iter().find(|s| *s as u64 == signal)?;
            from_signal(area, lane, h, signal, fpu_size)
        }
    }
}

fn saved_by_stub(area: &Area, h: &HandOver) -> Regs {
    let word = |i: u64| area.room(room::EXIT + i * 8);
    Regs {
        rax: word(0),
        rbx: word(1),
        rcx: word(2),
        rdx: word(3),
        rsi: word(4),
        rdi: word(5),
        rbp: word(6),
        r8: word(7),
        r9: word(8),
        r10: word(9),
        r11: word(10),
        r12: word(11),
        r13: word(12),
        r14: word(13),
        r15: word(14),
        rsp: word(15),
        rip: word(16),
        rflags: word(17),
        fs_base: h.fs_base,
        gs_base: h.gs_base,
        ..Regs::default()
    }
}

/// The registers as they can be at CPL 3: no flag that it cannot set, and canonical addresses where the processor has
/// no others. With others, whoever runs next (a user program's kernel) could not be entered.
fn possible(regs: Regs) -> Regs {
    Regs {
        rip: canonical(regs.rip),
        rflags: regs.rflags & rflags::LOADED_AT_CPL3 & !rflags::RF | rflags::ALWAYS_AT_CPL3,
        fs_base: canonical(regs.fs_base),
        gs_base: canonical(regs.gs_base),
        ..regs
    }
}

/// Offsets in a ucontext.
const GREGS: u64 = 40;
pub(super) const CS: u64 = 184;
const ERR: u64 = 192;
pub(super) const TRAPNO: u64 = 200;
const CR2: u64 = 216;
pub(super) const FPSTATE: u64 = 224;
const UCONTEXT_SIZE: u64 = 304;
/// Offsets in a siginfo.
pub(super) const SI_CODE: u64 = 8;
const SI_CALL_ADDR: u64 = 16;
const SI_ARCH: u64 = 28;
const SIGINFO_SIZE: u64 = 128;

fn from_signal(area: &Area, lane: Lane, h: &HandOver, signal: i32, fpu_size: u64) -> Option<Stop> {
    let uc = lane.offset_in_room(h.ucontext, UCONTEXT_SIZE)?;
    let info = lane.offset_in_room(h.siginfo, SIGINFO_SIZE)?;
    let image = area.room(uc + FPSTATE);
    let fpu = match lane.offset_in_room(image, fpu_size) {
        Some(offset) if image.is_multiple_of(64) => FpuAt::Frame(offset),
        _ => return None,
    };
    let mut regs = possible(saved_by_linux(area, uc, h));
    let code = area.room(info + SI_CODE) as i32;
    let trap = if signal == KICK_SIGNAL || code <= 0 {
        // Only we, or the host's administrator, send signals: whatever it was, nothing happened in the guest.
        Trap::Kick
    } else if signal == libc::SIGSYS {
        let arch = (area.room(info + SI_ARCH)) as u32;
        let call = area.room(info + SI_CALL_ADDR);
        system_call(&mut regs, arch, call, area.room(uc + CS) & 0xffff)
    } else {
        exception(area, uc, signal)
    };
    Some(Stop { trap, regs, fpu })
}

fn saved_by_linux(area: &Area, uc: u64, h: &HandOver) -> Regs {
    let word = |i: u64| area.room(uc + GREGS + i * 8);
    Regs {
        r8: word(0),
        r9: word(1),
        r10: word(2),
        r11: word(3),
        r12: word(4),
        r13: word(5),
        r14: word(6),
        r15: word(7),
        rdi: word(8),
        rsi: word(9),
        rbp: word(10),
        rbx: word(11),
        rdx: word(12),
        rax: word(13),
        rcx: word(14),
        rsp: word(15),
        rip: word(16),
        rflags: word(17),
        fs_base: h.fs_base,
        gs_base: h.gs_base,
        ..Regs::default()
    }
}

/// A SIGSYS: which instruction it was, and what that means to code at CPL 3.
fn system_call(regs: &mut Regs, arch: u32, call: u64, cs: u64) -> Trap {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
    const INT_80_ERROR: u32 = 0x80 << INDEX_SHIFT | IDT;
    if arch == AUDIT_ARCH_X86_64 && call & !0xfff == VSYSCALL {
        // Linux emulates calls of this page, return included. There is nothing in the guest's world.
        (regs.rip, regs.rsp) = (call, regs.rsp.wrapping_sub(8));
        return Trap::Page { address: call, write: false, fetch: true };
    }
    if arch == AUDIT_ARCH_X86_64 && cs == USER_CS {
        return Trap::Syscall;
    }
    if cs == USER_CS {
        // INT 0x80: a vector without a gate that CPL 3 may use. A sibling may have changed the address meanwhile.
        regs.rip = canonical(regs.rip.wrapping_sub(2));
        return general_protection(INT_80_ERROR);
    }
    // SYSENTER, or a 32-bit code segment: neither exists for a guest. Linux has lost rip and rsp by now.
    general_protection(0)
}

fn general_protection(error_code: u32) -> Trap {
    Trap::Fault(Fault { vector: vector::PROTECTION, error_code, address: 0 })
}

/// The vectors for which Linux sends a signal to code at CPL 3 (arch/x86/kernel/traps.c).
const fn vectors_of(signal: i32) -> &'static [u8] {
    use vector::*;
    match signal {
        libc::SIGSEGV => &[OVERFLOW, BOUND, PROTECTION, PAGE],
        // A memfd that is too short is a page fault.
        libc::SIGBUS => &[NOT_PRESENT, STACK, PAGE, ALIGNMENT],
        libc::SIGFPE => &[DIVIDE, FPU, SIMD],
        libc::SIGTRAP => &[DEBUG, BREAKPOINT],
        _ => &[UNDEFINED],
    }
}

/// An exception. The number that a signal does not come from is a forgery, or is that of an earlier exception, which
/// Linux leaves where it has none: then it is what the signal mostly means.
fn exception(area: &Area, uc: u64, signal: i32) -> Trap {
    const UNDEFINED: Fault = Fault { vector: vector::UNDEFINED, error_code: 0, address: 0 };
    const SELECTOR: u32 = 0xffff & !EXTERNAL;
    let error_code = area.room(uc + ERR) as u32;
    let claimed = u8::try_from(area.room(uc + TRAPNO)).ok();
    match claimed.filter(|vector| vectors_of(signal).contains(vector)) {
        Some(vector::PAGE) => {
            let address = area.room(uc + CR2);
            if canonical(address) != address {
                return general_protection(0);
            }
            Trap::Page {
                address,
                write: error_code & page_error::WRITE != 0,
                fetch: error_code & page_error::FETCH != 0,
            }
        }
        Some(vector @ vector::NOT_PRESENT..=vector::PROTECTION) => {
            Trap::Fault(Fault { vector, error_code: error_code & SELECTOR, address: 0 })
        }
        Some(vector) => Trap::Fault(Fault { vector, error_code: 0, address: 0 }),
        None if signal == libc::SIGILL => Trap::Fault(UNDEFINED),
        None => general_protection(0),
    }
}

/// Whether a stop happened inside the stub, so that its registers are not guest code's.
pub(super) fn inside_stub(stop: &Stop, lane: Lane) -> bool {
    stub::contains(stop.regs.rip, lane)
}

/// Whether a stop is the single step of a guest that entered the stub with TF set.
pub(super) fn is_single_step(stop: &Stop) -> bool {
    matches!(stop.trap, Trap::Fault(Fault { vector: vector::DEBUG, .. }))
}

/// Writes what a resumption loads: `regs`, and the FPU image at `load_fpu` if the state is not in place.
///
/// `bases` are FS.base and GS.base as they are in the process; `None` where nobody knows.
pub(super) fn store(area: &Area, regs: &Regs, bases: Option<(u64, u64)>, load_fpu: u64) {
    let gprs = [
        regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    for (i, value) in (0u64..).zip(gprs) {
        area.set_room(room::RESUME + i * 8, value);
    }
    let flags = regs.rflags & rflags::LOADED_AT_CPL3 | rflags::ALWAYS_AT_CPL3;
    for (i, value) in (0u64..).zip([regs.rip, USER_CS, flags, regs.rsp, USER_SS]) {
        area.set_room(room::IRET + i * 8, value);
    }
    let fs = bases.is_none_or(|(fs, _)| fs != regs.fs_base);
    let gs = bases.is_none_or(|(_, gs)| gs != regs.gs_base);
    let changed = u64::from(fs) | u64::from(gs) << 1;
    area.set_room(room::FS, regs.fs_base);
    area.set_room(room::GS, regs.gs_base);
    area.set_room(room::LOAD_BASES, changed);
    area.set_room(room::LOAD_FPU, load_fpu);
    area.set_room(room::KICKED, 0);
}

/// Whether a stop inside the stub came while the guest's state was being loaded.
pub(super) fn is_loading(stop: &Stop, lane: Lane) -> bool {
    stub::is_loading(stop.regs.rip, lane)
}

/// Clears the trap flag.
pub(super) fn without_trap_flag(regs: &mut Regs) {
    regs.rflags &= !rflags::TF;
}

/// Sets the trap flag, which the stub's own entry loses.
pub(super) fn with_trap_flag(regs: &mut Regs) {
    regs.rflags |= rflags::TF;
}

/// Whether `regs` can be loaded at all: addresses that the processor would refuse fault before the guest
/// runs its first instruction.
pub(super) fn loadable(regs: &Regs) -> bool {
    [regs.rip, regs.fs_base, regs.gs_base].iter().all(|va| paravane_abi::addr::is_canonical(*va))
}
