//! Paravirtualization: what the exits of a kernel mean that asks by hypercalls. The calls are in [`crate::pv`].

use paravane_abi::hypercall::IRET;
use paravane_abi::trap::{TRAP_GP_FAULT, TRAP_INVALID_OP};
use paravane_abi::virq::VIRQ_TIMER;

use super::{Domain, EngineNeed, Technique, on_any_host};
use crate::engine::Exit;
use crate::image::GuestKind;
use crate::ledger::{Cause, Ledger};
use crate::machine::end::DomainEnd;
use crate::machine::layout::OwnCode;
use crate::machine::time::Clock;
use crate::monitor::{Context, Handled, Next, Runner};
use crate::pv::context::PvContext;
use crate::pv::domain::PvDomain;
use crate::pv::fixup::ExceptionOutcome;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::hypercall;
use crate::pv::vcpu::{PvVcpu, RunState};
use crate::virtio::Slot;
use crate::x86::decode::SYSCALL_LENGTH;
use crate::x86::exception::Fault;

mod make;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "pv",
    about: "paravirtual: the kernel asks, by hypercalls",
    runs: GuestKind::Pv,
    engine: EngineNeed::Deprivileged,
    max_vcpus: 1,
    available: on_any_host,
    shadow_frames: |_| 0,
    own_code: OwnCode::NONE,
    own_frames: make::own_frames,
    device_parameters: |_| None,
    make: make::make,
};

/// A paravirtual guest: its domain, and its one vCPU.
pub struct PvGuest {
    /// What its vCPUs share.
    pub domain: PvDomain,
    /// The vCPU.
    pub vcpu: PvVcpu,
}

impl PvGuest {
    fn cx(&mut self) -> PvContext<'_> {
        PvContext { domain: &mut self.domain, vcpu: &mut self.vcpu }
    }
}

impl Domain for PvGuest {
    fn runner(&mut self) -> &mut dyn Runner {
        self
    }

    fn clock(&self) -> Clock {
        self.domain.clock
    }

    fn end(&self) -> DomainEnd {
        self.domain.end.clone().unwrap_or(DomainEnd::Interrupted)
    }

    fn slots(&self) -> Vec<&Slot> {
        self.domain.virtio.iter().map(|device| &device.slot).collect()
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        self.domain.ledger
    }
}

impl Runner for PvGuest {
    fn context(&mut self) -> Context<'_> {
        let Self { domain, vcpu } = self;
        Context { regs: &mut vcpu.regs, space: &mut vcpu.space, log: &domain.log, memory: &domain.memory }
    }

    /// All calls leave from the same page: where it was called from is on the stack, unless it was jumped to (`iret`).
    fn place(&mut self, exit: Exit) -> u64 {
        let cx = self.cx();
        let regs = &cx.vcpu.regs;
        if exit != Exit::Hypercall || regs.rax == IRET {
            return regs.rip;
        }
        cx.guest().read(GuestPtr::new(regs.rsp)).unwrap_or(regs.rip)
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        match exit {
            Exit::Hypercall if self.vcpu.kernel_mode => {
                let length = self.domain.facts.call_length;
                hypercall(self.cx(), length)
            }
            // No engine lets a user program do this.
            Exit::Hypercall => refused(&mut self.cx()),
            Exit::Syscall if self.vcpu.kernel_mode => hypercall(self.cx(), SYSCALL_LENGTH),
            Exit::Syscall => user_syscall(&mut self.cx()),
            Exit::Fault(fault) => {
                let ExceptionOutcome { cause, mark } = crate::pv::fixup::handle(&mut self.cx(), fault);
                Handled { cause, mark }
            }
            Exit::Kick => Cause::Kick.into(),
            Exit::Port { .. }
            | Exit::Mmio { .. }
            | Exit::Halt
            | Exit::Window
            | Exit::Priority
            | Exit::Shutdown => {
                self.cx().kill(Exit::NOT_AT_CPL_3);
                Cause::Dead.into()
            }
            Exit::Dead(why) => {
                self.cx().kill(why);
                Cause::Dead.into()
            }
        }
    }

    fn prepare(&mut self) -> Next {
        let mut cx = self.cx();
        if cx.domain.end.is_some() {
            return Next::End;
        }
        if next_deadline(&cx).is_some_and(|t| t <= cx.domain.clock.now()) {
            expire_timers(&mut cx);
        }
        // Before the checks below: an event after them must find a vCPU that waits.
        cx.domain.virtio.set_waiting(cx.vcpu.state != RunState::Running);
        match cx.vcpu.state {
            RunState::Running => {}
            RunState::Blocked if cx.upcall_due() || cx.vcpu.nmi.pending => cx.run_again(),
            RunState::Polling if poll_is_over(&cx) => {
                cx.vcpu.timers.set_poll(None);
                cx.run_again();
            }
            RunState::Blocked | RunState::Polling => return Next::Wait(next_deadline(&cx)),
        }
        cx.domain.virtio.set_waiting(false);
        cx.check_rip();
        cx.deliver_nmi();
        cx.deliver_upcall();
        if cx.domain.end.is_some() { Next::End } else { Next::Run(next_deadline(&cx)) }
    }

    fn about_to_run(&mut self, now: u64) {
        if let Err(error) = self.domain.follow_wall_clock(now) {
            self.cx().kill(error);
        }
    }

    fn woken(&mut self) {
        if !self.domain.console.input.is_empty() {
            hypercall::service_console(&mut self.cx());
        }
        hypercall::service_devices(&mut self.cx());
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.domain.ledger
    }
}

