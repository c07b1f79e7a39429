//! Images of the FPU state, as XSAVE writes them: what makes one loadable.
//!
//! An image lies in a room, which a guest's user program can write, and is loaded where its kernel runs: the processor
//! must never refuse one. Format and refusals: SDM volume 1, 13.4 (layout) and 13.8.1 (XRSTOR, standard form).

use std::arch::x86_64::{_fxsave64, _xgetbv};

use super::area::Area;
use crate::engine::state::{BadState, VectorState, size_on_host};
use crate::x86::xsave;

/// Offset of the mask of MXCSR in what FXSAVE writes.
const MXCSR_MASK: usize = 28;
const MXCSR: u64 = xsave::MXCSR as u64;
const XSTATE_BV: u64 = xsave::XSTATE_BV as u64;
const XCOMP_BV: u64 = xsave::XCOMP_BV as u64;
const HEADER_END: u64 = xsave::HEADER_END as u64;
const MXCSR_RESET: u64 = xsave::MXCSR_RESET as u64;

/// What the processor accepts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    /// State components: XCR0.
    components: u64,
    /// Bits of MXCSR.
    mxcsr: u32,
}

#[repr(C, align(16))]
struct Legacy([u8; 512]);

impl Accepted {
    /// Asks the processor, which must have XSAVE (see [`mod@super::probe`]).
    pub fn detect() -> Self {
        let mut image = Legacy([0; 512]);
        // SAFETY: the image is 512 bytes, aligned to 16; every x86-64 processor has FXSAVE.
        unsafe { _fxsave64(image.0.as_mut_ptr()) };
        let mask = image.0[MXCSR_MASK..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        // SAFETY: Linux enables XSAVE where there is XSAVEOPT, which the engine needs; XCR0 always exists.
        let components = unsafe { _xgetbv(0) };
        // 0 is how the first processors with SSE say this (SDM volume 1, 11.6.6).
        const FIRST: u32 = 0xffbf;
        Self { components, mxcsr: if mask == 0 { FIRST } else { mask } }
    }

    /// Whether a state that comes from elsewhere can be loaded.
    pub fn check(self, state: &VectorState) -> Result<(), BadState> {
        state.check(self.components, self.mxcsr, size_on_host)
    }

    /// Makes sure that the image at an offset of the room can be loaded: one that cannot becomes that of a reset.
    pub fn mend(self, area: &Area, at: u64) {
        let known = area.room(at + XSTATE_BV) & !self.components == 0;
        let standard = (at + XCOMP_BV..at + HEADER_END).step_by(8).all(|at| area.room(at) == 0);
        let mxcsr = area.room(at + MXCSR) as u32 & !self.mxcsr == 0;
        if !(known && standard && mxcsr) {
            reset(area, at);
        }
    }
}

/// Makes an image of the state after a reset: no component has a value, but for MXCSR, which is loaded in any case.
pub(super) fn reset(area: &Area, at: u64) {
    area.set_room(at + MXCSR, MXCSR_RESET);
    for word in (at + XSTATE_BV..at + HEADER_END).step_by(8) {
        area.set_room(word, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::area::room;
    use super::*;

    #[test]
    fn an_image_that_the_processor_refuses_becomes_one_of_a_reset() {
        let area = Area::new().unwrap();
        let accepted = Accepted::detect();
        assert!(accepted.components & 3 == 3 && accepted.mxcsr & 0x1f80 == 0x1f80);
        let at = room::FPU_IN;
        let is_kept = |offset: u64, value: u64| {
            reset(&area, at);
            area.set_room(at + offset, value);
            accepted.mend(&area, at);
            area.room(at + offset) == value
        };
        assert!(is_kept(XSTATE_BV, 3) && is_kept(MXCSR, 0x1fbf) && is_kept(HEADER_END, u64::MAX));
        for (offset, value) in [
            (XSTATE_BV, 1 << 62),
            (XCOMP_BV, 1 << 63),
            (XCOMP_BV, 1),
            (XCOMP_BV + 8, 1),
            (HEADER_END - 8, 1),
            (MXCSR, 0x8000_0000),
        ] {
            assert!(!is_kept(offset, value), "{value:#x} at {offset}");
            assert_eq!((area.room(at + MXCSR), area.room(at + XSTATE_BV)), (MXCSR_RESET, 0));
        }
    }
}
