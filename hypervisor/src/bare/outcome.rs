//! What an exit of a bare guest was, and what comes of it.

use super::death::Death;
use super::platform::PlatformEvent;
use crate::ledger::Cause;
use crate::machine::end::DomainEnd;

/// What the monitor does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BareOutcome {
    /// Enters the guest again.
    Resume,
    /// Waits for the deadline, if there is one, for console input or for a kick, and then calls
    /// [`super::BareMachine::deliver_pending`]; as long as [`super::BareMachine::is_halted`], again.
    Halted {
        /// When a device raises an interrupt.
        until_ns: Option<u64>,
    },
    /// Notes the mark and enters the guest again.
    Mark(u8),
    /// The guest has ended.
    Ended(DomainEnd),
}

/// Why the guest left the CPU, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareExit {
    /// For the ledger.
    pub cause: Cause,
    /// For the monitor.
    pub outcome: BareOutcome,
}

/// The end of a guest that cannot go on.
pub(super) fn killed(death: Death) -> DomainEnd {
    DomainEnd::Killed(death.to_string())
}

/// The end of a guest that waits for an interrupt that it does not take: by a HLT at `rip`.
pub fn halted_for_ever(rip: u64) -> DomainEnd {
    killed(Death::HaltedForEver { rip })
}

/// The outcome of an output to a port that requests something of the monitor.
pub fn outcome_of(event: PlatformEvent) -> BareOutcome {
    match event {
        PlatformEvent::PowerOff => BareOutcome::Ended(DomainEnd::PowerOff),
        PlatformEvent::Reset => BareOutcome::Ended(DomainEnd::Reboot),
        PlatformEvent::GuestCrash => BareOutcome::Ended(DomainEnd::GuestCrash),
        PlatformEvent::Mark(value) => BareOutcome::Mark(value),
    }
}
