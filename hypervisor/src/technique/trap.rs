//! Trap-and-emulate: a bare kernel at CPL 3, whose privileged instructions trap and are emulated by [`crate::bare`].

use super::bare::BareDomain;
use super::method::Unchanged;
use super::{EngineNeed, Technique, on_any_host};
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::image::GuestKind;
use crate::machine::layout::OwnCode;
use crate::mmu::shadow;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "trap",
    about: "trap-and-emulate: the kernel trips, instruction by instruction",
    runs: GuestKind::Bare,
    engine: EngineNeed::Deprivileged,
    max_vcpus: 1,
    available: on_any_host,
    shadow_frames: shadow::frames_for,
    own_code: OwnCode::NONE,
    // The machine-to-physical table stays empty; the tables that map it are written.
    own_frames: |layout| (layout.m2p.end - layout.m2p.start).div_ceil(512),
    device_parameters: |count| (count != 0).then(|| VirtioMmio::parameters(count)),
    undebuggable: None,
    make: |parts| BareDomain::make(parts, Unchanged),
    restore: None,
};
