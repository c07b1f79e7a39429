//! A domain: built from an image, what it owns while it lives, and how it ends.
//!
//! | Concern | Modules |
//! | --- | --- |
//! | The image: ELF, notes, compression, symbols and lines | [`image`], [`image_error`], [`notes`], [`compressed`], [`symbols`], [`lines`] |
//! | Start of day: frames, tables, start info | [`layout`], [`mapping`], [`builder`], [`features`], [`selectors`] |
//! | A paravirtual domain and its vCPU | [`pv`], [`vcpu`], [`runstate`] |
//! | Frames pushed onto a guest's stack, and the way back | [`frames`], [`iret`] |
//! | Memory that comes and goes, or is granted | [`free_frames`], [`grants`] |
//! | Its devices | [`devices`] |
//!
//! Every pointer that a paravirtual guest passes goes through [`access`], and nothing else follows one. Such a guest is killed for what
//! it did in one place, `PvDomain::kill`. What may not be done here: knowing a hypercall's arguments, or which engine runs.

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
#[cfg(test)]
mod tests;
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
