//! The lowest linear address that a guest process may map: Linux keeps low pages from unprivileged processes
//! (`vm.mmap_min_addr`, so that a null pointer of the kernel's leads nowhere).
//!
//! Distributions set the limit to [`USUAL`]; a host may set another. The capability CAP_SYS_RAWIO lifts it. Where
//! root runs a guest whose mapping begins lower, the guest process's mapper keeps that one capability. What may not
//! be done here: looking at a guest. Most kernels are linked above [`USUAL`], and then nothing here asks the host.

use std::fs::File;
use std::io::Read;

use super::sys;

/// What distributions set. From here up every guest process can map, and nobody need ask.
pub const USUAL: u64 = 0x1_0000;
/// Where Linux publishes the limit.
const LIMIT: &str = "/proc/sys/vm/mmap_min_addr";

/// What can be mapped of the lowest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowest {
    /// The first address that can be mapped, page-aligned.
    pub address: u64,
    /// Whether that takes CAP_SYS_RAWIO.
    pub privileged: bool,
}

impl Lowest {
    /// What needs no question: every host that runs the engine allows it.
    pub const ASSUMED: Self = Self { address: USUAL, privileged: false };

    /// The lowest addresses that a guest whose mapping begins at `from` can have.
    ///
    /// Asks the host only if that is below `USUAL`; costs a few system calls then.
    pub fn for_guest(from: u64) -> Self {
        if from >= USUAL {
            return Self::ASSUMED;
        }
        let unprivileged = unprivileged();
        // Nobody else's capabilities outlast the exec that a guest process begins with.
        if from >= unprivileged || !sys::is_root() || !sys::can_map(from & !0xfff) {
            return Self { address: unprivileged, privileged: false };
        }
        Self { address: from & !0xfff, privileged: true }
    }
}

/// The limit for a process without capabilities, as the host has it now.
pub(super) fn unprivileged() -> u64 {
    let mut text = [0; 24];
    let told = File::open(LIMIT).and_then(|mut file| file.read(&mut text)).ok();
    let digits = told.and_then(|len| text.get(..len)).map(<[u8]>::trim_ascii);
    let limit = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    // A security module may forbid what the limit allows.
    limit
        .and_then(|limit| limit.checked_next_multiple_of(crate::machine::memory::PAGE_SIZE))
        .filter(|limit| *limit < USUAL && sys::can_map(*limit))
        .unwrap_or(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_linked_where_most_are_asks_nobody() {
        assert_eq!(Lowest::for_guest(USUAL), Lowest::ASSUMED);
        assert_eq!(Lowest::for_guest(u64::MAX), Lowest::ASSUMED);
    }

    #[test]
    fn what_is_promised_can_be_mapped() {
        for from in [0, 0x1000, 0x1fff, USUAL - 1] {
            let lowest = Lowest::for_guest(from);
            assert!(lowest.address <= USUAL && lowest.address.is_multiple_of(4096), "{lowest:?}");
            assert!(sys::can_map(lowest.address), "{lowest:?}");
        }
    }
}
