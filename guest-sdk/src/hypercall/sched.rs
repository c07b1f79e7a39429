//! `sched_op`: giving up the processor, for a while or for good.

use paravane_abi::Errno;
use paravane_abi::hypercall::SCHED_OP;
use paravane_abi::sched::{
    SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SCHEDOP_YIELD, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF,
    SHUTDOWN_REBOOT, SchedPoll, SchedShutdown,
};

use super::event::Port;
use super::{call, operation};

/// Lets others run.
pub fn yield_now() {
    // SAFETY: no argument, no effect on this domain. The call cannot fail.
    let _ = unsafe { call(SCHED_OP, [u64::from(SCHEDOP_YIELD), 0]) };
}

/// Unmasks events and stops until one is due, in one step: no wake-up is lost.
///
/// # Errors
/// None that a PV domain meets.
pub fn block() -> Result<(), Errno> {
    // SAFETY: no argument; upcalls run handlers that may run whenever events are unmasked.
    unsafe { call(SCHED_OP, [u64::from(SCHEDOP_BLOCK), 0]) }.map(drop)
}

/// Stops until one of `ports`, which should be masked, is pending, or system time is past `deadline` (0: never).
///
/// # Errors
/// `EINVAL` for a port that cannot exist or too many of them.
pub fn poll(ports: &[Port], deadline: u64) -> Result<(), Errno> {
    let mut op = SchedPoll {
        ports: ports.as_ptr().addr() as u64,
        nr_ports: u32::try_from(ports.len()).map_err(|_| Errno::EINVAL)?,
        timeout: deadline,
        ..Default::default()
    };
    // SAFETY: the structure of this operation; a `Port` is a 32-bit number.
    unsafe { operation(SCHED_OP, SCHEDOP_POLL, &mut op) }.map(drop)
}

/// Why a domain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It has finished.
    PowerOff,
    /// It wants to be started again.
    Reboot,
    /// It cannot go on.
    Crash,
}

/// Ends the domain.
pub fn shutdown(reason: Shutdown) -> ! {
    let reason = match reason {
        Shutdown::PowerOff => SHUTDOWN_POWEROFF,
        Shutdown::Reboot => SHUTDOWN_REBOOT,
        Shutdown::Crash => SHUTDOWN_CRASH,
    };
    loop {
        // SAFETY: the structure of this operation. It does not return where it succeeds, and there is nothing
        // better to do where it does not than to ask again.
        let _ = unsafe { operation(SCHED_OP, SCHEDOP_SHUTDOWN, &mut SchedShutdown { reason }) };
    }
}
