//! Event channels: `event_channel_op(op, arg)`.
//!
//! A channel is a port of one domain, bound to a port of another domain (or of the same), to a virtual or physical
//! interrupt, or to an interrupt between vCPUs. Pending and mask bits live in the shared page (two levels) or in
//! pages of the guest (FIFO). Source: public/event_channel.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// A port: the number of a channel within one domain. 0 is never a valid one.
pub type EvtchnPort = u32;

/// Connect to a port that another domain left unbound: [`EvtchnBindInterdomain`].
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
/// Bind a virtual interrupt: [`EvtchnBindVirq`].
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
/// Bind a physical interrupt: [`EvtchnBindPirq`].
pub const EVTCHNOP_BIND_PIRQ: u32 = 2;
/// Close a port: [`EvtchnClose`].
pub const EVTCHNOP_CLOSE: u32 = 3;
/// Notify the other end: [`EvtchnSend`].
pub const EVTCHNOP_SEND: u32 = 4;
/// Ask what a port is bound to: [`EvtchnStatus`].
pub const EVTCHNOP_STATUS: u32 = 5;
/// Make a port that another domain may connect to: [`EvtchnAllocUnbound`].
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;
/// Make a port for interrupts between vCPUs: [`EvtchnBindIpi`].
pub const EVTCHNOP_BIND_IPI: u32 = 7;
/// Choose the vCPU that a port notifies: [`EvtchnBindVcpu`].
pub const EVTCHNOP_BIND_VCPU: u32 = 8;
/// Clear a port's mask, and make an upcall if the port is pending: [`EvtchnUnmask`].
pub const EVTCHNOP_UNMASK: u32 = 9;
/// Close all ports of a domain, and go back to two levels: [`EvtchnReset`].
pub const EVTCHNOP_RESET: u32 = 10;
/// Switch to FIFO events, one call per vCPU: [`EvtchnInitControl`].
pub const EVTCHNOP_INIT_CONTROL: u32 = 11;
/// Add a page of FIFO event words: [`EvtchnExpandArray`].
pub const EVTCHNOP_EXPAND_ARRAY: u32 = 12;
/// Choose a port's FIFO priority: [`EvtchnSetPriority`].
pub const EVTCHNOP_SET_PRIORITY: u32 = 13;

/// Channels that a domain can have with two levels.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

/// Argument of [`EVTCHNOP_ALLOC_UNBOUND`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnAllocUnbound {
    /// IN: domain that gets the port: the caller, unless it is privileged.
    pub dom: DomId,
    /// IN: domain that may connect.
    pub remote_dom: DomId,
    /// OUT: the new port.
    pub port: EvtchnPort,
}

layout!(EvtchnAllocUnbound: 8 { dom @ 0, remote_dom @ 2, port @ 4 });

/// Argument of [`EVTCHNOP_BIND_INTERDOMAIN`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindInterdomain {
    /// IN: domain to connect to.
    pub remote_dom: DomId,
    /// Padding.
    pub _pad: u16,
    /// IN: its unbound port.
    pub remote_port: EvtchnPort,
    /// OUT: the caller's new port.
    pub local_port: EvtchnPort,
}

layout!(EvtchnBindInterdomain: 12 { remote_dom @ 0, remote_port @ 4, local_port @ 8 });

/// Argument of [`EVTCHNOP_BIND_VIRQ`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindVirq {
    /// IN: `VIRQ_*`.
    pub virq: u32,
    /// IN: vCPU to notify; 0 for a global virtual interrupt.
    pub vcpu: u32,
    /// OUT: the new port.
    pub port: EvtchnPort,
}

layout!(EvtchnBindVirq: 12 { virq @ 0, vcpu @ 4, port @ 8 });

/// In [`EvtchnBindPirq::flags`]: the interrupt line may be shared with other domains.
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

/// Argument of [`EVTCHNOP_BIND_PIRQ`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindPirq {
    /// IN: physical interrupt.
    pub pirq: u32,
    /// IN: 0 or [`BIND_PIRQ_WILL_SHARE`].
    pub flags: u32,
    /// OUT: the new port.
    pub port: EvtchnPort,
}

layout!(EvtchnBindPirq: 12 { pirq @ 0, flags @ 4, port @ 8 });

/// Argument of [`EVTCHNOP_BIND_IPI`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindIpi {
    /// IN: vCPU to notify.
    pub vcpu: u32,
    /// OUT: the new port.
    pub port: EvtchnPort,
}

layout!(EvtchnBindIpi: 8 { vcpu @ 0, port @ 4 });

/// Argument of [`EVTCHNOP_CLOSE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnClose {
    /// IN: port to close.
    pub port: EvtchnPort,
}

layout!(EvtchnClose: 4 { port @ 0 });

/// Argument of [`EVTCHNOP_SEND`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnSend {
    /// IN: local port whose other end is notified.
    pub port: EvtchnPort,
}

layout!(EvtchnSend: 4 { port @ 0 });

