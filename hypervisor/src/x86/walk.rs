//! The page walk: translates a linear address by a guest's own four-level tables.
//!
//! Used for a paravirtual guest's memory (its tables hold machine addresses), for a bare guest's (its tables
//! hold guest-physical addresses) and by the shadow code, which needs each step. A guest can write anything into its
//! tables, so every address in them is translated and checked before it is read. Nothing is written here: the caller
//! sets accessed and dirty bits.
//!
//! Formats: Intel SDM vol. 3, 4.5 (4-level paging), 4.6 (access rights), 4.7 (error codes).

use paravane_abi::{addr, pte};

use super::exception::page_error;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SHIFT};

/// Turns an address found in a page table (or CR3) into machine memory.
pub trait PhysicalMap {
    /// The machine address behind `addr`, `None` where there is no memory.
    fn machine(&self, memory: &MachineMemory, addr: u64) -> Option<Maddr>;
}

/// Tables that hold machine addresses: a paravirtual guest's.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineTables;

impl PhysicalMap for MachineTables {
    fn machine(&self, memory: &MachineMemory, addr: u64) -> Option<Maddr> {
        let maddr = Maddr(addr);
        memory.is_frame(maddr.mfn()).then_some(maddr)
    }
}

/// Tables that hold pseudo-physical addresses: a bare guest's.
#[derive(Clone, Copy, Debug, Default)]
pub struct PseudoPhysicalTables;

impl PhysicalMap for PseudoPhysicalTables {
    fn machine(&self, memory: &MachineMemory, addr: u64) -> Option<Maddr> {
        let Maddr(frame) = memory.pfn_to_mfn(Maddr(addr).mfn().0)?.maddr();
        Some(Maddr(frame | Maddr(addr).offset()))
    }
}

/// An access to a linear address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A store. Needs a writable page at either privilege: CR0.WP is taken to be set.
    pub write: bool,
    /// Made with the rights of CPL 3.
    pub user: bool,
    /// An instruction fetch.
    pub fetch: bool,
}

impl Access {
    /// The bits of a page fault's error code that only depend on the access (SDM vol. 3, 4.7).
    fn error_code(self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.write, page_error::WRITE)
            | bit(self.user, page_error::USER)
            | bit(self.fetch, page_error::FETCH)
    }
}

/// Why a walk found no translation, or one that does not allow the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkFault {
    /// Bits 63..=47 differ: #GP or #SS on real hardware, not a page fault.
    #[error("linear address is not canonical; use one below 2^47 or at or above -2^47")]
    NotCanonical,
    /// An entry is not present.
    #[error("the L{level} entry is not present; map the page first")]
    NotPresent {
        /// Level of the table that holds the entry.
        level: u8,
    },
    /// An entry has a reserved bit set.
    #[error("the L{level} entry has a reserved bit set; clear it")]
    Reserved {
        /// Level of the table that holds the entry.
        level: u8,
    },
    /// The root, or an entry, names a table where there is no memory.
    #[error("the table of level {level} lies outside memory; point its parent at one of your own frames")]
    NoTable {
        /// Level of the table that is missing.
        level: u8,
    },
    /// The page is present, but its rights do not allow the access.
    #[error("the page's rights do not allow this access; map it with the rights it needs")]
    Denied,
}

impl WalkFault {
    /// The error code of the page fault that `access` raises; `None` where it raises another exception.
    pub fn error_code(self, access: Access) -> Option<u32> {
        match self {
            Self::NotCanonical => None,
            Self::NotPresent { .. } | Self::NoTable { .. } => Some(access.error_code()),
            Self::Reserved { .. } => Some(access.error_code() | page_error::PRESENT | page_error::RESERVED),
            Self::Denied => Some(access.error_code() | page_error::PRESENT),
        }
    }
}

/// One entry that a walk read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Where the entry is in machine memory.
    pub entry: Maddr,
    /// What it held.
    pub value: u64,
}

