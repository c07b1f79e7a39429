//! A virtual CPU with fast paths, where it stops: the mode that it was left in, and what it was half-way through.
//!
//! Runs on the vCPU's thread, on the way out of the guest: see `cpu`.

use kvm_bindings::kvm_vcpu_events;
use kvm_ioctls::SyncReg;

use super::{FastPaths, Left, Undone};
use crate::engine::kvm::context::from_kvm;
use crate::engine::kvm::cpu::{KvmCpu, LOST, Stop};
use crate::engine::{Exit, canonical};
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};
use crate::mmu::crossing::Crossed;
use crate::mmu::space::VcpuSpace;
use crate::x86::registers::Regs;

impl KvmCpu {
    /// Whether a user program was left: what CR3 says, where the mode may have changed.
    pub(in crate::engine::kvm) fn is_in_user(&mut self, space: &VcpuSpace) -> bool {
        match self.fast.as_ref().filter(|fast| fast.armed()).map(FastPaths::user_root) {
            Some(root) => self.vcpu.sync_regs().sregs.cr3 == root.maddr().0,
            None => space.user_mode(),
        }
    }

    /// Whether it was interrupted where the fast paths are.
    pub(in crate::engine::kvm) fn may_be_halfway(&mut self) -> bool {
        let shared = self.vcpu.sync_regs();
        let (rip, in_gate) = (shared.regs.rip, shared.sregs.cs.dpl == 0);
        self.fast.as_ref().is_some_and(|fast| fast.is_halfway(rip, in_gate))
    }

    /// Runs until the guest stops, elsewhere than half-way through a fast path; or what the exit is if it was there,
    /// and has been taken back or completed.
    pub(in crate::engine::kvm) fn run_to_a_stop(
        &mut self,
        regs: &mut Regs,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Result<Stop, Exit> {
        loop {
            let stop = self.run();
            let user_view = self.is_in_user(space);
            self.note_mode(user_view, memory)?;
            if !matches!(stop, Stop::Halfway) {
                return Ok(stop);
            }
            if let Some(exit) = self.undo_kick(regs, user_view, space, memory)? {
                self.to_apply = false;
                return Err(exit);
            }
            if !self.exit_is_coming() {
                return Ok(Stop::Interrupted);
            }
            self.kick_owed = true;
        }
    }

    /// What was kicked half-way; `None`: nothing, or something that must go on until it reaches us.
    fn undo_kick(
        &mut self,
        regs: &mut Regs,
        user_view: bool,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Result<Option<Exit>, Exit> {
        let shared = self.vcpu.sync_regs();
        let left = Left { in_gate: shared.sregs.cs.dpl == 0, user_view };
        let (mut found, before) = (*regs, shared.regs.rip);
        from_kvm(&shared.regs, &shared.sregs, self.features.gdt, &mut found);
        let Some(fast) = &self.fast else { return Ok(None) };
        let undone = fast.undo_kick(left, &mut found, &self.gate, memory).map_err(|_| Exit::Dead(LOST))?;
        let Some(undone) = undone.filter(|undone| *undone != Undone::Coming) else { return Ok(None) };
        *regs = found;
        // An exception that was about to be delivered there is taken back as well.
        self.vcpu.sync_regs_mut().events.exception = kvm_vcpu_events::default().exception;
        self.vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        let exit = self.undone(undone, before, space, memory)?;
        self.kick_owed = exit != Exit::Kick;
        Ok(Some(exit))
    }

    /// What an `OUT` in the fast paths meant.
    pub(in crate::engine::kvm) fn undo_out(
        &mut self,
        regs: &mut Regs,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Option<Exit> {
        let user_view = self.is_in_user(space);
        let in_gate = self.vcpu.sync_regs().sregs.cs.dpl == 0;
        let before = regs.rip;
        let undone = self.fast.as_ref()?.undo_out(Left { in_gate, user_view }, regs, &self.gate, memory);
        self.exit_if_undone(undone, before, space, memory)
    }

    /// What a fault in the fast paths meant; `None`: a fault.
    pub(in crate::engine::kvm) fn undo_fault(
        &mut self,
        regs: &mut Regs,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Option<Exit> {
        let user_view = self.is_in_user(space);
        let before = regs.rip;
        let undone = self.fast.as_ref()?.undo_fault(Left { in_gate: false, user_view }, regs, memory);
        self.exit_if_undone(undone, before, space, memory)
    }

    /// Makes an exit of what was found at `rip`, if anything of the fast paths was.
    fn exit_if_undone(
        &mut self,
        found: Result<Option<Undone>, BadMachineAddress>,
        rip: u64,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Option<Exit> {
        match found {
            Ok(undone) => Some(self.undone(undone?, rip, space, memory).unwrap_or_else(|dead| dead)),
            Err(_) => Some(Exit::Dead(LOST)),
        }
    }

    /// Makes an exit of what was found at `rip`.
    fn undone(
        &mut self,
        undone: Undone,
        rip: u64,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Result<Exit, Exit> {
        let user = match undone {
            Undone::Syscall { by_kernel } => !by_kernel,
            Undone::Iret => false,
            Undone::Forward => return Ok(Exit::Kick),
            Undone::Coming => return Err(Exit::Dead("the fast paths' gate left where nothing does")),
        };
        self.note_mode(user, memory)?;
        let masks =
            space.crossing().filter(|_| self.fast.as_ref().is_some_and(|fast| fast.may_have_masked(rip)));
        if let Some(crossing) = masks {
            // They were not masked when the call began.
            let mask = Maddr(crossing.vcpu_info.0 + 1);
            memory.write_obj(mask, &0u8).map_err(|_| Exit::Dead(LOST))?;
        }
        Ok(if undone == Undone::Iret { Exit::Hypercall } else { Exit::Syscall })
    }

    /// Notes in which mode a virtual CPU was left that has fast paths now.
    fn note_mode(&mut self, user: bool, memory: &MachineMemory) -> Result<(), Exit> {
        let Some(fast) = self.fast.as_ref().filter(|fast| fast.armed()) else { return Ok(()) };
        let state = fast.state(memory).map_err(|_| Exit::Dead(LOST))?;
        let other = if user { state.kernel_gs } else { state.user_gs };
        let other_gs_base = canonical(other);
        self.crossed = Some(Crossed { user, other_gs_base, crossings: state.crossings });
        Ok(())
    }

    /// The selectors of the mode that was left, where the layers above keep them.
    pub(in crate::engine::kvm) fn note_selectors(&self, exit: Exit, regs: &mut Regs, space: &VcpuSpace) {
        let (Some(crossed), Some(crossing)) = (self.crossed, space.crossing()) else { return };
        if self.features.gdt.is_guests() || crossed.crossings == 0 {
            return;
        }
        if crossed.user && exit != Exit::Syscall {
            (regs.selectors.cs, regs.selectors.ss) = crossing.user_selectors;
        } else {
            regs.selectors.flatten();
        }
    }
}
