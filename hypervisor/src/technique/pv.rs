//! What the exits of a paravirtual guest mean.

use paravane_abi::trap::{TRAP_GP_FAULT, TRAP_INVALID_OP};
use paravane_abi::virq::VIRQ_TIMER;

use crate::engine::Exit;
use crate::ledger::{Cause, Ledger};
use crate::machine::end::DomainEnd;
use crate::machine::memory::MachineMemory;
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::monitor::vcpu_loop::{Guest, Handled, Next};
use crate::pv::domain::PvDomain;
use crate::pv::fixup::ExceptionOutcome;
use crate::pv::hypercall;
use crate::pv::vcpu::RunState;
use crate::virtio::Slot;
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;

/// Bytes of the SYSCALL instruction.
const SYSCALL_LENGTH: u64 = 2;

impl Guest for PvDomain {
    fn context(&mut self) -> (&mut Regs, &mut VcpuSpace, &TableLog, &MachineMemory) {
        (&mut self.vcpu.regs, &mut self.space, &self.log, &self.memory)
    }

    fn handle(&mut self, exit: Exit) -> Handled {
        match exit {
            Exit::Hypercall if self.vcpu.kernel_mode => hypercall(self, self.facts.call_length),
            // No engine lets a user program do this.
            Exit::Hypercall => self.refused(),
            Exit::Syscall if self.vcpu.kernel_mode => hypercall(self, SYSCALL_LENGTH),
            Exit::Syscall => self.user_syscall(),
            Exit::Fault(fault) => {
                let ExceptionOutcome { cause, mark } = crate::pv::fixup::handle(self, fault);
                Handled { cause, mark }
            }
            Exit::Kick => Cause::Kick.into(),
            Exit::Port { .. } | Exit::Mmio { .. } | Exit::Halt => {
                self.kill(Exit::NOT_AT_CPL_3);
                Cause::Dead.into()
            }
            Exit::Dead(why) => {
                self.kill(why);
                Cause::Dead.into()
            }
        }
    }

    fn prepare(&mut self) -> Next {
        if self.end.is_some() {
            return Next::End;
        }
        let next = self.timers.next();
        if next.is_some_and(|t| t <= self.clock.now()) {
            self.expire_timers();
        }
        // Before the checks below: an event after them must find a vCPU that waits.
        self.virtio.set_waiting(self.vcpu.state != RunState::Running);
        match self.vcpu.state {
            RunState::Running => {}
            RunState::Blocked if self.upcall_due() || self.vcpu.nmi.pending => self.run_again(),
            RunState::Polling if self.poll_is_over() => {
                self.timers.set_poll(None);
                self.run_again();
            }
            RunState::Blocked | RunState::Polling => return Next::Wait(self.timers.next()),
        }
        self.virtio.set_waiting(false);
        self.check_rip();
        self.deliver_nmi();
        self.deliver_upcall();
        if self.end.is_some() { Next::End } else { Next::Run(self.timers.next()) }
    }

    fn about_to_run(&mut self, now: u64) {
        if let Err(error) = self.follow_wall_clock(now) {
            self.kill(error);
        }
    }

    fn woken(&mut self) {
        if !self.console.input.is_empty() {
            hypercall::service_console(self);
        }
        hypercall::service_devices(self);
    }

    fn interrupt(&mut self) {
        self.end.get_or_insert(DomainEnd::Interrupted);
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    fn into_ledger(self: Box<Self>) -> Ledger {
        self.ledger
    }

    fn end(&self) -> DomainEnd {
        self.end.clone().unwrap_or(DomainEnd::Interrupted)
    }

    fn slots(&self) -> Vec<&Slot> {
        self.virtio.iter().map(|device| &device.slot).collect()
    }
}

/// The number, as the ledger counts it: what is beyond its table is counted as the last.
fn ledger_number(rax: u64) -> u8 {
    u8::try_from(rax).map_or(63, |n| n.min(63))
}

fn hypercall(d: &mut PvDomain, entered_by: u64) -> Handled {
    let cause = Cause::Hypercall(ledger_number(d.vcpu.regs.rax));
    // On Xen every call is a SYSCALL.
    d.vcpu.regs.selectors.flatten();
    hypercall::perform(d, entered_by);
    cause.into()
}

impl PvDomain {
    fn expire_timers(&mut self) {
        let due = self.timers.expire(self.clock.now());
        if due.watchdog {
            self.end.get_or_insert(DomainEnd::Watchdog);
        }
        if due.timer
            && let Some(port) = self.events.virq_port(VIRQ_TIMER)
            && let Err(e) = self.upcall.raise(&self.memory, port)
        {
            self.kill(e);
        }
        if due.poll && self.vcpu.state == RunState::Polling {
            self.run_again();
        }
    }

    /// Whether a poll is over: a port is pending, or an upcall or an NMI could be delivered.
    fn poll_is_over(&self) -> bool {
        let pending = |&port: &u32| self.upcall.is_pending(&self.memory, port) == Ok(true);
        self.upcall_due() || self.vcpu.nmi.pending || self.vcpu.polled.ports().iter().any(pending)
    }

    /// A SYSCALL of a user program: the kernel's to handle, else as if there were no such instruction.
    fn user_syscall(&mut self) -> Handled {
        let callback = self.vcpu.syscall;
        if callback.address == 0 {
            self.vcpu.regs.rip = self.vcpu.regs.rip.wrapping_sub(SYSCALL_LENGTH);
            self.deliver_fault(Fault { vector: TRAP_INVALID_OP, error_code: 0, address: 0 });
        } else {
            // SYSCALL forgets the selectors; Xen makes them flat.
            self.vcpu.regs.selectors.flatten();
            self.enter_handler(callback, &[]);
        }
        Cause::Syscall.into()
    }

    fn refused(&mut self) -> Handled {
        self.deliver_fault(Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 });
        Cause::GuestFault { vector: TRAP_GP_FAULT }.into()
    }
}

#[cfg(test)]
mod tests;