/// The number, as the ledger counts it: what is beyond its table is counted as the last.
fn ledger_number(rax: u64) -> u8 {
    u8::try_from(rax).map_or(63, |n| n.min(63))
}

fn hypercall(cx: PvContext<'_>, entered_by: u64) -> Handled {
    let cause = Cause::Hypercall(ledger_number(cx.vcpu.regs.rax));
    // On Xen every call is a SYSCALL.
    cx.vcpu.regs.selectors.flatten();
    hypercall::perform(cx, entered_by);
    cause.into()
}

/// When a timer or a watchdog is next due.
fn next_deadline(cx: &PvContext<'_>) -> Option<u64> {
    [cx.vcpu.timers.next(), cx.domain.watchdogs.next()].into_iter().flatten().min()
}

fn expire_timers(cx: &mut PvContext<'_>) {
    let now = cx.domain.clock.now();
    let due = cx.vcpu.timers.expire(now);
    if cx.domain.watchdogs.have_expired(now) {
        cx.domain.end.get_or_insert(DomainEnd::Watchdog);
    }
    if due.timer
        && let Some(port) = cx.domain.events.virq_port(VIRQ_TIMER)
        && let Err(e) = cx.domain.raise(port)
    {
        cx.kill(e);
    }
    if due.poll && cx.vcpu.state == RunState::Polling {
        cx.run_again();
    }
}

/// Whether a poll is over: a port is pending, or an upcall or an NMI could be delivered.
fn poll_is_over(cx: &PvContext<'_>) -> bool {
    let pending = |&port: &u32| cx.domain.is_pending(port) == Ok(true);
    cx.upcall_due() || cx.vcpu.nmi.pending || cx.vcpu.polled.ports().iter().any(pending)
}

/// A SYSCALL of a user program: entered in the kernel's handler; without one, an undefined instruction.
fn user_syscall(cx: &mut PvContext<'_>) -> Handled {
    let callback = cx.vcpu.syscall;
    if callback.address == 0 {
        cx.vcpu.regs.rip = cx.vcpu.regs.rip.wrapping_sub(SYSCALL_LENGTH);
        cx.deliver_fault(Fault { vector: TRAP_INVALID_OP, error_code: 0, address: 0 });
    } else {
        // SYSCALL forgets the selectors; Xen makes them flat.
        cx.vcpu.regs.selectors.flatten();
        cx.enter_handler(callback, &[]);
    }
    Cause::Syscall.into()
}

fn refused(cx: &mut PvContext<'_>) -> Handled {
    cx.deliver_fault(Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 });
    Cause::GuestFault { vector: TRAP_GP_FAULT }.into()
}

#[cfg(test)]
mod tests;
