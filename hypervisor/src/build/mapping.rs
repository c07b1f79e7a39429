//! The initial mapping: which virtual range a domain begins with, and whether it can.
//!
//! As Xen gives it (public header `xen.h`, "Start-of-day memory layout"): contiguous, from the image's
//! virtual base on, ending at an aligned 4 MiB boundary with at least 512 KiB to spare. Arithmetic only.

use paravane_abi::addr::{HYPERVISOR_VIRT_END, is_canonical};

use super::BuildError;
use super::tables::Tables;
use crate::machine::memory::{PAGE_SHIFT, PAGE_SIZE};

/// Pages in 4 MiB: what the mapping's end is aligned to.
const END_ALIGN: u64 = (4 << 20) / PAGE_SIZE;
/// Pages in 512 KiB: what is spare at least.
const SPARE: u64 = (512 << 10) / PAGE_SIZE;

/// Pages that hold `bytes` bytes.
pub(super) const fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}

/// How large the initial mapping is, and how many tables it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InitialMapping {
    /// Tables that map it, themselves included in `pages`.
    pub tables: u64,
    /// Pages that are mapped.
    pub pages: u64,
}

impl InitialMapping {
    /// Sizes the mapping of `used` pages at `virt_base` plus the tables for it.
    pub fn new(virt_base: u64, used: u64) -> Self {
        let first_page = virt_base >> PAGE_SHIFT;
        let mut tables = 0;
        loop {
            let end = (first_page + used + tables + SPARE).next_multiple_of(END_ALIGN);
            let pages = end - first_page;
            // More tables never make for fewer pages, and 512 pages need one more: this ends.
            match Tables::count(virt_base, pages) {
                enough if enough <= tables => return Self { tables, pages },
                more => tables = more,
            }
        }
    }
}

/// Where a guest's kernel may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressLimits {
    /// First address that is usable: nothing may be loaded below. What is mapped may begin lower, for a kernel that is
    /// linked higher seldom touches that.
    pub lower_half_start: u64,
    /// First address past what is usable in the lower half.
    pub lower_half_end: u64,
    /// Whether the part of the upper half that Xen leaves to guests is usable.
    pub upper_half: bool,
}

impl AddressLimits {
    /// What Xen gives a 64-bit guest: everything but 0xffff800000000000 to 0xffff87ffffffffff.
    pub const XEN: Self = Self { lower_half_start: 0, lower_half_end: 1 << 47, upper_half: true };

    /// Checks that an image of `bytes` bytes can be loaded at `va`.
    pub(super) fn check_start(&self, va: u64, bytes: u64) -> Result<(), BuildError> {
        if va >= self.lower_half_start { Ok(()) } else { Err(BuildError::VirtualRange { va, bytes }) }
    }

    /// Checks that so many bytes at `va` can be mapped for a guest that was saved.
    ///
    /// # Errors
    /// When they cannot.
    pub fn check_range(&self, va: u64, bytes: u64) -> Result<(), BuildError> {
        self.check(va, pages(bytes).max(1))
    }

    /// Checks that `pages` pages at `va` can be mapped for the guest.
    pub(super) fn check(&self, va: u64, pages: u64) -> Result<(), BuildError> {
        let last = pages.checked_mul(PAGE_SIZE).and_then(|bytes| va.checked_add(bytes - 1));
        let usable = last.is_some_and(|last| {
            is_canonical(va) && (last < self.lower_half_end || self.upper_half && va >= HYPERVISOR_VIRT_END)
        });
        let bytes = pages.saturating_mul(PAGE_SIZE);
        if usable { Ok(()) } else { Err(BuildError::VirtualRange { va, bytes }) }
    }
}

#[cfg(test)]
mod tests {
    use crate::build::mapping::*;

    #[test]
    fn the_end_is_aligned_with_room_to_spare() {
        for base in [0u64, 0x4000_0000, 0xffff_ffff_8000_0000, 0x40_0000 * 511 + 0x1000] {
            for used in [1, 800, 891, 892, 1020, 100_000, 1 << 20] {
                let m = InitialMapping::new(base, used);
                assert_eq!(base.wrapping_add(m.pages * PAGE_SIZE) % (4 << 20), 0);
                assert!(m.pages >= used + m.tables + SPARE);
                assert!(m.tables >= Tables::count(base, m.pages));
                assert!(m.pages < used + m.tables + SPARE + END_ALIGN, "no larger than it must be");
            }
        }
    }

    #[test]
    fn ranges_that_no_guest_may_have() {
        let ok = |limits: AddressLimits, va, pages| limits.check(va, pages).is_ok();
        let xen = AddressLimits::XEN;
        assert!(ok(xen, 0, 1));
        assert!(ok(xen, 0xffff_ffff_8000_0000, 1 << 19), "up to the very end");
        assert!(!ok(xen, 0xffff_ffff_8000_0000, (1 << 19) + 1), "not around it");
        assert!(!ok(xen, 0x7fff_ffff_f000, 2), "not into the hole");
        assert!(!ok(xen, 0xffff_8000_0000_0000, 1), "not the hypervisor's");
        assert!(!ok(xen, 0x8000_0000_0000_0000, 1), "not what is not canonical");
        assert!(!ok(xen, 0, u64::MAX));
        let low = AddressLimits { lower_half_start: 0x1_0000, lower_half_end: 1 << 32, upper_half: false };
        assert!(ok(low, 0, 1024), "mapped, and not to be touched");
        assert!(low.check_start(0xf000, 1).is_err() && low.check_start(0x1_0000, 1).is_ok());
        assert!(ok(low, 0x4000_0000, 1024));
        assert!(!ok(low, 0xffff_ffff_8000_0000, 1024));
        assert!(!ok(low, 0xffff_f000, 2));
    }
}
