//! Half-way through a fast path: what a virtual CPU that stopped there was about to do.
//!
//! The layers above know a call, a return, and nothing in between. Wherever a kick, a fault or an exit of the ways
//! finds one, it is taken back to its beginning, or, once the program's root is loaded for its return, it is completed.
//! One rule for each register says up to which instruction the processor has it, and from which on the shared page.
//!
//! What may not be done here: believing the shared page in what matters to anybody but the guest.

use super::text::{self, gate, own, ways};
use super::{FastPaths, GATE_OFFSET, State, WAYS_VA};
use crate::engine::kvm::gate::OUT_LEN;
use crate::engine::kvm::tables::{GateTables, TEXT_VA};
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};
use crate::x86::registers::Regs;

/// Where the virtual CPU stopped.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// At CPL 0.
    pub in_gate: bool,
    /// The root of user programs is loaded; or, while there are no fast paths, a program was entered.
    pub user_view: bool,
}

/// What it was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// A SYSCALL, which has changed nothing but rcx and r11.
    Syscall {
        /// In the kernel.
        by_kernel: bool,
    },
    /// The hypercall `iret`, whose frame is at rsp.
    Iret,
    /// To go on in the program: the registers are the program's.
    Forward,
    /// To report an exception, which it must.
    Coming,
}

impl FastPaths {
    /// Whether that may be half-way.
    pub fn is_halfway(&self, rip: u64, in_gate: bool) -> bool {
        in_ways(rip).is_some() || in_gate && in_fast_gate(rip).is_some()
    }

    /// What it was about to do that was kicked at `regs.rip`; `None`: nothing that concerns fast paths.
    pub fn undo_kick(
        &self,
        left: Left,
        regs: &mut Regs,
        gate: &GateTables,
        memory: &MachineMemory,
    ) -> Result<Option<Undone>, BadMachineAddress> {
        let state = self.state(memory)?;
        if let Some(at) = in_fast_gate(regs.rip).filter(|_| left.in_gate) {
            return self.undo_gate((at, left.user_view), regs, &state, gate, memory).map(Some);
        }
        let Some(at) = in_ways(regs.rip) else { return Ok(None) };
        if (at == ways::leap() || at == ways::return_()) && (left.user_view || !self.armed()) {
            regs.rip = regs.rcx;
            return Ok(Some(Undone::Forward));
        }
        Ok(self.undo_ways((at, left.user_view), regs, &state))
    }

    /// The same for an `OUT`, which `regs.rip` is behind.
    pub fn undo_out(
        &self,
        left: Left,
        regs: &mut Regs,
        tables: &GateTables,
        memory: &MachineMemory,
    ) -> Result<Option<Undone>, BadMachineAddress> {
        let rip = regs.rip.wrapping_sub(OUT_LEN);
        if let Some(at) = in_fast_gate(rip).filter(|_| left.in_gate) {
            let state = self.state(memory)?;
            return self.undo_gate((at, left.user_view), regs, &state, tables, memory).map(Some);
        }
        match in_ways(rip) {
            Some(at) => Ok(self.undo_ways((at, left.user_view), regs, &self.state(memory)?)),
            None => Ok(None),
        }
    }

    /// The same for a fault.
    pub fn undo_fault(
        &self,
        left: Left,
        regs: &mut Regs,
        memory: &MachineMemory,
    ) -> Result<Option<Undone>, BadMachineAddress> {
        match in_ways(regs.rip) {
            Some(at) if self.armed() && !left.user_view && at >= ways::entry() => {
                Ok(self.undo_ways((at, false), regs, &self.state(memory)?))
            }
            _ => Ok(None),
        }
    }