/// The translation of a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The address that the tables yield, in the guest's terms.
    pub physical: u64,
    /// The machine address behind it; `None` where there is no memory (a bare guest's device registers).
    pub maddr: Option<Maddr>,
    /// Every level allows writing.
    pub writable: bool,
    /// Every level allows CPL 3.
    pub user: bool,
    /// No level forbids execution.
    pub executable: bool,
    /// Level of the entry that maps the page: 1 (4 KiB), 2 (2 MiB) or 3 (1 GiB).
    pub level: u8,
    /// The entries, that of the L4 table first; those below `level` are zero.
    steps: [Step; 4],
}

impl Translation {
    /// The entry in the table of `level` (1..=4), if the walk read one there.
    pub fn step(&self, level: u8) -> Option<Step> {
        let index = 4usize.checked_sub(usize::from(level))?;
        if level < self.level { None } else { self.steps.get(index).copied() }
    }
    /// The entry that maps the page.
    pub fn leaf(&self) -> Step {
        self.step(self.level).unwrap_or_default()
    }
    /// Bytes in the page that maps the address.
    pub fn page_size(&self) -> u64 {
        leaf_size(self.level)
    }
    /// Whether the page allows `access` (SDM vol. 3, 4.6.1).
    pub fn allows(&self, access: Access) -> bool {
        (!access.write || self.writable) && (!access.user || self.user) && (!access.fetch || self.executable)
    }
}

const fn leaf_size(level: u8) -> u64 {
    1 << (PAGE_SHIFT + 9 * (level as u32).saturating_sub(1))
}

/// Where in its table of `level` the entry of `va` is, in bytes.
fn entry_offset(va: u64, level: u8) -> u64 {
    addr::table_index(va, level.into()) as u64 * 8
}

/// Walks the tables from the L4 table at `root` (an address in the guest's terms; its low 12 bits are ignored).
pub fn walk(
    memory: &MachineMemory,
    map: &impl PhysicalMap,
    root: u64,
    va: u64,
) -> Result<Translation, WalkFault> {
    if !addr::is_canonical(va) {
        return Err(WalkFault::NotCanonical);
    }
    let mut steps = [Step::default(); 4];
    let mut table = root & pte::ADDR_MASK;
    let (mut allowed, mut executable) = (pte::RW | pte::USER, true);
    for (step, level) in steps.iter_mut().zip([4u8, 3, 2, 1]) {
        let entry =
            map.machine(memory, table + entry_offset(va, level)).ok_or(WalkFault::NoTable { level })?;
        let value = memory.load_u64(entry).map_err(|_| WalkFault::NoTable { level })?;
        if value & pte::PRESENT == 0 {
            return Err(WalkFault::NotPresent { level });
        }
        *step = Step { entry, value };
        allowed &= value;
        executable &= value & pte::NX == 0;
        let leaf = level == 1 || value & pte::PSE != 0;
        if !leaf {
            table = value & pte::ADDR_MASK;
            continue;
        }
        let offset = leaf_size(level) - 1;
        // Bit 12 of a large leaf is PAT; those between it and the frame's own are reserved.
        let reserved = if level == 1 { 0 } else { pte::ADDR_MASK & offset & !(1 << 12) };
        if level == 4 || value & reserved != 0 {
            return Err(WalkFault::Reserved { level });
        }
        let physical = (value & pte::ADDR_MASK & !offset) | (va & offset);
        return Ok(Translation {
            physical,
            maddr: map.machine(memory, physical),
            writable: allowed & pte::RW != 0,
            user: allowed & pte::USER != 0,
            executable,
            level,
            steps,
        });
    }
    // The level-1 step always returns.
    Err(WalkFault::NoTable { level: 0 })
}

/// Finds the entry of `va` in the table of `level` (1..=4), present or not.
///
/// A large page above that level ends the search as [`WalkFault::NoTable`].
pub fn find_entry(
    memory: &MachineMemory,
    map: &impl PhysicalMap,
    root: u64,
    va: u64,
    level: u8,
) -> Result<Step, WalkFault> {
    if !addr::is_canonical(va) {
        return Err(WalkFault::NotCanonical);
    }
    let mut table = root & pte::ADDR_MASK;
    for at in [4u8, 3, 2, 1] {
        let entry =
            map.machine(memory, table + entry_offset(va, at)).ok_or(WalkFault::NoTable { level: at })?;
        let value = memory.load_u64(entry).map_err(|_| WalkFault::NoTable { level: at })?;
        if at <= level {
            return Ok(Step { entry, value });
        }
        if value & pte::PRESENT == 0 {
            return Err(WalkFault::NotPresent { level: at });
        }
        if value & pte::PSE != 0 {
            break;
        }
        table = value & pte::ADDR_MASK;
    }
    Err(WalkFault::NoTable { level })
}

