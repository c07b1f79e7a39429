//! From a guest's entry to the shadow's: pure functions of bits.
//!
//! Code here may not access memory or the state of the shadow.

use paravane_abi::pte;

use super::view::View;
use crate::machine::memory::Mfn;
use crate::mmu::guest::Controls;

/// Accessed and dirty are set in every shadow entry, so that no engine ever writes to one by itself.
pub(super) const BASE: u64 = pte::PRESENT | pte::USER | pte::ACCESSED | pte::DIRTY;

/// Whether a guest entry is present and usable by `view` without a fault that the guest must see.
pub(super) const fn usable(entry: u64, view: View, controls: Controls) -> bool {
    let needed = match view {
        View::Kernel => pte::PRESENT | pte::ACCESSED,
        View::User => pte::PRESENT | pte::ACCESSED | pte::USER,
    };
    entry & needed == needed && (controls.no_execute || entry & pte::NX == 0)
}

/// The rights of a guest entry in `view`, as the W and NX bits of the shadow's entry.
const fn rights(entry: u64, view: View, controls: Controls) -> u64 {
    let ignores_rw = !controls.write_protect && matches!(view, View::Kernel);
    let writable = if ignores_rw { pte::RW } else { entry & pte::RW };
    writable | entry & pte::NX
}

/// The shadow of a guest entry that refers to a table, whose shadow is `child`.
pub(super) const fn table(entry: u64, child: Mfn, view: View, controls: Controls) -> u64 {
    BASE | child.0 << 12 | rights(entry, view, controls)
}

/// The shadow of a guest entry that maps a large page, which the table `child` splits into small ones.
pub(super) const fn split(entry: u64, child: Mfn, view: View, controls: Controls) -> u64 {
    without_write_unless(table(entry, child, view, controls), entry & pte::DIRTY != 0)
}

/// An entry inside a split large page that refers to the next table: all rights, for the levels above have them.
pub(super) const fn split_table(child: Mfn) -> u64 {
    BASE | pte::RW | child.0 << 12
}

/// The shadow of a guest L1 entry that maps `frame`.
pub(super) const fn leaf(entry: u64, frame: Mfn, protected: bool, view: View, controls: Controls) -> u64 {
    let all = BASE | frame.0 << 12 | rights(entry, view, controls);
    without_write_unless(all, entry & pte::DIRTY != 0 && !protected)
}

/// A small page of a split large one.
pub(super) const fn split_leaf(frame: Mfn, protected: bool) -> u64 {
    without_write_unless(BASE | pte::RW | frame.0 << 12, !protected)
}

const fn without_write_unless(entry: u64, condition: bool) -> u64 {
    if condition { entry } else { entry & !pte::RW }
}