/// In [`EvtchnStatus::status`]: the port is free.
pub const EVTCHNSTAT_CLOSED: u32 = 0;
/// In [`EvtchnStatus::status`]: the port waits for a domain to connect.
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
/// In [`EvtchnStatus::status`]: the port is connected to another domain's.
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// In [`EvtchnStatus::status`]: the port is bound to a physical interrupt.
pub const EVTCHNSTAT_PIRQ: u32 = 3;
/// In [`EvtchnStatus::status`]: the port is bound to a virtual interrupt.
pub const EVTCHNSTAT_VIRQ: u32 = 4;
/// In [`EvtchnStatus::status`]: the port is for interrupts between vCPUs.
pub const EVTCHNSTAT_IPI: u32 = 5;

/// Argument of [`EVTCHNOP_STATUS`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnStatus {
    /// IN: domain that the port belongs to: the caller, unless it is privileged.
    pub dom: DomId,
    /// Padding.
    pub _pad: u16,
    /// IN: the port asked about.
    pub port: EvtchnPort,
    /// OUT: `EVTCHNSTAT_*`.
    pub status: u32,
    /// OUT: vCPU that the port notifies.
    pub vcpu: u32,
    /// OUT: unbound and interdomain: the remote domain (16 bits); pirq and virq: the interrupt.
    pub u0: u32,
    /// OUT: interdomain: the remote port.
    pub u1: u32,
}

layout!(EvtchnStatus: 24 { dom @ 0, port @ 4, status @ 8, vcpu @ 12, u0 @ 16, u1 @ 20 });

/// Argument of [`EVTCHNOP_BIND_VCPU`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindVcpu {
    /// IN: local port.
    pub port: EvtchnPort,
    /// IN: vCPU that it notifies from now on.
    pub vcpu: u32,
}

layout!(EvtchnBindVcpu: 8 { port @ 0, vcpu @ 4 });

/// Argument of [`EVTCHNOP_UNMASK`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnUnmask {
    /// IN: local port.
    pub port: EvtchnPort,
}

layout!(EvtchnUnmask: 4 { port @ 0 });

/// Argument of [`EVTCHNOP_RESET`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnReset {
    /// IN: domain whose ports are closed: the caller, unless it is privileged.
    pub dom: DomId,
}

layout!(EvtchnReset: 2 { dom @ 0 });

/// Argument of [`EVTCHNOP_INIT_CONTROL`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnInitControl {
    /// IN: machine frame that holds the vCPU's [`EvtchnFifoControlBlock`].
    pub control_gfn: u64,
    /// IN: offset of the block in the frame, 8-byte aligned.
    pub offset: u32,
    /// IN: the vCPU.
    pub vcpu: u32,
    /// OUT: bits in an event word that hold a link.
    pub link_bits: u8,
    /// Padding.
    pub _pad: [u8; 7],
}

layout!(EvtchnInitControl: 24 { control_gfn @ 0, offset @ 8, vcpu @ 12, link_bits @ 16, _pad @ 17 });

/// Argument of [`EVTCHNOP_EXPAND_ARRAY`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnExpandArray {
    /// IN: machine frame that becomes the next page of event words.
    pub array_gfn: u64,
}

layout!(EvtchnExpandArray: 8 { array_gfn @ 0 });

/// Argument of [`EVTCHNOP_SET_PRIORITY`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnSetPriority {
    /// IN: local port.
    pub port: EvtchnPort,
    /// IN: [`EVTCHN_FIFO_PRIORITY_MAX`] to [`EVTCHN_FIFO_PRIORITY_MIN`].
    pub priority: u32,
}

layout!(EvtchnSetPriority: 8 { port @ 0, priority @ 4 });

/// The most urgent FIFO priority.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// The FIFO priority of a port without a chosen one.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// The least urgent FIFO priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
/// FIFO queues per vCPU.
pub const EVTCHN_FIFO_MAX_QUEUES: usize = 16;
/// Bit of an event word: the event is pending.
pub const EVTCHN_FIFO_PENDING: u32 = 31;
/// Bit of an event word: the event is masked.
pub const EVTCHN_FIFO_MASKED: u32 = 30;
/// Bit of an event word: the event is in a queue.
pub const EVTCHN_FIFO_LINKED: u32 = 29;
/// Bit of an event word: the hypervisor is changing its link.
pub const EVTCHN_FIFO_BUSY: u32 = 28;
/// Bits of an event word that hold the next port of the queue.
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
/// Mask of these bits.
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << EVTCHN_FIFO_LINK_BITS) - 1;
/// Channels that a domain can have with FIFO events.
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << EVTCHN_FIFO_LINK_BITS;

/// A vCPU's FIFO queues, in a frame of the guest.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnFifoControlBlock {
    /// IN/OUT: a bit for each priority whose queue is not empty.
    pub ready: u32,
    /// Reserved, zero.
    pub _rsvd: u32,
    /// OUT: first port of each queue; 0 if the queue is empty.
    pub head: [u32; EVTCHN_FIFO_MAX_QUEUES],
}

layout!(EvtchnFifoControlBlock: 72 { ready @ 0, _rsvd @ 4, head @ 8 });
