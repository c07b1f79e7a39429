//! Entering the guest's handlers: Xen's frames on the guest's kernel stack.
//!
//! A frame, from the new stack pointer upwards (public/arch-x86/xen-x86_64.h; observed on Xen 4.17): rcx, r11,
//! [error code], rip, cs with the saved upcall mask in bits 32..,
//! rflags, rsp, ss. The guest's IF is the inverse of its upcall mask, here as everywhere. The way back is in
//! [`super::iret`].

use std::mem::offset_of;

use paravane_abi::addr;
use paravane_abi::shared_info::VcpuInfo;
use paravane_abi::trap::{
    FRAME_CS_UPCALL_MASK_SHIFT, PFEC_USER, TI_IF, TRAP_DEBUG, TRAP_GP_FAULT, TRAP_NMI, TRAP_NO_DEVICE,
    TRAP_PAGE_FAULT,
};
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;
use zerocopy::IntoBytes;

use super::context::PvContext;
use super::exception::Exception;
use super::vcpu::Callback;
use crate::machine::memory::Maddr;
use crate::x86::debug::DR6_SINGLE_STEP;
use crate::x86::exception::Fault;
use crate::x86::rflags::{AC, IF, IOPL, IOPL_SHIFT, NT, RF, TF, VM};

/// TF, IOPL, NT, RF, VM and AC: cleared or owned by the host on every entry.
const CLEARED_ON_ENTRY: u64 = TF | IOPL | NT | RF | VM | AC;
/// Compilers may keep live data in the 128 bytes below the stack pointer (System V ABI, 3.2.2), and parts of
/// a guest kernel may be code compiled so: an entry into running kernel code leaves them alone.
const RED_ZONE: u64 = 128;
/// A selector's privilege level.
pub(super) const RPL: u64 = 3;

/// Words of the longest frame: one with an error code.
const MAX_FRAME: usize = 8;

