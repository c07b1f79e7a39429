//! What of a virtual CPU's architectural state is in neither [`Regs`](crate::x86::registers::Regs) nor
//! [`VcpuSpace`](crate::mmu::space::VcpuSpace): vector registers and debug registers.
//!
//! Plain data and its checks, for every engine. A state may come from a file: nothing in it is believed before
//! [`VectorState::check`] has looked at it.

use paravane_abi::addr;

use crate::host::host_cpuid;
use crate::x86::guest_cpuid::{MAX_BASIC, area_size};
use crate::x86::xsave::{
    FCW, FCW_RESET, HEADER_END, MXCSR, MXCSR_RESET, X87_REGISTERS, XCOMP_BV, XMM_REGISTERS, XSTATE_BV,
};

/// The state components that every x86-64 processor has.
const X87: u64 = 1;
const SSE: u64 = 2;

/// The x87, SSE and further vector registers: an XSAVE area in the standard format (SDM vol. 1, 13.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorState {
    area: Vec<u8>,
}

/// A state that a virtual CPU cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// The area ends before its header, or before the last component that the header names.
    #[error("the saved vector state has {bytes} bytes, and what it says to hold takes {needed}")]
    Short {
        /// What it has.
        bytes: usize,
        /// What its header and the components in it take.
        needed: usize,
    },
    /// It has state components that this machine lacks, or that the guest may not use.
    #[error("the saved vector state has components {saved:#x}, and this machine has {available:#x}")]
    Components {
        /// What is in it (XSTATE_BV).
        saved: u64,
        /// What the virtual CPU has.
        available: u64,
    },
    /// It is in the compacted format, or reserved bytes of the header are set.
    #[error("the saved vector state is not in the standard format of XSAVE")]
    NotStandard,
    /// MXCSR has reserved bits.
    #[error("the saved MXCSR {0:#x} has reserved bits")]
    Mxcsr(u32),
    /// The host refuses it for another reason.
    #[error("the host refuses the saved vector state")]
    Refused,
}

impl VectorState {
    /// The state after a reset.
    pub fn reset() -> Self {
        let mut area = vec![0; HEADER_END];
        if let Some(mxcsr) = area.get_mut(MXCSR..MXCSR + 4) {
            mxcsr.copy_from_slice(&MXCSR_RESET.to_le_bytes());
        }
        Self { area }
    }

    /// What an XSAVE area holds.
    pub fn from_area(area: Vec<u8>) -> Self {
        Self { area }
    }

    /// The area.
    pub fn area(&self) -> &[u8] {
        &self.area
    }

    /// The area with x87 and SSE state spelled out where it says that they are as after a reset: for a host that leaves
    /// MXCSR alone when SSE is not marked in XSTATE_BV, as Linux's KVM_SET_XSAVE does.
    pub fn spelled_out(&self) -> Vec<u8> {
        let mut area = self.area.clone();
        let marked = word(&area, XSTATE_BV);
        let mut set = |range: std::ops::Range<usize>, byte: u8| {
            if let Some(bytes) = area.get_mut(range) {
                bytes.fill(byte);
            }
        };
        if marked & X87 == 0 {
            set(FCW..MXCSR, 0);
            set(X87_REGISTERS, 0);
        }
        if marked & SSE == 0 {
            set(XMM_REGISTERS, 0);
        }
        let fcw = if marked & X87 == 0 { Some(FCW_RESET) } else { None };
        if let (Some(fcw), Some(bytes)) = (fcw, area.get_mut(FCW..FCW + 2)) {
            bytes.copy_from_slice(&fcw.to_le_bytes());
        }
        if let Some(bytes) = area.get_mut(XSTATE_BV..XSTATE_BV + 8) {
            bytes.copy_from_slice(&(marked | X87 | SSE).to_le_bytes());
        }
        area
    }

    /// Whether a processor with these state components (XCR0) and this mask of MXCSR can load it. `size` gives the
    /// bytes of an area with some components, on this processor.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        available: u64,
        mxcsr_mask: u32,
        size: impl FnOnce(u64) -> usize,
    ) -> Result<(), BadState> {
        let bytes = self.area.len();
        let header = self.area.get(..HEADER_END).ok_or(BadState::Short { bytes, needed: HEADER_END })?;
        let saved = word(header, XSTATE_BV);
        if saved & !available != 0 {
            return Err(BadState::Components { saved, available });
        }
        let needed = size(saved);
        if bytes < needed {
            return Err(BadState::Short { bytes, needed });
        }
        if header.iter().skip(XCOMP_BV).any(|byte| *byte != 0) {
            return Err(BadState::NotStandard);
        }
        let mxcsr = word(header, MXCSR) as u32;
        if mxcsr & !mxcsr_mask != 0 { Err(BadState::Mxcsr(mxcsr)) } else { Ok(()) }
    }
}

/// Bytes of an area with these components on the host's processor.
pub(super) fn size_on_host(components: u64) -> usize {
    let leaf = |component| host_cpuid::query(MAX_BASIC, component);
    usize::try_from(area_size(components, false, leaf)).unwrap_or(usize::MAX)
}

