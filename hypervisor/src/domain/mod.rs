//! Building domains from images, and how they end.

pub mod access;
mod bare_builder;
pub mod builder;
pub mod compressed;
pub mod devices;
pub mod features;
pub mod frames;
pub mod free_frames;
pub mod grants;
mod guest_frames;
pub mod image;
pub mod image_error;
pub mod iret;
pub mod layout;
mod legacy_notes;
pub mod lines;
pub mod mapping;
pub mod notes;
pub mod pv;
mod pv_builder;
#[cfg(test)]
pub(crate) mod pv_testing;
pub mod runstate;
pub mod selectors;
pub mod symbols;
mod tables;
#[cfg(test)]
mod test_bare;
#[cfg(test)]
pub(crate) mod test_elf;
#[cfg(test)]
mod test_hostile;
#[cfg(test)]
mod test_images;
#[cfg(test)]
mod test_modes;
#[cfg(test)]
mod test_pv;
pub mod vcpu;

/// How a domain's life ended.
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
    /// The hypervisor ended it: it broke a rule or lost its last handler. One line: what and where.
    Killed(String),
    /// The host's user asked for it (Ctrl-A x, a signal).
    Interrupted,
}