impl PvContext<'_> {
    /// Whether an upcall is pending and allowed.
    pub fn upcall_due(&self) -> bool {
        self.upcall().state(&self.domain.memory) == Ok((true, false))
    }

    /// Enters the event callback, if an upcall is due and there is one.
    pub fn deliver_upcall(&mut self) {
        if self.vcpu.event.address != 0 && self.upcall_due() {
            let callback = Callback { mask_events: true, ..self.vcpu.event };
            self.enter_handler(callback, &[]);
        }
    }

    /// Enters the NMI handler, if an NMI waits. Without a handler it is lost, as on Xen.
    pub fn deliver_nmi(&mut self) {
        if !self.vcpu.nmi.pending || self.vcpu.nmi.masked {
            return;
        }
        self.vcpu.nmi.pending = false;
        let handler = self.handler(TRAP_NMI);
        if handler.address != 0 {
            self.vcpu.nmi.masked = true;
            self.enter_handler(Callback { mask_events: true, ..handler }, &[]);
        }
    }

    /// Makes sure that the engine gets an instruction pointer that it can load: a jump out of the canonical
    /// range is the guest's #GP.
    pub fn check_rip(&mut self) {
        if !addr::is_canonical(self.vcpu.regs.rip) {
            self.deliver_fault(Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 });
        }
    }

    fn handler(&self, vector: u8) -> Callback {
        self.vcpu.traps.get(usize::from(vector)).map_or(Callback::default(), |trap| Callback {
            address: trap.address,
            mask_events: trap.flags & TI_IF != 0,
        })
    }

    /// Enters the guest's handler for an exception, or ends a guest that has none.
    pub fn deliver_fault(&mut self, fault: Fault) {
        if self.vcpu.kernel_mode {
            let (rip, rsp) = (self.vcpu.regs.rip, self.vcpu.regs.rsp);
            let exception = Exception { fault, rip, rsp };
            tracing::debug!(
                vcpu = self.vcpu.id.number(),
                "its kernel has an exception at {rip:#x}: {exception}"
            );
            self.vcpu.last_exception = Some(exception);
        }
        let handler = self.handler(fault.vector);
        if handler.address == 0 {
            return self.no_handler(fault);
        }
        let mut error_code = fault.error_code;
        match fault.vector {
            TRAP_PAGE_FAULT => {
                // Hardware says "user" of everything at CPL 3; the guest's kernel is not its user.
                error_code &= !PFEC_USER;
                if !self.vcpu.kernel_mode {
                    error_code |= PFEC_USER;
                }
                self.set_cr2(fault.address);
            }
            TRAP_NO_DEVICE => self.vcpu.set_task_switched(false),
            TRAP_DEBUG if self.vcpu.regs.rflags & TF != 0 => self.vcpu.debug.status |= DR6_SINGLE_STEP,
            _ => {}
        }
        if is_fault(fault.vector) {
            self.vcpu.regs.rflags |= RF;
        }
        let code = [u64::from(error_code)];
        self.enter_handler(handler, if has_error_code(fault.vector) { &code } else { &[] });
    }

    fn no_handler(&mut self, fault: Fault) {
        let where_ = if fault.vector == TRAP_PAGE_FAULT {
            format!(" (address {:#x}, error code {:#x})", fault.address, fault.error_code)
        } else {
            format!(" (error code {:#x})", fault.error_code)
        };
        self.kill(format_args!(
            "{}{where_}: the guest has no handler for vector {}",
            vector_name(fault.vector),
            fault.vector
        ));
    }

    /// Enters the handler of a software interrupt, which the mode must be allowed. RIP is after it already.
    pub fn deliver_software_interrupt(&mut self, vector: u8) {
        let handler = self.handler(vector);
        if handler.address == 0 {
            return self.kill(format_args!("int {vector:#x}: the guest has no handler for it"));
        }
        self.enter_handler(handler, &[]);
    }

    /// Sets CR2 where the guest reads it.
    pub fn set_cr2(&mut self, value: u64) {
        let cr2 = Maddr(self.upcall().vcpu_info.0 + offset_of!(VcpuInfo, arch) as u64);
        self.vcpu.control.cr2 = value;
        if let Err(e) = self.domain.memory.write_obj(cr2, &value) {
            self.kill(e);
        }
    }

    /// Pushes a frame on the guest's kernel stack and continues at `callback`.
    ///
    /// `extra` are the words between r11 and rip.
    pub fn enter_handler(&mut self, callback: Callback, extra: &[u64]) {
        let masked = match self.upcall().state(&self.domain.memory) {
            Ok((_, masked)) => masked,
            Err(e) => return self.kill(e),
        };
        let from_kernel = self.vcpu.kernel_mode;
        let regs = self.vcpu.regs;
        let stack = if from_kernel { regs.rsp.wrapping_sub(RED_ZONE) } else { self.vcpu.kernel_sp };
        // A privilege level of 0 tells the guest that its kernel was interrupted.
        let cs = u64::from(regs.selectors.cs) & if from_kernel { !RPL } else { u64::MAX };
        let tail = [
            regs.rip,
            cs | u64::from(masked) << FRAME_CS_UPCALL_MASK_SHIFT,
            self.guest_flags(masked),
            regs.rsp,
            u64::from(regs.selectors.ss),
        ];
        let mut frame = [0u64; MAX_FRAME];
        let head = [regs.rcx, regs.r11];
        let words = head.iter().chain(extra).chain(&tail).copied();
        let mut len = 0;
        for (slot, value) in frame.iter_mut().zip(words) {
            *slot = value;
            len += 1;
        }
        let frame = frame.get(..len).unwrap_or_default();
        // The frame ends 16-byte aligned, as the hardware's would.
        let sp = (stack & !15).wrapping_sub(frame.as_bytes().len() as u64);
        // The kernel's stack is mapped in the kernel's address space.
        self.switch_mode(true);
        if self.guest().write_bytes(sp, frame.as_bytes()).is_err() {
            return self.kill(format_args!(
                "cannot push a frame for the guest's handler: its stack {sp:#x} is not writable (the stack has \
                 overflowed, or the stack pointer is wrong);"
            ));
        }
        if callback.mask_events
            && let Err(e) = self.upcall().set_mask(&self.domain.memory, true)
        {
            return self.kill(e);
        }
        let regs = &mut self.vcpu.regs;
        regs.selectors.flatten();
        regs.rsp = sp;
        regs.rip = callback.address;
        regs.rflags &= !CLEARED_ON_ENTRY;
    }

    /// RFLAGS as the guest is to see them in a frame.
    fn guest_flags(&self, masked: bool) -> u64 {
        let mut flags = self.vcpu.regs.rflags & !(IF | IOPL);
        if !masked {
            flags |= IF;
        }
        if self.domain.assisted(VMASST_TYPE_ARCHITECTURAL_IOPL) {
            flags |= u64::from(self.vcpu.io.level) << IOPL_SHIFT;
        }
        flags
    }

    /// Changes between the guest's kernel and its user program: address spaces and GS bases are swapped.
    ///
    /// The caller refuses user mode without tables for it; here that changes nothing.
    pub(super) fn switch_mode(&mut self, kernel: bool) {
        let root = if kernel { Some(self.vcpu.tables.kernel_root()) } else { self.vcpu.tables.user_root() };
        let Some(root) = root.filter(|_| self.vcpu.kernel_mode != kernel) else { return };
        self.vcpu.kernel_mode = kernel;
        self.vcpu.space.set_root(root);
        self.vcpu.space.set_user_mode(!kernel);
        std::mem::swap(&mut self.vcpu.regs.gs_base, &mut self.vcpu.other_gs_base);
    }
}

/// Vectors of exceptions that are reported before their instruction, not after it (SDM vol. 3, table 6-1). Of #DB
/// it is the single step that comes here.
const fn is_fault(vector: u8) -> bool {
    !matches!(vector, 1..=4 | 8 | 18)
}

/// Vectors with an error code (SDM vol. 3, table 6-1).
const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The mnemonic and name of an exception (SDM vol. 3, table 6-1).
pub fn vector_name(vector: u8) -> &'static str {
    match vector {
        0 => "#DE, divide error",
        1 => "#DB, debug exception",
        2 => "NMI",
        3 => "#BP, breakpoint",
        4 => "#OF, overflow",
        5 => "#BR, bound range exceeded",
        6 => "#UD, invalid opcode",
        7 => "#NM, no math device",
        8 => "#DF, double fault",
        10 => "#TS, invalid TSS",
        11 => "#NP, segment not present",
        12 => "#SS, stack fault",
        13 => "#GP, general protection",
        14 => "#PF, page fault",
        16 => "#MF, x87 error",
        17 => "#AC, alignment check",
        18 => "#MC, machine check",
        19 => "#XM, SIMD error",
        _ => "an exception",
    }
}
