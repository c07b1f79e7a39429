//! Page-table entries of x86-64 long mode, as in MMU updates.
//!
//! An entry is a machine frame number in [`ADDR_MASK`] and flags around it. Source: SDM vol. 3, 4.5 (4-level paging).

/// The entry is present.
pub const PRESENT: u64 = 1 << 0;
/// Stores are allowed.
pub const RW: u64 = 1 << 1;
/// Accesses from CPL 3 are allowed.
pub const USER: u64 = 1 << 2;
/// Page-level write-through: bit 0 of the index into the PAT.
pub const PWT: u64 = 1 << 3;
/// Page-level cache disable: bit 1 of the index into the PAT.
pub const PCD: u64 = 1 << 4;
/// The entry was used in a translation.
pub const ACCESSED: u64 = 1 << 5;
/// The page was stored to; for entries that map a page.
pub const DIRTY: u64 = 1 << 6;
/// In an L2 or L3 entry: it maps a large page.
pub const PSE: u64 = 1 << 7;
/// In an L1 entry: bit 2 of the index into the PAT.
pub const PAT: u64 = 1 << 7;
/// The translation survives a change of CR3 when CR4.PGE is set.
pub const GLOBAL: u64 = 1 << 8;
/// First bit that the processor leaves to software.
pub const AVAIL0: u64 = 1 << 9;
/// Second bit that the processor leaves to software.
pub const AVAIL1: u64 = 1 << 10;
/// Third bit that the processor leaves to software.
pub const AVAIL2: u64 = 1 << 11;
/// The machine address of the frame: bits 12 to 51.
pub const ADDR_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Bits 52 to 62, which the processor ignores (without protection keys).
pub const AVAIL_HIGH_MASK: u64 = 0x7ff0_0000_0000_0000;
/// Instruction fetches are not allowed.
pub const NX: u64 = 1 << 63;

/// An entry that maps frame `mfn` with `flags`. Bits of `mfn` beyond [`ADDR_MASK`] are dropped.
#[must_use]
pub const fn make(mfn: u64, flags: u64) -> u64 {
    ((mfn << 12) & ADDR_MASK) | (flags & !ADDR_MASK)
}

/// The frame number in an entry.
#[must_use]
pub const fn mfn(entry: u64) -> u64 {
    (entry & ADDR_MASK) >> 12
}

/// The flags of an entry: everything around its frame number.
#[must_use]
pub const fn flags(entry: u64) -> u64 {
    entry & !ADDR_MASK
}

/// Whether an entry has [`PRESENT`] set.
#[must_use]
pub const fn is_present(entry: u64) -> bool {
    entry & PRESENT != 0
}

const _: () = {
    let entry = make(0x12_3456, PRESENT | RW | NX);
    assert!(mfn(entry) == 0x12_3456 && flags(entry) == PRESENT | RW | NX && is_present(entry));
    assert!(entry == 0x8000_0001_2345_6003);
};
