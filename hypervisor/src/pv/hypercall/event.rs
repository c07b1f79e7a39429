//! event_channel_op: allocation, binding and sending (public/event_channel.h).

use paravane_abi::domid::{DOMID_SELF, DomId};
use paravane_abi::errno::Errno;
use paravane_abi::event::*;

use super::{Call, HypercallResult, Outcome, done};
use crate::pv::domain::DOMID;
use crate::pv::event::{Binding, EventChannels, HostService, Sent};
use crate::pv::guest_pointer::GuestPtr;

/// The caller's own domain, however it names it: EPERM for domain 0, ESRCH for a domain that does not exist.
fn own(dom: DomId) -> Result<(), Errno> {
    match dom {
        DOMID_SELF | DOMID => Ok(()),
        0 => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

/// event_channel_op(command, argument).
pub fn event_channel_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    match command.low32() {
        EVTCHNOP_SEND => {
            let send: EvtchnSend = call.guest().read(argument.pointer())?;
            self::send(call, send.port, argument.word())
        }
        EVTCHNOP_ALLOC_UNBOUND => {
            let mut op: EvtchnAllocUnbound = call.guest().read(argument.pointer())?;
            own(op.dom)?;
            let remote = if op.remote_dom == DOMID_SELF { DOMID } else { op.remote_dom };
            op.port = call.domain.events.allocate(Binding::Unbound { remote })?;
            reply(call, argument.pointer(), &op, op.port)
        }
        EVTCHNOP_BIND_INTERDOMAIN => {
            let mut op: EvtchnBindInterdomain = call.guest().read(argument.pointer())?;
            // Domain 0 may be asked, and has left no port unbound.
            own(op.remote_dom).map_err(|e| if e == Errno::EPERM { Errno::EINVAL } else { e })?;
            op.local_port = call.domain.events.bind_loop(op.remote_port, DOMID)?;
            // The far end may have sent before this end existed (public/event_channel.h).
            raise(call, op.local_port);
            reply(call, argument.pointer(), &op, op.local_port)
        }
        EVTCHNOP_BIND_VIRQ => {
            let mut op: EvtchnBindVirq = call.guest().read(argument.pointer())?;
            EventChannels::check_virq(op.virq, op.vcpu)?;
            let vcpu = call.domain.vcpu(op.vcpu)?;
            op.port = call.domain.events.bind_virq(op.virq, vcpu)?;
            reply(call, argument.pointer(), &op, op.port)
        }
        EVTCHNOP_BIND_IPI => {
            let mut op: EvtchnBindIpi = call.guest().read(argument.pointer())?;
            let vcpu = call.domain.vcpu(op.vcpu)?;
            op.port = call.domain.events.allocate_for(Binding::Ipi, vcpu)?;
            reply(call, argument.pointer(), &op, op.port)
        }
        EVTCHNOP_CLOSE => {
            let op: EvtchnClose = call.guest().read(argument.pointer())?;
            if !call.domain.events.is_closable(op.port) {
                return Err(Errno::EINVAL);
            }
            close(call, op.port)?;
            done(0)
        }
        EVTCHNOP_STATUS => status(call, argument.pointer()),
        EVTCHNOP_BIND_VCPU => {
            let op: EvtchnBindVcpu = call.guest().read(argument.pointer())?;
            let vcpu = call.domain.vcpu(op.vcpu)?;
            call.domain.events.bind_vcpu(op.port, vcpu)?;
            call.domain.bells.moved(op.port, call.vcpu.id).map_err(|_| Errno::EFAULT)?;
            done(0)
        }
        EVTCHNOP_UNMASK => {
            let op: EvtchnUnmask = call.guest().read(argument.pointer())?;
            if !EventChannels::is_number(op.port) || call.domain.events.binding(op.port) == Binding::Free {
                return Err(Errno::EINVAL);
            }
            call.domain.bells.unmask(op.port, call.vcpu.id).map_err(|_| Errno::EFAULT)?;
            done(0)
        }
        EVTCHNOP_RESET => {
            let op: EvtchnReset = call.guest().read(argument.pointer())?;
            own(op.dom)?;
            let mut cleared = Ok(());
            let bells = &call.domain.bells;
            call.domain.events.reset(|port| cleared = cleared.and(bells.forget(port)));
            cleared.map_err(|_| Errno::EFAULT)?;
            done(0)
        }
        // Physical interrupts belong to domains with hardware; the FIFO ABI is not offered, as before Xen 4.4.
        EVTCHNOP_BIND_PIRQ => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// event_channel_op_compat(operation): the first form, with the command before its argument.
pub fn event_channel_op_compat(call: &mut Call<'_>) -> HypercallResult {
    let [operation, ..] = call.args;
    let operation = operation.pointer::<u32>();
    let command = call.guest().read(operation)?;
    // Everything in the union of arguments is of four bytes or less.
    let argument = operation.next()?.address();
    match command {
        EVTCHNOP_BIND_INTERDOMAIN..=EVTCHNOP_UNMASK => {
            match event_channel_op(&mut call.with([command.into(), argument, 0, 0, 0, 0]))? {
                Outcome::Again(_) => Ok(Outcome::Again([operation.address(), 0, 0, 0, 0, 0])),
                outcome => Ok(outcome),
            }
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Leaves the result in the guest's structure; takes the port back if the guest cannot be told.
fn reply<T>(call: &mut Call<'_>, argument: GuestPtr<T>, op: &T, port: EvtchnPort) -> HypercallResult
where
    T: zerocopy::IntoBytes + zerocopy::Immutable,
{
    if let Err(errno) = call.guest().write(argument, op) {
        close(call, port)?;
        return Err(errno);
    }
    done(0)
}

/// Frees a port. Nothing of it may stay pending: what is already pending cannot be raised.
fn close(call: &mut Call<'_>, port: EvtchnPort) -> Result<(), Errno> {
    call.domain.events.close(port, DOMID)?;
    call.domain.bells.forget(port).map_err(|_| Errno::EFAULT)
}

fn raise(call: &mut Call<'_>, port: EvtchnPort) {
    if let Err(e) = call.context().raise(port) {
        call.context().kill(e);
    }
}

/// Sends through `port`. To send once more, which is what is left to do after a part of the work of a service, is to
/// make the call with the same `argument`.
fn send(call: &mut Call<'_>, port: EvtchnPort, argument: u64) -> HypercallResult {
    match call.domain.events.send(port)? {
        Sent::Raise(target) => raise(call, target),
        Sent::Notify(HostService::Console) => super::service_console(&mut call.context()),
        Sent::Notify(HostService::Queue { device, queue }) => call.domain.virtio.kick(device, queue),
        Sent::Notify(HostService::Store) => {
            if super::store::service(call) {
                return Ok(Outcome::Again([EVTCHNOP_SEND.into(), argument, 0, 0, 0, 0]));
            }
        }
        Sent::Notify(HostService::Config { .. }) | Sent::Dropped => {}
    }
    done(0)
}

fn status(call: &mut Call<'_>, argument: GuestPtr<EvtchnStatus>) -> HypercallResult {
    let mut op = call.guest().read(argument)?;
    own(op.dom)?;
    if !EventChannels::is_number(op.port) {
        return Err(Errno::EINVAL);
    }
    op.vcpu = call.domain.events.vcpu(op.port).number();
    (op.status, op.u0, op.u1) = match call.domain.events.binding(op.port) {
        Binding::Free => (EVTCHNSTAT_CLOSED, 0, 0),
        Binding::Unbound { remote } => (EVTCHNSTAT_UNBOUND, u32::from(remote), 0),
        Binding::Loop { peer } => (EVTCHNSTAT_INTERDOMAIN, u32::from(DOMID), peer),
        // The host's services are domain 0's.
        Binding::Host(_) => (EVTCHNSTAT_INTERDOMAIN, 0, 0),
        Binding::Virq(virq) => (EVTCHNSTAT_VIRQ, virq, 0),
        Binding::Ipi => (EVTCHNSTAT_IPI, 0, 0),
    };
    call.guest().write(argument, &op)?;
    done(0)
}

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;

    use crate::pv::hypercall::event::*;
    use crate::testing::pv::{FREE, RO, TestDomain, va};

    fn pending(t: &TestDomain, port: EvtchnPort) -> bool {
        t.upcall().is_pending(&t.memory, port).unwrap()
    }

    fn bind_ipi(t: &mut TestDomain) -> EvtchnPort {
        t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, EvtchnBindIpi::default()).unwrap().1.port
    }

    #[test]
    fn a_port_begins_with_nothing_pending() {
        let mut t = TestDomain::new();
        let port = bind_ipi(&mut t);
        t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_SEND, EvtchnSend { port }).unwrap();
        assert!(pending(&t, port));
        let reset = EvtchnReset { dom: DOMID_SELF };
        t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_RESET, reset).unwrap();
        assert!(!pending(&t, port));
        assert_eq!(bind_ipi(&mut t), port);
        assert_eq!(t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_SEND, EvtchnSend { port }).map(|r| r.0), Ok(0));
        assert!(pending(&t, port));
    }

    #[test]
    fn other_domains_are_not_there_or_not_the_callers() {
        let mut t = TestDomain::new();
        for (dom, errno, unbound) in [(0, Errno::EPERM, Errno::EINVAL), (9, Errno::ESRCH, Errno::ESRCH)] {
            let alloc = EvtchnAllocUnbound { dom, remote_dom: DOMID_SELF, port: 0 };
            let bind = EvtchnBindInterdomain { remote_dom: dom, remote_port: 1, ..Default::default() };
            let status = EvtchnStatus { dom, port: 1, ..Default::default() };
            let outcome = |r: Result<u64, Errno>| r.unwrap_err();
            let asked = [
                outcome(t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, alloc).map(|r| r.0)),
                outcome(t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_STATUS, status).map(|r| r.0)),
                outcome(t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_RESET, EvtchnReset { dom }).map(|r| r.0)),
            ];
            assert_eq!(asked, [errno; 3]);
            assert_eq!(
                outcome(t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_INTERDOMAIN, bind).map(|r| r.0)),
                unbound
            );
        }
    }

    #[test]
    fn a_binding_that_cannot_be_told_leaves_nothing() {
        let mut t = TestDomain::new();
        let own = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, ..Default::default() };
        let remote_port = t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, own).unwrap().1.port;
        let bind = EvtchnBindInterdomain { remote_dom: DOMID_SELF, remote_port, ..Default::default() };
        t.write_at(va(FREE), &bind).unwrap();
        let read_only = t.entry(FREE, RO);
        t.map(FREE, read_only).unwrap();
        let bound = t.call(nr::EVENT_CHANNEL_OP, [EVTCHNOP_BIND_INTERDOMAIN.into(), va(FREE)]);
        assert_eq!(bound, Err(Errno::EFAULT));
        let next = remote_port + 1;
        assert_eq!(t.events.binding(next), Binding::Free);
        assert!(!pending(&t, next));
    }
}