/// As [`walk`], and checks that the page allows `access`.
pub fn walk_for(
    memory: &MachineMemory,
    map: &impl PhysicalMap,
    root: u64,
    va: u64,
    access: Access,
) -> Result<Translation, WalkFault> {
    let translation = walk(memory, map, root, va)?;
    if translation.allows(access) { Ok(translation) } else { Err(WalkFault::Denied) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::machine::memory::{Backing, Mfn, PAGE_SIZE};
    use crate::x86::walk::*;

    const RW_USER: u64 = pte::PRESENT | pte::RW | pte::USER;

    /// Four hypervisor frames, then tables L4..L1 in PFNs 0..=3 and a page in PFN 4.
    fn memory(tables: impl Fn(u64) -> u64) -> MachineMemory {
        let m = MachineMemory::new(4, 8, Backing::Anonymous).unwrap();
        for (pfn, level) in [(0u64, 4u8), (1, 3), (2, 2), (3, 1)] {
            let entry = Maddr((4 + pfn) * PAGE_SIZE + entry_offset(VA, level));
            m.store_u64(entry, tables(pfn + 1) | RW_USER).unwrap();
        }
        m
    }

    const VA: u64 = 0xffff_8123_4567_89ab;

    fn entry(level: u8) -> Maddr {
        Maddr((4 + 4 - u64::from(level)) * PAGE_SIZE + entry_offset(VA, level))
    }

    fn set(m: &MachineMemory, level: u8, change: impl Fn(u64) -> u64) {
        m.store_u64(entry(level), change(m.load_u64(entry(level)).unwrap())).unwrap();
    }

    #[test]
    fn machine_and_pseudo_physical_tables() {
        let machine = memory(|pfn| (4 + pfn) * PAGE_SIZE);
        let t = walk(&machine, &MachineTables, 4 * PAGE_SIZE, VA).unwrap();
        assert_eq!((t.physical, t.maddr, t.level), (0x89ab, Some(Maddr(0x89ab)), 1));
        assert_eq!(t.leaf().entry, entry(1));
        assert_eq!(t.step(4).map(|s| s.entry), Some(entry(4)));

        let pseudo = memory(|pfn| pfn * PAGE_SIZE);
        let t = walk(&pseudo, &PseudoPhysicalTables, 0x18, VA).unwrap();
        assert_eq!((t.physical, t.maddr), (0x49ab, Some(Maddr(0x89ab))));
        assert!(t.writable && t.user && t.executable);
    }

    #[test]
    fn entries_are_found_whether_present_or_not() {
        let m = memory(|pfn| (4 + pfn) * PAGE_SIZE);
        let find = |level| find_entry(&m, &MachineTables, Mfn(4).maddr().0, VA, level);
        for level in 1..=4 {
            assert_eq!(find(level).map(|s| s.entry), Ok(entry(level)));
            set(&m, level, |e| e & !pte::PRESENT);
            assert_eq!(find(level).map(|s| s.value & pte::PRESENT), Ok(0));
            if level > 1 {
                assert_eq!(find(1), Err(WalkFault::NotPresent { level }));
            }
            set(&m, level, |e| e | pte::PRESENT);
        }
        set(&m, 2, |e| e | pte::PSE);
        assert_eq!(find(1), Err(WalkFault::NoTable { level: 1 }));
        assert!(find(2).is_ok());
        assert_eq!(find_entry(&m, &MachineTables, 0, 1 << 60, 1), Err(WalkFault::NotCanonical));
    }

    #[test]
    fn rights_are_those_of_every_level() {
        for level in 1..=4 {
            let m = memory(|pfn| (4 + pfn) * PAGE_SIZE);
            let go = |access| walk_for(&m, &MachineTables, Mfn(4).maddr().0, VA, access).map(|_| ());
            set(&m, level, |e| e & !pte::RW);
            let write = Access { write: true, ..Access::default() };
            assert_eq!(go(write), Err(WalkFault::Denied));
            assert_eq!(WalkFault::Denied.error_code(write), Some(0b011));
            assert_eq!(go(Access { user: true, ..Access::default() }), Ok(()));
            set(&m, level, |e| e & !pte::USER | pte::NX);
            let fetch = Access { fetch: true, ..Access::default() };
            assert_eq!(go(fetch), Err(WalkFault::Denied));
            assert_eq!(go(Access { user: true, ..Access::default() }), Err(WalkFault::Denied));
            assert_eq!(go(Access::default()), Ok(()));
            set(&m, level, |e| e & !pte::PRESENT);
            assert_eq!(go(fetch), Err(WalkFault::NotPresent { level }));
            assert_eq!(WalkFault::NotPresent { level }.error_code(fetch), Some(0b1_0000));
        }
    }

    #[test]
    fn large_leaves() {
        for (level, size) in [(2u8, 0x20_0000u64), (3, 0x4000_0000)] {
            let m = memory(|pfn| (4 + pfn) * PAGE_SIZE);
            set(&m, level, |_| RW_USER | pte::PSE | (1 << 12));
            let t = walk(&m, &MachineTables, Mfn(4).maddr().0, VA).unwrap();
            assert_eq!((t.physical, t.level, t.page_size()), (VA & (size - 1), level, size));
            assert_eq!(t.step(level - 1), None);
            set(&m, level, |e| e | (1 << 13));
            assert_eq!(walk(&m, &MachineTables, Mfn(4).maddr().0, VA), Err(WalkFault::Reserved { level }));
        }
        let m = memory(|pfn| (4 + pfn) * PAGE_SIZE);
        set(&m, 4, |e| e | pte::PSE);
        assert_eq!(walk(&m, &MachineTables, Mfn(4).maddr().0, VA), Err(WalkFault::Reserved { level: 4 }));
    }

    #[test]
    fn what_lies_outside() {
        let m = memory(|pfn| (4 + pfn) * PAGE_SIZE);
        let root = Mfn(4).maddr().0;
        assert_eq!(walk(&m, &MachineTables, root, 1 << 47), Err(WalkFault::NotCanonical));
        assert_eq!(walk(&m, &MachineTables, 1 << 40, VA), Err(WalkFault::NoTable { level: 4 }));
        set(&m, 2, |_| RW_USER | (1 << 40));
        assert_eq!(walk(&m, &MachineTables, root, VA), Err(WalkFault::NoTable { level: 1 }));
        set(&m, 2, |_| RW_USER | (7 * PAGE_SIZE));
        set(&m, 1, |_| RW_USER | (1 << 40));
        let t = walk(&m, &MachineTables, root, VA).unwrap();
        assert_eq!((t.physical >> 12, t.maddr), (1 << 28, None));
    }

    proptest! {
        /// A walk of arbitrary tables ends, and its result lies in memory.
        #[test]
        fn any_tables(words in prop::collection::vec(any::<u64>(), 512), root: u64, va: u64, low: bool) {
            let m = MachineMemory::new(1, 4, Backing::Anonymous).unwrap();
            for (i, word) in (0u64..).zip(words) {
                // Half the runs keep addresses small, so that walks go deep.
                let word = if low { word & (0x3fff | pte::NX) | pte::PRESENT } else { word };
                for frame in 0..5 {
                    m.store_u64(Maddr(frame * PAGE_SIZE + i * 8), word).unwrap();
                }
            }
            let root = if low { root & 0x3fff } else { root };
            let va = if low { va & ((1 << 47) - 1) } else { va };
            let results = [walk(&m, &MachineTables, root, va), walk(&m, &PseudoPhysicalTables, root, va)];
            for t in results.into_iter().flatten() {
                prop_assert_eq!(t.physical & 0xfff, va & 0xfff);
                prop_assert!(t.maddr.is_none_or(|a| m.is_frame(a.mfn())));
                prop_assert!(t.leaf().value & pte::PRESENT != 0);
            }
        }
    }
}
