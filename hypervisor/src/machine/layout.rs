//! Which machine frames are the hypervisor's, and for what.
//!
//! The hypervisor's frames come first, so that a guest's MFNs always differ from its PFNs: a guest that confuses the
//! two fails here as it would on Xen. Only arithmetic belongs in this file.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::memory::Mfn;

/// The most frames of a grant table: Xen's default (its option `gnttab_max_frames`).
pub const GRANT_FRAMES: u64 = 64;

/// Frames of the engine's for each virtual CPU past the first.
pub const VCPU_FRAMES: u64 = 5;

/// How many frames of code of ours, and of state that it shares with the monitor, a guest's kernel view has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnCode {
    /// Frames of shared state.
    pub state: u64,
    /// Frames of code.
    pub code: u64,
}

impl OwnCode {
    /// No code of ours runs in the guest.
    pub const NONE: Self = Self { state: 0, code: 0 };
}

/// The hypervisor's part of machine memory, as ranges of MFNs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypervisorLayout {
    /// The engine's frames: its gate, its tables, and the page tables that map the M2P.
    pub engine: Range<u64>,
    /// The shared info page.
    pub shared_info: Mfn,
    /// The guest's grant table, right after the shared info page. Before the guest sets up a grant table it cannot map
    /// these frames, and nothing touches them.
    pub grants: Range<u64>,
    /// Frames that code of ours in the guest's kernel view shares with the monitor; writable there.
    pub state: Range<u64>,
    /// The machine-to-physical table: 8 bytes for each frame of machine memory.
    pub m2p: Range<u64>,
    /// Shadow page tables of a trapped-and-emulated guest; empty for a paravirtual one.
    pub shadow: Range<u64>,
    /// Code of ours that runs in the guest's kernel view, at CPL 3: readable and executable there.
    pub code: Range<u64>,
    /// All frames of the machine, the guest's included.
    pub total: u64,
}

impl HypervisorLayout {
    /// Lays out the hypervisor's frames for a guest of `guest_frames` and `shadow_frames` of shadow tables.
    pub fn new(guest_frames: u64, shadow_frames: u64) -> Self {
        Self::with_code(guest_frames, shadow_frames, OwnCode::NONE)
    }

    /// The same, with code of ours in the guest's kernel view.
    pub fn with_code(guest_frames: u64, shadow_frames: u64, own: OwnCode) -> Self {
        Self::with_vcpus(guest_frames, shadow_frames, own, 1)
    }

    /// The same, for a guest of several virtual CPUs.
    pub fn with_vcpus(guest_frames: u64, shadow_frames: u64, own: OwnCode, vcpus: u32) -> Self {
        let of_vcpus = u64::from(vcpus.saturating_sub(1)) * VCPU_FRAMES;
        // The tables describe all frames, those of the hypervisor included: size them by an upper bound.
        let bound =
            guest_frames + shadow_frames + own.state + own.code + of_vcpus + guest_frames / 256 + 1024;
        let m2p_frames = (bound * 8).div_ceil(4096);
        let engine_frames = 24 + m2p_frames.div_ceil(512) + bound.div_ceil(512 * 512) + of_vcpus;
        let engine = 0..engine_frames;
        let shared_info = Mfn(engine.end);
        let grants = engine.end + 1..engine.end + 1 + GRANT_FRAMES;
        let state = grants.end..grants.end + own.state;
        let m2p = state.end..state.end + m2p_frames;
        let shadow = m2p.end..m2p.end + shadow_frames;
        let code = shadow.end..shadow.end + own.code;
        let total = code.end + guest_frames;
        Self { engine, shared_info, grants, state, m2p, shadow, code, total }
    }

    /// The hypervisor's frames that the guest may be allowed to write to.
    pub fn shared(&self) -> Range<u64> {
        self.shared_info.0..self.state.end
    }

    /// The number of the hypervisor's frames, which is the MFN of the guest's PFN 0.
    pub fn hypervisor_frames(&self) -> u64 {
        self.code.end
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::layout::*;

    #[test]
    fn the_m2p_covers_every_frame() {
        for guest in [64, 1 << 14, 1 << 20, 1 << 24] {
            let l = HypervisorLayout::with_code(guest, guest / 64, OwnCode { state: 2, code: 300 });
            assert!((l.m2p.end - l.m2p.start) * 512 >= l.total, "{guest} frames");
            assert_eq!(l.hypervisor_frames() + guest, l.total);
            assert_eq!(l.shared(), l.engine.end..l.m2p.start);
            let several =
                HypervisorLayout::with_vcpus(guest, guest / 64, OwnCode { state: 2, code: 300 }, 64);
            assert!((several.m2p.end - several.m2p.start) * 512 >= several.total, "{guest} frames");
            assert!(several.engine.end >= l.engine.end + 63 * VCPU_FRAMES);
        }
    }
}