/// The eight bytes at `at`, which is inside.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The debug registers that make breakpoints (SDM vol. 3, 18.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakpoints {
    /// DR0 to DR3: linear addresses.
    pub addresses: [u64; 4],
    /// DR7: which of them are enabled, for what accesses, of which length.
    pub control: u64,
}

/// Breakpoints that a virtual CPU cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBreakpoints {
    /// What runs the guest loads no debug registers.
    #[error("{0} loads no debug registers for a guest; single-step with RFLAGS.TF instead")]
    Absent(&'static str),
    /// An enabled one is in the hypervisor's range.
    #[error("a breakpoint at {0:#x} would be in the hypervisor's range of addresses")]
    Hypervisors(u64),
    /// DR7 has bits other than those that enable and describe the four breakpoints.
    #[error("DR7 {0:#x} has bits that no breakpoint needs")]
    Control(u64),
    /// The host refuses them.
    #[error("the host refuses the breakpoints")]
    Refused,
}

/// DR7: L0 to G3, and the fields that describe them. LE, GE, RTM and GD are not among them.
const BREAKPOINT_BITS: u64 = 0xffff_00ff;

impl Breakpoints {
    /// Whether the breakpoints that are enabled concern the guest alone.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), NoBreakpoints> {
        if self.control & !BREAKPOINT_BITS != 0 {
            return Err(NoBreakpoints::Control(self.control));
        }
        let enabled = (0u32..).zip(self.addresses).filter(|(n, _)| self.control >> (2 * n) & 0b11 != 0);
        match enabled.map(|(_, address)| address).find(|address| addr::is_hypervisor(*address)) {
            Some(address) => Err(NoBreakpoints::Hypervisors(address)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: u64 = X87 | SSE;
    const MASK: u32 = 0xffff;

    /// As on a processor whose AVX state follows the header.
    fn size(components: u64) -> usize {
        if components & 0b100 != 0 { HEADER_END + 256 } else { HEADER_END }
    }

    fn changed(at: usize, byte: u8) -> VectorState {
        let mut area = VectorState::reset().area;
        area[at] = byte;
        VectorState::from_area(area)
    }

    #[test]
    fn a_damaged_state_is_refused() {
        assert_eq!(VectorState::reset().check(BOTH, MASK, size), Ok(()));
        assert_eq!(
            VectorState::from_area(vec![0; 575]).check(BOTH, MASK, size),
            Err(BadState::Short { bytes: 575, needed: HEADER_END })
        );
        let components = BadState::Components { saved: 4, available: BOTH };
        assert_eq!(changed(XSTATE_BV, 4).check(BOTH, MASK, size), Err(components));
        assert_eq!(changed(XCOMP_BV + 7, 0x80).check(BOTH, MASK, size), Err(BadState::NotStandard));
        assert_eq!(changed(HEADER_END - 1, 1).check(BOTH, MASK, size), Err(BadState::NotStandard));
        assert_eq!(changed(MXCSR + 2, 1).check(BOTH, MASK, size), Err(BadState::Mxcsr(0x1_1f80)));
    }

    /// Without the check, registers whose bytes a truncated file has lost would be loaded as zeroes.
    #[test]
    fn a_truncated_component_is_refused() {
        let mut area = VectorState::reset().area;
        area[XSTATE_BV] = 0b111;
        area.resize(HEADER_END + 255, 0);
        let short = BadState::Short { bytes: HEADER_END + 255, needed: HEADER_END + 256 };
        assert_eq!(VectorState::from_area(area.clone()).check(0b111, MASK, size), Err(short));
        area.push(0);
        assert_eq!(VectorState::from_area(area).check(0b111, MASK, size), Ok(()));
    }

    #[test]
    fn what_is_as_after_a_reset_can_be_spelled_out() {
        let mut area = vec![0xff; HEADER_END + 256];
        area[XSTATE_BV..HEADER_END].fill(0);
        area[XSTATE_BV] = 0b100;
        let out = VectorState::from_area(area).spelled_out();
        assert_eq!((out[0], out[1], out[2], out[XSTATE_BV]), (0x7f, 0x03, 0, 0b111));
        assert!(out[X87_REGISTERS].iter().chain(&out[XMM_REGISTERS]).all(|byte| *byte == 0));
        assert!(out[MXCSR..X87_REGISTERS.start].iter().chain(&out[HEADER_END..]).all(|byte| *byte == 0xff));
    }

    #[test]
    fn breakpoints_are_the_guests_own() {
        let at = |address, control| Breakpoints { addresses: [0, address, 0, 0], control }.check();
        let ours = addr::HYPERVISOR_VIRT_START;
        assert_eq!(at(0x1000, 0b100), Ok(()));
        assert_eq!(at(ours, 0b100), Err(NoBreakpoints::Hypervisors(ours)));
        assert_eq!(at(ours, 0b1), Ok(()), "another is enabled");
        assert_eq!(at(0x1000, 1 << 13), Err(NoBreakpoints::Control(1 << 13)), "GD");
    }

    proptest! {
        #[test]
        fn any_bytes(area in prop::collection::vec(any::<u8>(), 0..700), available: u64, mask: u32) {
            let _ = VectorState::from_area(area).check(available, mask, size);
        }
    }
}
