//! The slots of a table: which are the hypervisor's, and which one translates an address.

use paravane_abi::addr;

pub(super) const RESERVED_FIRST: u64 = addr::RESERVED_L4_FIRST as u64;
pub(super) const RESERVED_COUNT: usize = addr::RESERVED_L4_LAST - addr::RESERVED_L4_FIRST + 1;

pub(super) fn is_reserved_slot(slot: u64) -> bool {
    (RESERVED_FIRST..RESERVED_FIRST + RESERVED_COUNT as u64).contains(&slot)
}

/// The entry of a table of `level` that translates `va`.
pub(super) fn slot(va: u64, level: u8) -> u64 {
    addr::table_index(va, level.into()) as u64
}
