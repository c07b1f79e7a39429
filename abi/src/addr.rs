//! The layout of a guest's virtual address space, and its units.
//!
//! Source: public/arch-x86/xen-x86_64.h.

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a frame: the unit of every frame number and count of pages in this ABI.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The bits of an address that lie within a page.
pub const PAGE_OFFSET_MASK: u64 = PAGE_SIZE - 1;
/// Entries in a page table of any level.
pub const PT_ENTRIES: usize = 512;

/// First virtual address of the range that belongs to the hypervisor in every address space.
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First virtual address after the hypervisor's range.
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// First L4 slot that a guest may neither fill nor change: the one of [`HYPERVISOR_VIRT_START`].
pub const RESERVED_L4_FIRST: usize = 256;
/// Last L4 slot that a guest may neither fill nor change.
pub const RESERVED_L4_LAST: usize = 271;

/// Conventional start of the machine-to-physical table, read-only for guests. A guest must ask for the actual address
/// with `XENMEM_machphys_mapping`, because the table is elsewhere if the host cannot provide this address.
pub const MACH2PHYS_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First virtual address after the conventional machine-to-physical table.
pub const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;
/// Entries (of 8 bytes, one per machine frame) that the conventional machine-to-physical range has room for.
pub const MACH2PHYS_NR_ENTRIES: u64 = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3;
/// The machine-to-physical table's entry for a frame that belongs to no pseudo-physical page.
pub const INVALID_M2P_ENTRY: u64 = u64::MAX;
/// A physical-to-machine list's entry for a page without a frame.
pub const INVALID_P2M_ENTRY: u64 = u64::MAX;

/// The entry of a table of `level` (1 to 4) that translates `va`; 0 for any other level.
#[must_use]
pub const fn table_index(va: u64, level: u32) -> usize {
    match level {
        1..=4 => ((va >> (PAGE_SHIFT + 9 * (level - 1))) & 0x1ff) as usize,
        _ => 0,
    }
}

/// Whether `va` is canonical with 48 significant bits (SDM vol. 1, 3.3.7.1).
#[must_use]
pub const fn is_canonical(va: u64) -> bool {
    let high = va >> 47;
    high == 0 || high == 0x1_ffff
}

/// Whether `va` lies in the range that belongs to the hypervisor.
#[must_use]
pub const fn is_hypervisor(va: u64) -> bool {
    va >= HYPERVISOR_VIRT_START && va < HYPERVISOR_VIRT_END
}

const _: () = {
    assert!(table_index(HYPERVISOR_VIRT_START, 4) == RESERVED_L4_FIRST);
    assert!(table_index(HYPERVISOR_VIRT_END - 1, 4) == RESERVED_L4_LAST);
    assert!(is_hypervisor(HYPERVISOR_VIRT_START) && !is_hypervisor(HYPERVISOR_VIRT_END));
    assert!(is_canonical(HYPERVISOR_VIRT_START) && !is_canonical(0x0000_8000_0000_0000));
};
