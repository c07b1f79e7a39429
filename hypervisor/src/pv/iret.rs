//! Leaving the guest's handlers: the `iret` hypercall, and the #GP where it leads to a context that cannot be.
//!
//! That #GP is the new context's, as on Xen 4.17: its frame says where the guest wanted to go. The failsafe callback is
//! for data segments that cannot be loaded, and a 64-bit guest's are never.
//! The frame is in public/arch-x86/xen-x86_64.h (`struct iret_context`).

use paravane_abi::addr;
use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};
use paravane_abi::trap::{IretContext, TRAP_GP_FAULT, VGCF_IN_SYSCALL};
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::context::PvContext;
use super::entry::RPL;
use super::guest_pointer::GuestPtr;
use crate::x86::exception::Fault;
use crate::x86::registers::Selectors;
use crate::x86::rflags::{IF, IOPL, IOPL_SHIFT, VM};

impl PvContext<'_> {
    /// The `iret` hypercall: takes its frame off the guest's stack and continues where it says.
    pub fn iret(&mut self) {
        let sp = self.vcpu.regs.rsp;
        let Ok(frame) = self.guest().read::<IretContext>(GuestPtr::new(sp)) else {
            return self.kill(format_args!("iret with an unreadable frame at {sp:#x}"));
        };
        // A kernel's own frames carry its selector with the privilege level cleared (see `enter_handler`).
        let to_user = frame.cs & RPL == RPL;
        if to_user && self.vcpu.tables.user_root().is_none() {
            return self.kill("iret to user mode, for which the guest has set no page tables,");
        }
        if to_user {
            self.switch_mode(false);
        }
        self.load(&frame);
        if let Err(e) = self.upcall().set_mask(&self.domain.memory, frame.rflags & IF == 0) {
            return self.kill(e);
        }
        self.vcpu.nmi.masked = false;
        if let Err(error_code) = self.check_context() {
            self.deliver_fault(Fault { vector: TRAP_GP_FAULT, error_code, address: 0 });
        } else if to_user {
            let Selectors { cs, ss, .. } = self.vcpu.regs.selectors;
            self.vcpu.user_selectors = (cs, ss);
        }
    }

    /// Loads the registers of a frame.
    fn load(&mut self, frame: &IretContext) {
        if self.domain.assisted(VMASST_TYPE_ARCHITECTURAL_IOPL) {
            self.vcpu.io.level = (frame.rflags >> IOPL_SHIFT & 3) as u8;
        }
        let regs = &mut self.vcpu.regs;
        regs.rax = frame.rax;
        regs.rip = frame.rip;
        regs.rflags = frame.rflags & !(IOPL | VM) | IF;
        regs.rsp = frame.rsp;
        if frame.flags & VGCF_IN_SYSCALL == 0 {
            regs.r11 = frame.r11;
            regs.rcx = frame.rcx;
            (regs.selectors.cs, regs.selectors.ss) = (selector(frame.cs), selector(frame.ss));
        } else {
            // What SYSRET does.
            regs.r11 = frame.rflags;
            regs.rcx = frame.rip;
            regs.selectors.flatten();
        }
    }

    /// Whether a processor could go on with what was loaded; the error code of its #GP if not (SDM vol. 2, IRET).
    fn check_context(&self) -> Result<(), u32> {
        let Selectors { cs, ss, .. } = self.vcpu.regs.selectors;
        let flat = cs == FLAT_USER_CS && ss == FLAT_USER_SS;
        let selector = |selector: u16| u32::from(selector) & !(RPL as u32);
        if !flat && !self.is_code_64(cs) {
            Err(selector(cs))
        } else if !flat && !self.is_stack(ss) {
            Err(selector(ss))
        } else if !addr::is_canonical(self.vcpu.regs.rip) {
            Err(0)
        } else {
            Ok(())
        }
    }
}

/// The selector in a frame's word; the hypervisor uses the rest of the word, or it is padding.
///
/// A guest runs with privilege level 3, whichever it names.
fn selector(word: u64) -> u16 {
    (word & 0xffff | RPL) as u16
}
