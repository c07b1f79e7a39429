//! sched_op: giving the CPU away, waiting, and ending (public/sched.h).

use paravane_abi::domid::DomId;
use paravane_abi::errno::Errno;
use paravane_abi::event::EvtchnPort;
use paravane_abi::sched::*;

use super::{Call, HypercallResult, done};
use crate::machine::end::DomainEnd;
use crate::machine::time::NS_PER_S;
use crate::pv::domain::DOMID;
use crate::pv::event::EventChannels;
use crate::pv::guest_pointer::{GuestPtr, GuestSlice};
use crate::pv::vcpu::{MAX_POLL_PORTS, RunState};

/// The domain that holds the host's services.
const DOMAIN_ZERO: DomId = 0;

/// sched_op(command, argument).
pub fn sched_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    match command.low32() {
        SCHEDOP_YIELD => {
            // Some guests yield until the console's output is taken.
            super::service_console(&mut call.context());
            call.vcpu.yields = true;
            done(0)
        }
        SCHEDOP_BLOCK => {
            call.upcall().set_mask(&call.domain.memory, false).map_err(|_| Errno::EFAULT)?;
            if !call.context().upcall_due() {
                call.context().wait_as(RunState::Blocked);
            }
            done(0)
        }
        SCHEDOP_SHUTDOWN => {
            let op: SchedShutdown = call.guest().read(argument.pointer())?;
            end(call, op.reason)
        }
        SCHEDOP_SHUTDOWN_CODE => {
            let op: SchedShutdown = call.guest().read(argument.pointer())?;
            call.domain.shutdown_code.get_or_insert(op.reason);
            done(0)
        }
        SCHEDOP_POLL => poll(call, argument.pointer()),
        SCHEDOP_WATCHDOG => watchdog(call, argument.pointer()),
        SCHEDOP_REMOTE_SHUTDOWN => {
            let op: SchedRemoteShutdown = call.guest().read(argument.pointer())?;
            let exists = op.domain_id == DOMAIN_ZERO || op.domain_id == DOMID;
            Err(if exists { Errno::EPERM } else { Errno::ESRCH })
        }
        SCHEDOP_PIN_OVERRIDE => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

/// sched_op_compat(command, value): the first form, whose shutdown has the reason in place of an address.
pub fn sched_op_compat(call: &mut Call<'_>) -> HypercallResult {
    let [command, value, ..] = call.args;
    match command.low32() {
        SCHEDOP_YIELD | SCHEDOP_BLOCK => sched_op(&mut call.with([command.word(), 0, 0, 0, 0, 0])),
        SCHEDOP_SHUTDOWN => end(call, value.low32()),
        _ => Err(Errno::ENOSYS),
    }
}

/// Ends the domain. Xen keeps eight bits of the reason, and one noted earlier counts instead.
fn end(call: &mut Call<'_>, reason: u32) -> HypercallResult {
    super::service_console(&mut call.context());
    let end = match call.domain.shutdown_code.unwrap_or(reason) & 0xff {
        SHUTDOWN_POWEROFF => DomainEnd::PowerOff,
        SHUTDOWN_REBOOT | SHUTDOWN_SOFT_RESET => DomainEnd::Reboot,
        SHUTDOWN_SUSPEND => DomainEnd::Suspend,
        SHUTDOWN_CRASH => DomainEnd::GuestCrash,
        SHUTDOWN_WATCHDOG => DomainEnd::Watchdog,
        unknown => {
            call.context().kill(format_args!("a shutdown for reason {unknown}, which does not exist,"));
            return done(0);
        }
    };
    call.domain.end.get_or_insert(end);
    done(0)
}

/// SCHEDOP_poll: waits until one of the ports is pending, whether masked or not, or the time is up.
fn poll(call: &mut Call<'_>, argument: GuestPtr<SchedPoll>) -> HypercallResult {
    let op = call.guest().read(argument)?;
    if usize::try_from(op.nr_ports).map_or(true, |n| n > MAX_POLL_PORTS) {
        return Err(Errno::EINVAL);
    }
    call.spend(op.nr_ports.into());
    call.vcpu.polled.clear();
    let ports = GuestSlice::<EvtchnPort>::new(op.ports, op.nr_ports.into());
    for n in 0..ports.count() {
        let port = call.guest().read(ports.at(n)?)?;
        if !EventChannels::is_number(port) {
            return Err(Errno::EINVAL);
        }
        call.vcpu.polled.push(port);
    }
    // Before the look: what becomes pending after it must find a vCPU that polls.
    let (id, polled) = (call.vcpu.id, call.vcpu.polled);
    call.domain.bells.poll(id, polled.ports());
    if polled.ports().iter().any(|port| call.domain.bells.is_pending(*port) != Ok(false))
        || call.context().upcall_due()
    {
        call.domain.bells.end_poll(id);
    } else {
        call.vcpu.timers.set_poll((op.timeout != 0).then_some(op.timeout));
        call.context().wait_as(RunState::Polling);
    }
    done(0)
}

/// SCHEDOP_watchdog: id 0 makes one and returns its id (1 or 2); an id with time-out 0 ends it.
fn watchdog(call: &mut Call<'_>, argument: GuestPtr<SchedWatchdog>) -> HypercallResult {
    let op = call.guest().read(argument)?;
    let deadline = call.domain.clock.now().saturating_add(u64::from(op.timeout).saturating_mul(NS_PER_S));
    let deadline = (op.timeout != 0).then_some(deadline);
    if op.id == 0 {
        if deadline.is_none() {
            return Err(Errno::EINVAL);
        }
        let index = call.domain.watchdogs.free().ok_or(Errno::ENOSPC)?;
        if let Some(slot) = call.domain.watchdogs.deadline(index) {
            *slot = deadline;
        }
        return done(index as u64 + 1);
    }
    let index = usize::try_from(op.id - 1).map_err(|_| Errno::EINVAL)?;
    let slot = call.domain.watchdogs.deadline(index).filter(|slot| slot.is_some()).ok_or(Errno::EINVAL)?;
    *slot = deadline;
    done(0)
}

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;

    use crate::pv::event::Binding;
    use crate::pv::hypercall::sched::*;
    use crate::testing::pv::{FREE, NOWHERE, TestDomain, va};

    fn shut_down(reason: u32) -> TestDomain {
        let mut t = TestDomain::new();
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_SHUTDOWN, SchedShutdown { reason }).map(|r| r.0), Ok(0));
        t
    }

    #[test]
    fn ends() {
        let ends = [
            (SHUTDOWN_POWEROFF, DomainEnd::PowerOff),
            (SHUTDOWN_REBOOT, DomainEnd::Reboot),
            (SHUTDOWN_SUSPEND, DomainEnd::Suspend),
            (SHUTDOWN_CRASH, DomainEnd::GuestCrash),
            (SHUTDOWN_WATCHDOG, DomainEnd::Watchdog),
            (SHUTDOWN_SOFT_RESET, DomainEnd::Reboot),
            (0x1_00 | SHUTDOWN_CRASH, DomainEnd::GuestCrash),
        ];
        for (reason, end) in ends {
            assert_eq!(shut_down(reason).end, Some(end.clone()));
            let mut t = TestDomain::new();
            assert_eq!(t.call(nr::SCHED_OP_COMPAT, [SCHEDOP_SHUTDOWN.into(), reason.into()]), Ok(0));
            assert_eq!(t.end, Some(end));
        }
        assert!(shut_down(99).death().unwrap().contains("reason 99"));
    }

    #[test]
    fn a_reason_noted_in_advance_counts() {
        let mut t = TestDomain::new();
        let crash = SchedShutdown { reason: SHUTDOWN_CRASH };
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_SHUTDOWN_CODE, crash).map(|r| r.0), Ok(0));
        assert_eq!(t.end, None);
        t.op(nr::SCHED_OP, SCHEDOP_SHUTDOWN, SchedShutdown { reason: SHUTDOWN_POWEROFF }).unwrap();
        assert_eq!(t.end, Some(DomainEnd::GuestCrash));
    }

    #[test]
    fn what_is_refused() {
        let mut t = TestDomain::new();
        for (domain_id, errno) in [(0, Errno::EPERM), (DOMID, Errno::EPERM), (5, Errno::ESRCH)] {
            let op = SchedRemoteShutdown { domain_id, ..Default::default() };
            assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, op).map(|r| r.0), Err(errno));
        }
        for command in
            [SCHEDOP_SHUTDOWN, SCHEDOP_POLL, SCHEDOP_REMOTE_SHUTDOWN, SCHEDOP_SHUTDOWN_CODE, SCHEDOP_WATCHDOG]
        {
            assert_eq!(t.call(nr::SCHED_OP, [command.into(), NOWHERE]), Err(Errno::EFAULT));
        }
        assert_eq!(t.call(nr::SCHED_OP, [SCHEDOP_PIN_OVERRIDE.into(), NOWHERE]), Err(Errno::EPERM));
        assert_eq!(t.call(nr::SCHED_OP, [8, 0]), Err(Errno::ENOSYS));
        assert_eq!(t.call(nr::SCHED_OP_COMPAT, [SCHEDOP_POLL.into(), 0]), Err(Errno::ENOSYS));
        assert_eq!(t.end, None);
    }

    #[test]
    fn blocking_unmasks_and_waits_unless_an_event_is_due() {
        let mut t = TestDomain::new();
        assert_eq!(t.call(nr::SCHED_OP_COMPAT, [SCHEDOP_BLOCK.into(), 0]), Ok(0));
        assert_eq!((t.vcpu.state, t.upcall().state(&t.memory)), (RunState::Blocked, Ok((false, false))));
        t.cx().run_again();
        t.upcall().set_mask(&t.memory, true).unwrap();
        t.upcall().raise(&t.memory, 1).unwrap();
        assert_eq!(t.call(nr::SCHED_OP, [SCHEDOP_BLOCK.into(), 0]), Ok(0));
        assert_eq!(t.vcpu.state, RunState::Running);
    }

    #[test]
    fn polls() {
        let mut t = TestDomain::new();
        let port = t.events.allocate(Binding::Ipi).unwrap();
        t.write_at(va(FREE), &[port, 4095]).unwrap();
        let poll = |nr_ports, timeout| SchedPoll { ports: va(FREE), nr_ports, timeout, _pad: 0 };
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_POLL, poll(2, 77)).map(|r| r.0), Ok(0));
        assert_eq!((t.vcpu.state, t.vcpu.polled.ports()), (RunState::Polling, [port, 4095].as_slice()));
        assert_eq!(t.vcpu.timers.next(), Some(77));
        t.cx().run_again();
        t.upcall().raise(&t.memory, port).unwrap();
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_POLL, poll(1, 0)).map(|r| r.0), Ok(0));
        assert_eq!(t.vcpu.state, RunState::Running, "pending already, though masked");
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_POLL, poll(129, 0)).map(|r| r.0), Err(Errno::EINVAL));
        t.write_at(va(FREE), &4096u32).unwrap();
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_POLL, poll(1, 0)).map(|r| r.0), Err(Errno::EINVAL));
        let nowhere = SchedPoll { ports: NOWHERE, nr_ports: 1, ..Default::default() };
        assert_eq!(t.op(nr::SCHED_OP, SCHEDOP_POLL, nowhere).map(|r| r.0), Err(Errno::EFAULT));
    }

    #[test]
    fn there_are_two_watchdogs() {
        let mut t = TestDomain::new();
        let mut op =
            |id, timeout| t.op(nr::SCHED_OP, SCHEDOP_WATCHDOG, SchedWatchdog { id, timeout }).map(|r| r.0);
        assert_eq!(op(0, 0), Err(Errno::EINVAL));
        assert_eq!((op(0, 9), op(0, 9), op(0, 9)), (Ok(1), Ok(2), Err(Errno::ENOSPC)));
        assert_eq!(
            (op(1, 5), op(1, 0), op(1, 0), op(3, 1)),
            (Ok(0), Ok(0), Err(Errno::EINVAL), Err(Errno::EINVAL))
        );
        assert_eq!(op(0, 9), Ok(1));
    }
}
