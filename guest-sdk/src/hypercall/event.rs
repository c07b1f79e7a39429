//! `event_channel_op`: making, binding and signalling event channels.

use paravane_abi::domid::{DOMID_SELF, DomId};
use paravane_abi::event::{
    EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_VCPU,
    EVTCHNOP_BIND_VIRQ, EVTCHNOP_CLOSE, EVTCHNOP_SEND, EVTCHNOP_STATUS, EVTCHNOP_UNMASK, EvtchnAllocUnbound,
    EvtchnBindInterdomain, EvtchnBindIpi, EvtchnBindVcpu, EvtchnBindVirq, EvtchnClose, EvtchnSend,
    EvtchnStatus, EvtchnUnmask,
};
use paravane_abi::hypercall::EVENT_CHANNEL_OP;
use paravane_abi::{Errno, event};

use super::operation;

/// A local port of an event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub event::EvtchnPort);

/// Makes a port that `remote` may connect to.
///
/// # Errors
/// `ENOSPC` when no port is free.
pub fn alloc_unbound(remote: DomId) -> Result<Port, Errno> {
    let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: remote, ..Default::default() };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut op) }.map(|_| Port(op.port))
}

/// Binds virtual interrupt `virq` of a vCPU to a new port.
///
/// # Errors
/// `EEXIST` when it is bound already, `EINVAL` for one that does not exist.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<Port, Errno> {
    let mut op = EvtchnBindVirq { virq, vcpu, ..Default::default() };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ, &mut op) }.map(|_| Port(op.port))
}

/// Makes a port by which any vCPU, by [`send`], interrupts the given one.
///
/// # Errors
/// `ENOENT` for a vCPU that does not exist.
pub fn bind_ipi(vcpu: u32) -> Result<Port, Errno> {
    let mut op = EvtchnBindIpi { vcpu, ..Default::default() };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut op) }.map(|_| Port(op.port))
}

/// Chooses the vCPU that a port notifies.
///
/// # Errors
/// `EINVAL` for a port that is bound to its vCPU, `ENOENT` for a vCPU that does not exist.
pub fn bind_vcpu(port: Port, vcpu: u32) -> Result<(), Errno> {
    let mut op = EvtchnBindVcpu { port: port.0, vcpu };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_BIND_VCPU, &mut op) }.map(drop)
}

/// Connects a new port to a port of `remote` that waits for this domain.
///
/// # Errors
/// `EINVAL` if that port does not wait for this domain.
pub fn bind_interdomain(remote: DomId, remote_port: Port) -> Result<Port, Errno> {
    let mut op =
        EvtchnBindInterdomain { remote_dom: remote, remote_port: remote_port.0, ..Default::default() };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_BIND_INTERDOMAIN, &mut op) }.map(|_| Port(op.local_port))
}

/// Notifies the other end.
///
/// # Errors
/// `EINVAL` for a port that is not connected.
pub fn send(port: Port) -> Result<(), Errno> {
    let mut op = EvtchnSend { port: port.0 };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut op) }.map(drop)
}

/// Closes a port.
///
/// # Errors
/// `EINVAL` for a port that is closed.
pub fn close(port: Port) -> Result<(), Errno> {
    let mut op = EvtchnClose { port: port.0 };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_CLOSE, &mut op) }.map(drop)
}

/// The state of a port.
///
/// # Errors
/// `EINVAL` for a port that cannot exist.
pub fn status(port: Port) -> Result<EvtchnStatus, Errno> {
    let mut op = EvtchnStatus { dom: DOMID_SELF, port: port.0, ..Default::default() };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_STATUS, &mut op) }.map(|_| op)
}

/// Clears a port's mask bit in the hypervisor, which makes an upcall if the port is pending. [`crate::event::unmask`]
/// does the same without a transition for ports of this vCPU.
///
/// # Errors
/// `EINVAL` for a port that cannot exist.
pub fn unmask(port: Port) -> Result<(), Errno> {
    let mut op = EvtchnUnmask { port: port.0 };
    // SAFETY: the structure of this operation.
    unsafe { operation(EVENT_CHANNEL_OP, EVTCHNOP_UNMASK, &mut op) }.map(drop)
}
