//! How a guest ends.

#![forbid(unsafe_code)]

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainEnd {
    /// The guest powered itself off (SHUTDOWN_poweroff).
    PowerOff,
    /// The guest asked to be started again (SHUTDOWN_reboot).
    Reboot,
    /// The guest asked to be suspended (SHUTDOWN_suspend).
    Suspend,
    /// The guest reported its own crash or panic (SHUTDOWN_crash).
    GuestCrash,
    /// The guest's watchdog ran out (SHUTDOWN_watchdog).
    Watchdog,
    /// The hypervisor ended it, because it broke a rule or had no handler for an exception. One line: what and where.
    Killed(String),
    /// The host's user asked for it (Ctrl-A x, a signal).
    Interrupted,
}

impl std::fmt::Display for DomainEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest asked to be rebooted"),
            Self::Suspend => f.write_str("the guest asked to be suspended"),
            Self::GuestCrash => f.write_str("the guest crashed"),
            Self::Watchdog => f.write_str("the guest's watchdog ran out"),
            Self::Killed(why) => write!(f, "the hypervisor killed the guest: {why}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}
