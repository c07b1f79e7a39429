//! `sched_op`: yielding the processor, waiting, and ending the domain.

use paravane_abi::Errno;
use paravane_abi::hypercall::SCHED_OP;
use paravane_abi::sched::{
    SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SCHEDOP_YIELD, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF,
    SHUTDOWN_REBOOT, SchedPoll, SchedShutdown,
};

use super::event::Port;
use super::{call, operation};

/// Yields the processor.
pub fn yield_now() {
    // SAFETY: no argument, no effect on this domain. The call cannot fail.
    let _ = unsafe { call(SCHED_OP, [u64::from(SCHEDOP_YIELD), 0]) };
}

/// Unmasks events and blocks until one is pending, in one step, so that no wake-up is lost.
///
/// # Errors
/// Never for a PV domain.
pub fn block() -> Result<(), Errno> {
    // SAFETY: no argument; upcalls run handlers that may run whenever events are unmasked.
    unsafe { call(SCHED_OP, [u64::from(SCHEDOP_BLOCK), 0]) }.map(drop)
}

/// Blocks until one of `ports`, which should be masked, is pending, or system time has reached `deadline` (0: no
/// deadline).
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
    /// It asks to be started again.
    Reboot,
    /// It cannot continue.
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
        // SAFETY: the structure of this operation. It does not return if it succeeds; if it fails, all that is left
        // is to try again.
        let _ = unsafe { operation(SCHED_OP, SCHEDOP_SHUTDOWN, &mut SchedShutdown { reason }) };
    }
}
