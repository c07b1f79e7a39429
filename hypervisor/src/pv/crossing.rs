//! User programs and their kernel, where the engine lets the one reach the other without an exit.
//!
//! Says when that may be and between what; afterwards takes over the mode that the vCPU was left in. What a call and a
//! return are is in [`super::entry`] and [`super::iret`]: an engine does the same or leaves it to them.

use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::context::PvContext;
use super::event::upcall::NOWHERE;
use super::vcpu::PvVcpu;
use crate::mmu::crossing::{Crossed, Crossing};

impl PvContext<'_> {
    /// Tells the engine between which modes the vCPU may change by itself.
    pub fn allow_crossing(&mut self) {
        // A guest without programs does not pay for more than this look.
        let crossing = if self.vcpu.tables.user_root().is_some() { self.crossing() } else { None };
        self.vcpu.space.set_crossing(crossing);
    }

    fn crossing(&self) -> Option<Crossing> {
        let vcpu = &*self.vcpu;
        let kernel_root = vcpu.tables.kernel_root();
        let user_root = vcpu.tables.user_root().filter(|root| *root != kernel_root)?;
        let vcpu_info = Some(self.upcall().vcpu_info).filter(|info| *info != NOWHERE)?;
        // A frame would show the level, and a return set it; a return ends an NMI.
        let is_plain =
            !self.domain.assisted(VMASST_TYPE_ARCHITECTURAL_IOPL) && !vcpu.nmi.masked && !vcpu.nmi.pending;
        let (cs, ss) = vcpu.user_selectors;
        let is_loadable = self.is_code_64(cs) && self.is_stack(ss);
        (is_plain && vcpu.syscall.address != 0).then_some(Crossing {
            kernel_root,
            user_root,
            kernel_sp: vcpu.kernel_sp,
            entry: vcpu.syscall.address,
            masks_upcalls: vcpu.syscall.mask_events,
            vcpu_info,
            other_gs_base: vcpu.other_gs_base,
            user_selectors: if is_loadable { (cs, ss) } else { (FLAT_USER_CS, FLAT_USER_SS) },
        })
    }
}

impl PvVcpu {
    /// The engine has left the vCPU in this mode, with that mode's registers.
    pub fn crossed(&mut self, crossed: Crossed) {
        self.other_gs_base = crossed.other_gs_base;
        let kernel = !crossed.user;
        let root = if kernel { Some(self.tables.kernel_root()) } else { self.tables.user_root() };
        if let Some(root) = root.filter(|_| self.kernel_mode != kernel) {
            self.kernel_mode = kernel;
            self.space.set_root(root);
            self.space.set_user_mode(crossed.user);
        }
    }
}
