//! The interrupt shadow of a guest at CPL 0, where the host's KVM forgets it.
//!
//! What may not be done here: knowing which interrupt waits.

use crate::engine::Exit;

/// What is known of the one instruction after STI or MOV SS, before which no interrupt is taken.
///
/// Processors keep this interrupt shadow when a guest is left in it and entered again. QEMU's emulation of VMRUN
/// forgets it, so that a guest's `sti; hlt` would take its interrupt before the HLT, and then wait for another one for
/// ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shadow {
    /// The guest was not left in one.
    None,
    /// It was left in one, at this RIP.
    At(u64),
    /// It executed nothing since, and is said to be in none: interrupts are held back. So often already.
    Forgotten(u64, u8),
}

impl Shadow {
    /// More entries that execute not one instruction there cannot be; a string instruction stays where it is, too.
    const MAX_HELD: u8 = 8;
    /// How long an interrupt is held back at a time, unless the guest leaves by itself.
    pub const HOLD_NS: u64 = 500_000;

    /// After an exit at `rip`.
    pub fn after(self, exit: Exit, rip: u64, shadowed: bool) -> Self {
        match self {
            _ if exit == Exit::Kick && shadowed => Self::At(rip),
            _ if !matches!(exit, Exit::Kick | Exit::Window) => Self::None,
            Self::At(at) if at == rip => Self::Forgotten(at, 1),
            Self::Forgotten(at, n) if at == rip && n < Self::MAX_HELD => Self::Forgotten(at, n + 1),
            _ => Self::None,
        }
    }

    /// Whether interrupts are held back.
    pub const fn holds_back(self) -> bool {
        matches!(self, Self::Forgotten(..))
    }
}
