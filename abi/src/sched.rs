//! Yielding the processor, waiting, and ending a domain: `sched_op(op, arg)`.
//!
//! Source: public/sched.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// Yield the processor. No argument.
pub const SCHEDOP_YIELD: u32 = 0;
/// Unmask upcalls and block until one is pending. No argument.
pub const SCHEDOP_BLOCK: u32 = 1;
/// Shut the domain down: [`SchedShutdown`]. For a suspend the third argument is the start info's machine frame.
pub const SCHEDOP_SHUTDOWN: u32 = 2;
/// Block until one of a list of ports is pending: [`SchedPoll`].
pub const SCHEDOP_POLL: u32 = 3;
/// Shut another domain down: [`SchedRemoteShutdown`]; for privileged domains.
pub const SCHEDOP_REMOTE_SHUTDOWN: u32 = 4;
/// Set the reason that a later shutdown reports: [`SchedShutdown`].
pub const SCHEDOP_SHUTDOWN_CODE: u32 = 5;
/// Create, restart or remove a watchdog: [`SchedWatchdog`]. The result of creating one is its number.
pub const SCHEDOP_WATCHDOG: u32 = 6;
/// Pin the vCPU to a physical processor: [`SchedPinOverride`]; for the hardware domain.
pub const SCHEDOP_PIN_OVERRIDE: u32 = 7;

/// Reason: the guest has finished.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// Reason: the guest asks to be started again.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// Reason: the guest is ready to be saved.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// Reason: the guest has crashed.
pub const SHUTDOWN_CRASH: u32 = 3;
/// Reason: a watchdog expired.
pub const SHUTDOWN_WATCHDOG: u32 = 4;
/// Reason: the guest asks for a reset of the hypervisor's state of it, and continues.
pub const SHUTDOWN_SOFT_RESET: u32 = 5;
/// The largest reason.
pub const SHUTDOWN_MAX: u32 = 5;

/// Argument of [`SCHEDOP_SHUTDOWN`] and [`SCHEDOP_SHUTDOWN_CODE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedShutdown {
    /// IN: `SHUTDOWN_*`.
    pub reason: u32,
}

layout!(SchedShutdown: 4 { reason @ 0 });

/// Argument of [`SCHEDOP_POLL`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedPoll {
    /// IN: virtual address of an array of 32-bit ports.
    pub ports: u64,
    /// IN: ports in the array.
    pub nr_ports: u32,
    /// Padding.
    pub _pad: u32,
    /// IN: deadline in nanoseconds of system time; 0 for none.
    pub timeout: u64,
}

layout!(SchedPoll: 24 { ports @ 0, nr_ports @ 8, timeout @ 16 });

/// Argument of [`SCHEDOP_REMOTE_SHUTDOWN`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedRemoteShutdown {
    /// IN: domain to shut down.
    pub domain_id: DomId,
    /// Padding.
    pub _pad: u16,
    /// IN: `SHUTDOWN_*`.
    pub reason: u32,
}

layout!(SchedRemoteShutdown: 8 { domain_id @ 0, reason @ 4 });

/// Argument of [`SCHEDOP_WATCHDOG`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedWatchdog {
    /// IN: watchdog to restart or remove; 0 creates one.
    pub id: u32,
    /// IN: seconds until it shuts the domain down; 0 removes it.
    pub timeout: u32,
}

layout!(SchedWatchdog: 8 { id @ 0, timeout @ 4 });

/// Argument of [`SCHEDOP_PIN_OVERRIDE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedPinOverride {
    /// IN: physical processor; negative undoes an override.
    pub pcpu: i32,
}

layout!(SchedPinOverride: 4 { pcpu @ 0 });