    /// At CPL 3 in the ways.
    fn undo_ways(&self, (at, user_view): (u64, bool), regs: &mut Regs, state: &State) -> Option<Undone> {
        if at < ways::entry() || at == ways::entry() && user_view {
            return Some(self.called(regs, !user_view));
        }
        if user_view {
            return None;
        }
        if (ways::iret()..=ways::leap()).contains(&at) || at == ways::slow_iret() {
            let begins = at < ways::iret_frame() || at == ways::slow_iret();
            return (self.armed() || begins).then(|| {
                if !begins {
                    regs.rsp = state.frame;
                    if at >= ways::iret_gs() {
                        regs.gs_base = state.kernel_gs;
                    }
                }
                returns(regs)
            });
        }
        if !self.armed() || at >= ways::end() {
            return None;
        }
        if at == ways::kernel_call() || at < ways::entry_rsp() && state.in_user == 0 {
            return Some(self.called(regs, true));
        }
        let is_masked_call = at == ways::masked_call();
        if at >= ways::entry_end() && !is_masked_call {
            return None;
        }
        if at >= ways::entry_rsp() {
            regs.rsp = state.user_rsp;
        }
        if at >= ways::entry_rax() {
            regs.rax = state.user_rax;
        }
        if at >= ways::entry_gs() && !is_masked_call {
            regs.gs_base = state.user_gs;
        }
        Some(self.called(regs, false))
    }

    /// At CPL 0.
    fn undo_gate(
        &self,
        (at, user_view): (u64, bool),
        regs: &mut Regs,
        state: &State,
        tables: &GateTables,
        memory: &MachineMemory,
    ) -> Result<Undone, BadMachineAddress> {
        // The root may have been changed already: the ways' own word says who called.
        let by_kernel = if self.armed() { state.in_user == 0 } else { !user_view };
        if text::raised().contains(&at) {
            if (gate::raised_saved()..gate::raised_out()).contains(&at) {
                regs.rax = self.own(memory, own::RAX)?;
                regs.rsp = self.own(memory, own::RSP)?;
            }
            return Ok(self.called(regs, by_kernel));
        }
        let top = tables.stack_top().0;
        // rax, if it is saved, and what INT3 pushed: rip, cs, rflags, rsp, ss.
        let [rax, rip, _, rflags, rsp, _] = memory.read_obj::<[u64; 6]>(Maddr(top - 48))?;
        let calls = rip == WAYS_VA + ways::entry();
        let leaps = rip == WAYS_VA + ways::leap();
        if !calls && !leaps {
            return Ok(Undone::Coming);
        }
        if (gate::breakpoint_saved()..gate::breakpoint_restored()).contains(&at) {
            regs.rax = rax;
        }
        (regs.rsp, regs.rflags) = (rsp, rflags);
        if calls {
            return Ok(self.called(regs, by_kernel));
        }
        if user_view || !self.armed() {
            regs.rip = regs.rcx;
            return Ok(Undone::Forward);
        }
        (regs.rsp, regs.gs_base) = (state.frame, state.kernel_gs);
        Ok(returns(regs))
    }

    /// A SYSCALL, as the host is told of it.
    fn called(&self, regs: &mut Regs, by_kernel: bool) -> Undone {
        (regs.rip, regs.rflags) = (regs.rcx, regs.r11);
        regs.selectors.flatten();
        Undone::Syscall { by_kernel }
    }

    /// Whether a call that was taken back at this address may have masked upcalls.
    pub fn may_have_masked(&self, rip: u64) -> bool {
        let masked = ways::entry_masked()..ways::entry_end();
        self.armed() && in_ways(rip).is_some_and(|at| masked.contains(&at))
    }
}

/// An `iret`, as the host is told of it: the rest of the registers is in the frame.
fn returns(regs: &mut Regs) -> Undone {
    regs.rax = paravane_abi::hypercall::IRET;
    Undone::Iret
}

fn in_ways(rip: u64) -> Option<u64> {
    let at = rip.wrapping_sub(WAYS_VA);
    (at < ways::end()).then_some(at)
}

fn in_fast_gate(rip: u64) -> Option<u64> {
    let at = rip.wrapping_sub(TEXT_VA + GATE_OFFSET);
    (at < gate::end()).then_some(at)
}
