//! Which bits a guest may put into a page-table entry, and which the hypervisor puts there.
//!
//! Pure functions of one word. The frame table deals with the frames that entries refer to.
//! Facts: public/xen.h (the comment on MMU_NORMAL_PT_UPDATE) and SDM vol. 3, tables 4-14 to 4-20.

use paravane_abi::pte;

use super::frame::Level;
use crate::machine::memory::{Maddr, Mfn};

/// Marks a leaf that the guest's kernel made without US. US is set nevertheless, because on x86-64 the kernel, too,
/// runs at CPL 3. This is the first of the bits that the processor leaves to software.
pub const GUEST_KERNEL: u64 = 1 << 52;

/// Not allowed: the host decides about caching, and bit 7 would make a superpage or a PAT index.
const NEVER: u64 = pte::PWT | pte::PCD | pte::PSE;

/// Bits that affect neither what an entry refers to nor what it allows.
const SAME_REFERENCE: u64 = !(pte::PRESENT | pte::RW | pte::ADDR_MASK);

/// The frame that an entry names.
pub const fn target(entry: u64) -> Mfn {
    Maddr(entry & pte::ADDR_MASK).mfn()
}

/// Whether a present entry has a bit that a guest may not set in a table of `level`.
pub const fn has_forbidden_bits(entry: u64, level: Level) -> bool {
    let forbidden = match level {
        Level::L1 => NEVER,
        // Above L1, G is reserved in an L4 entry and ignored in others.
        _ => NEVER | pte::GLOBAL,
    };
    entry & forbidden != 0
}

/// The entry that is stored for a present entry that the guest asked for.
///
/// US is forced: without it CPL 3, where everything of a guest runs, could not use the page. G is dropped: the
/// kernel's and the user's address space differ only in their roots, so no translation may outlive its root.
pub const fn adjust(entry: u64, level: Level) -> u64 {
    match level {
        Level::L1 if entry & pte::USER == 0 => entry & !pte::GLOBAL | pte::USER | GUEST_KERNEL,
        Level::L1 => entry & !pte::GLOBAL,
        _ => entry | pte::USER,
    }
}

/// Whether `new` refers to the same frame, with the same need for its type, as `old`.
pub const fn same_reference(old: u64, new: u64) -> bool {
    (old ^ new) & !SAME_REFERENCE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = pte::PRESENT;

    #[test]
    fn superpages_and_cache_modes_are_refused_at_every_level() {
        for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
            for bit in [pte::PSE, pte::PWT, pte::PCD] {
                assert!(has_forbidden_bits(P | bit, level));
            }
            let fine = P | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY | pte::NX | pte::AVAIL_HIGH_MASK;
            assert!(!has_forbidden_bits(fine | pte::AVAIL0 | pte::AVAIL1 | pte::AVAIL2, level));
            assert_eq!(has_forbidden_bits(P | pte::GLOBAL, level), level != Level::L1);
        }
    }

    #[test]
    fn kernel_pages_are_marked_and_nothing_is_global() {
        assert_eq!(adjust(P | pte::GLOBAL, Level::L1), P | pte::USER | GUEST_KERNEL);
        assert_eq!(adjust(P | pte::USER | pte::GLOBAL, Level::L1), P | pte::USER);
        assert_eq!(adjust(P | pte::RW, Level::L3), P | pte::RW | pte::USER);
    }

    #[test]
    fn the_fast_path_sees_presence_rights_and_frame() {
        assert!(same_reference(P, P | pte::ACCESSED | pte::NX | GUEST_KERNEL | pte::USER));
        assert!(!same_reference(P, P | pte::RW));
        assert!(!same_reference(P, 0));
        assert!(!same_reference(P, P | 0x1000));
        assert!(!same_reference(P, P | 1 << 51));
    }
}
