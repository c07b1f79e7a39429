//! The shadow, driven as a CPU and a guest's kernel would drive it.

use paravane_abi::addr::is_hypervisor as is_reserved;
use paravane_abi::pte;
use proptest::prelude::*;

use super::*;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Flush, VcpuSpace};
use crate::x86::walk;
use crate::x86::walk::{Access, MachineTables, PseudoPhysicalTables};

mod code;
mod overlay;

const SHADOW_FRAMES: u64 = 64;
const GUEST_FRAMES: u64 = 1024;
const RW_SEEN: u64 = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY;
const READ: Access = Access { write: false, user: false, fetch: false };
const WRITE: Access = Access { write: true, user: false, fetch: false };
const RESERVED_ENTRY: u64 = pte::PRESENT | pte::ACCESSED;

struct Bench {
    mem: MachineMemory,
    log: TableLog,
    space: VcpuSpace,
    shadow: Shadow,
    view: View,
}

impl Bench {
    /// Frame 0 stands for the engine's; guest tables: L4, L3, L2, L1 in PFNs 1, 2, 3, 4, linked at slot 0.
    fn new(shadow_frames: u64) -> Self {
        let mem = MachineMemory::new(1 + shadow_frames, GUEST_FRAMES, Backing::Anonymous).unwrap();
        let shadow = Shadow::new(1..1 + shadow_frames, GUEST_FRAMES, [RESERVED_ENTRY; 16]).unwrap();
        let log = TableLog::default();
        let space = VcpuSpace::new(Mfn(0), &log);
        let mut bench = Self { mem, log, space, shadow, view: View::Kernel };
        for pfn in 1..4 {
            bench.poke(pfn, 0, (pfn + 1) << 12 | RW_SEEN);
        }
        bench.activate(1 << 12);
        bench
    }
    fn activate(&mut self, cr3: u64) {
        let controls = self.shadow.controls;
        self.shadow.activate(&self.mem, &mut self.log, &mut self.space, cr3, self.view, controls).unwrap();
        assert_eq!(self.space.root(), self.shadow.root().unwrap());
    }
    fn at(&self, pfn: u64, slot: u64) -> Maddr {
        Maddr(self.mem.pfn_to_mfn(pfn).unwrap().maddr().0 + slot * 8)
    }
    fn peek(&self, pfn: u64, slot: u64) -> u64 {
        self.mem.load_u64(self.at(pfn, slot)).unwrap()
    }
    /// A store of the guest's kernel by whatever mapping: it traps if the frame is a table in use.
    fn poke(&mut self, pfn: u64, slot: u64, value: u64) -> bool {
        let at = self.at(pfn, slot);
        if self.shadow.is_table(pfn) {
            assert!(self.shadow.store(&self.mem, &mut self.log, at, &value.to_le_bytes()).unwrap());
            return true;
        }
        self.mem.store_u64(at, value).unwrap();
        false
    }
    fn release(&mut self, pfn: u64) -> bool {
        let at = self.at(pfn, 0);
        self.shadow.release(&self.mem, &mut self.log, at)
    }
    /// What the CPU finds in the shadow: the machine address and whether it may store there.
    fn cpu(&self, va: u64) -> Option<(Maddr, bool)> {
        let t = walk::walk(&self.mem, &MachineTables, self.space.root().maddr().0, va).ok()?;
        assert!(t.user, "everything runs at CPL 3");
        t.maddr.map(|maddr| (maddr, t.writable))
    }
    /// An access by the guest: what its own tables say of it, after a fill where the shadow lacked it.
    fn touch(&mut self, va: u64, access: Access) -> Result<Option<Fill>, LookupError> {
        let access = Access { user: self.view == View::User, ..access };
        let found = self.shadow.lookup(&self.mem, va, access)?;
        let Some(maddr) = found.maddr() else { return Ok(None) };
        let pfn = self.mem.mfn_to_pfn(maddr.mfn()).unwrap();
        if access.write && self.shadow.is_protected(pfn) {
            return Ok(None);
        }
        let fill = self.shadow.fill(&self.mem, &mut self.log, &mut self.space, va, &found);
        let (there, writable) = self.cpu(va).expect("a fill makes the page accessible");
        assert_eq!(there, maddr);
        assert!(!access.write || writable || self.shadow.is_protected(pfn));
        Ok(Some(fill))
    }
}

#[test]
fn a_page_is_filled_read_only_until_it_is_written() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(4, 5, 100 << 12 | pte::PRESENT | pte::RW);
    assert_eq!(b.cpu(0x5000), None);
    assert_eq!(b.touch(0x5123, READ), Ok(Some(Fill::Filled)));
    assert_eq!(b.peek(4, 5) & (pte::ACCESSED | pte::DIRTY), pte::ACCESSED);
    assert_eq!(b.cpu(0x5123), Some((Maddr(b.at(100, 0).0 + 0x123), false)));
    assert_eq!(b.touch(0x5000, WRITE), Ok(Some(Fill::Filled)));
    assert_eq!(b.peek(4, 5) & pte::DIRTY, pte::DIRTY);
    assert_eq!(b.space.pending(&b.log).flush, Flush::All, "entering the root asked for that");
    assert_eq!(b.touch(0x5000, WRITE), Ok(Some(Fill::Spurious)));
    assert_eq!(b.touch(0x6000, READ), Err(LookupError::PageFault(0)));
    b.poke(4, 6, 100 << 12 | pte::PRESENT);
    assert_eq!(b.touch(0x6000, WRITE), Err(LookupError::PageFault(0b11)));
    assert_eq!(b.touch(1 << 47, READ), Err(LookupError::NotCanonical));
}

#[test]
fn stores_to_tables_in_use_are_followed_at_once() {
    let mut b = Bench::new(SHADOW_FRAMES);
    // The tables are mapped in the address space that they make, as a kernel has it.
    for pfn in 0..16 {
        b.poke(4, pfn, pfn << 12 | RW_SEEN);
    }
    b.touch(0x9000, WRITE).unwrap();
    for pfn in 1..=4 {
        assert_eq!(b.touch(pfn << 12, WRITE), Ok(None), "table {pfn} is write-protected");
        b.touch(pfn << 12, READ).unwrap();
        assert_eq!(b.cpu(pfn << 12).map(|(_, w)| w), Some(false));
    }
    b.space.caught_up(&b.log);
    assert!(b.poke(4, 20, 200 << 12 | RW_SEEN));
    assert_eq!(b.cpu(0x14000), Some((b.at(200, 0), true)), "accessed and dirty: no second trap");
    assert_eq!(b.space.pending(&b.log).writes.iter().count(), 1);
    assert!(b.poke(4, 20, 200 << 12 | (RW_SEEN & !pte::RW)));
    assert_eq!(b.cpu(0x14000), Some((b.at(200, 0), false)));
    assert!(b.poke(4, 20, 201 << 12 | (RW_SEEN & !pte::ACCESSED)));
    assert_eq!(b.cpu(0x14000), None, "the access must be seen");
    assert!(b.poke(4, 20, 0));
    assert_eq!(b.cpu(0x14000), None);
    assert_eq!(b.space.pending(&b.log).flush, Flush::None, "that is INVLPG's business");
}

#[test]
fn a_table_is_protected_while_it_is_linked() {
    let mut b = Bench::new(SHADOW_FRAMES);
    for pfn in 0..16 {
        b.poke(4, pfn, pfn << 12 | RW_SEEN);
    }
    // Frame 5 is data, written; then it becomes the L1 table of the next 2 MiB.
    b.touch(0x5000, WRITE).unwrap();
    b.poke(5, 0, 300 << 12 | RW_SEEN);
    assert_eq!(b.cpu(0x5000).map(|(_, w)| w), Some(true));
    b.poke(3, 1, 5 << 12 | RW_SEEN);
    b.space.caught_up(&b.log);
    b.touch(0x20_0000, READ).unwrap();
    assert_eq!(b.cpu(0x5000).map(|(_, w)| w), Some(false));
    assert_eq!(b.space.pending(&b.log).flush, Flush::All);
    let tables = b.shadow.tables();
    // Unlinked, it is data again.
    b.poke(3, 1, 0);
    assert_eq!(b.shadow.tables(), tables - 1);
    assert!(!b.poke(5, 0, 1));
    assert_eq!(b.touch(0x5000, WRITE), Ok(Some(Fill::Filled)));
}

#[test]
fn address_spaces_are_kept() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(4, 1, 100 << 12 | RW_SEEN);
    b.poke(6, 0, 2 << 12 | RW_SEEN);
    b.touch(0x1000, READ).unwrap();
    let first = b.space.root();
    b.activate(6 << 12);
    assert_ne!(b.space.root(), first);
    b.touch(0x1000, READ).unwrap();
    let tables = b.shadow.tables();
    b.activate(1 << 12);
    assert_eq!((b.space.root(), b.shadow.tables()), (first, tables));
    assert!(b.cpu(0x1000).is_some(), "no refill");
    // A store through one address space is seen in the other.
    b.poke(4, 1, 101 << 12 | RW_SEEN);
    b.activate(6 << 12);
    assert_eq!(b.cpu(0x1000), Some((b.at(101, 0), true)));
    // Many more address spaces than are kept.
    for pfn in 400..440 {
        b.poke(pfn, 0, 2 << 12 | RW_SEEN);
        b.activate(pfn << 12);
        b.touch(0x1000, READ).unwrap();
    }
    assert!(b.shadow.tables() < 40);
    assert!(!b.shadow.is_table(400), "the oldest ones went");
    let controls = Controls::default();
    let outside = GUEST_FRAMES << 12;
    assert_eq!(
        b.shadow.activate(&b.mem, &mut b.log, &mut b.space, outside, View::Kernel, controls),
        Err(BadRoot(outside))
    );
}

#[test]
fn the_user_view_lacks_what_is_the_kernels() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(4, 1, 100 << 12 | (RW_SEEN & !pte::USER));
    b.poke(4, 2, 101 << 12 | RW_SEEN);
    b.touch(0x1000, READ).unwrap();
    b.view = View::User;
    b.activate(1 << 12);
    assert_eq!(b.touch(0x1000, READ), Err(LookupError::PageFault(0b101)));
    assert_eq!(b.cpu(0x1000), None);
    b.touch(0x2000, WRITE).unwrap();
    assert_eq!(b.cpu(0x2000), Some((b.at(101, 0), true)));
    // The kernel takes the page away from the user.
    b.view = View::Kernel;
    b.activate(1 << 12);
    b.poke(4, 2, 101 << 12 | (RW_SEEN & !pte::USER));
    b.view = View::User;
    b.activate(1 << 12);
    assert_eq!(b.cpu(0x2000), None);
}

#[test]
fn large_pages_are_split() {
    let mut b = Bench::new(SHADOW_FRAMES);
    let large = pte::PRESENT | pte::RW | pte::PSE;
    b.poke(3, 1, large);
    b.touch(0x20_5678, READ).unwrap();
    assert_eq!(b.cpu(0x20_5678), Some((Maddr(b.at(5, 0).0 + 0x678), false)));
    assert_eq!(b.peek(3, 1) & (pte::ACCESSED | pte::DIRTY), pte::ACCESSED);
    b.touch(0x20_5678, WRITE).unwrap();
    assert_eq!(b.cpu(0x20_5678).map(|(_, w)| w), Some(true));
    assert_eq!(b.touch(0x20_3000, WRITE), Ok(None), "a table stays read-only in a large page too");
    // 1 GiB at the second GiB; most of it is not memory.
    b.poke(2, 1, large);
    b.touch(0x4000_7000, WRITE).unwrap();
    assert_eq!(b.cpu(0x4000_7000), Some((b.at(7, 0), true)));
    assert_eq!(b.touch(0x7fff_f000, READ), Ok(None), "not memory: a device's business");
    b.poke(3, 1, 0);
    assert_eq!(b.cpu(0x20_5678), None);
    // Reserved bits.
    b.poke(3, 1, large | 1 << 13);
    assert_eq!(b.touch(0x20_0000, READ), Err(LookupError::PageFault(0b1001)));
}

#[test]
fn write_protection_and_no_execute_follow_the_control_registers() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(4, 1, 100 << 12 | (RW_SEEN & !pte::RW) | pte::NX);
    assert_eq!(b.touch(0x1000, WRITE), Err(LookupError::PageFault(0b11)));
    let fetch = Access { fetch: true, ..READ };
    assert_eq!(b.touch(0x1000, fetch), Err(LookupError::PageFault(0b1_0001)));
    b.shadow.controls.write_protect = false;
    b.touch(0x1000, WRITE).unwrap();
    assert_eq!(b.cpu(0x1000).map(|(_, w)| w), Some(true));
    b.shadow.activate(&b.mem, &mut b.log, &mut b.space, 1 << 12, View::Kernel, Controls::default()).unwrap();
    assert_eq!(b.cpu(0x1000), None, "what was derived under other rules is gone");
    let no_nx = Controls { no_execute: false, ..Controls::default() };
    b.shadow.activate(&b.mem, &mut b.log, &mut b.space, 1 << 12, View::Kernel, no_nx).unwrap();
    assert_eq!(b.touch(0x1000, READ), Err(LookupError::PageFault(0b1001)), "the bit is reserved now");
}

#[test]
fn the_hypervisors_slots_stay() {
    let mut b = Bench::new(SHADOW_FRAMES);
    assert!(is_reserved(0xffff_8000_0000_0000) && !is_reserved(0xffff_8800_0000_0000));
    let slot = |b: &Bench, n: u64| b.mem.load_u64(Maddr(b.space.root().maddr().0 + n * 8)).unwrap();
    for n in [0, 255, 256, 300] {
        b.poke(1, n, 2 << 12 | RW_SEEN);
    }
    b.touch(0, READ).unwrap_err();
    assert_eq!((slot(&b, 255), slot(&b, 256), slot(&b, 271)), (0, RESERVED_ENTRY, RESERVED_ENTRY));
    assert!(b.release(2));
    assert!(!b.release(1), "the root in use cannot go");
    assert_eq!((slot(&b, 0), slot(&b, 256)), (0, RESERVED_ENTRY));
}

#[test]
fn a_pool_too_small_is_refilled() {
    assert!(matches!(Shadow::new(0..4, 1, [0; 16]), Err(NoShadow::TooFewFrames(4))));
    let mut b = Bench::new(Shadow::MIN_FRAMES);
    for slot in 0..64 {
        b.poke(3, slot, (600 + slot) << 12 | RW_SEEN);
        b.poke(600 + slot, 0, (100 + slot) << 12 | RW_SEEN);
    }
    for round in 0..3 {
        for slot in 0..64 {
            b.touch(slot << 21, WRITE).unwrap();
            assert_eq!(b.cpu(slot << 21), Some((b.at(100 + slot, 0), true)), "round {round}");
            assert!(b.shadow.tables() as u64 <= Shadow::MIN_FRAMES);
        }
    }
    assert!(b.space.pending(&b.log).stale);
}

#[test]
fn a_frame_written_like_data_is_no_table_any_more() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(4, 1, 100 << 12 | RW_SEEN);
    b.touch(0x1000, READ).unwrap();
    assert!(b.shadow.is_table(4));
    // As a table, it may be written as often as one likes.
    for i in 0..3000 {
        assert!(b.poke(4, 2 + i % 500, (200 + i % 7) << 12 | RW_SEEN));
    }
    for i in 0..500 {
        b.poke(4, 2 + i, 0);
    }
    let traps = (0..2000u64).filter(|&i| b.poke(4, 2 + i % 500, i & !pte::PRESENT)).count();
    assert_eq!(traps, 1024);
    assert!(!b.shadow.is_table(4));
    b.touch(0x1000, READ).unwrap();
    assert!(b.shadow.is_table(4), "used again, a table again");
}

/// XSA-438: the reference that kept a root's shadow alive was dropped before the processor walked another. Here no
/// pressure takes the root in use away: neither more address spaces than are kept, nor a pool without frames, nor
/// stores that make its frame no table.
#[test]
fn xsa_438_the_root_in_use_is_never_freed() {
    for frames in [Shadow::MIN_FRAMES, SHADOW_FRAMES] {
        let mut b = Bench::new(frames);
        for view in [View::Kernel, View::User] {
            b.view = view;
            for pfn in 400..440 {
                b.poke(pfn, 0, 2 << 12 | RW_SEEN);
                b.activate(pfn << 12);
                b.root_is_alive();
                b.poke(4, 1, 100 << 12 | RW_SEEN);
                b.touch(0x1000, READ).unwrap();
                b.root_is_alive();
                assert!(!b.release(pfn), "the root in use stays");
                b.root_is_alive();
                for slot in 0..300 {
                    // Not entries, so that the frame is soon taken for data.
                    let at = Maddr(b.at(pfn, slot).0 + 1);
                    let _ = b.shadow.store(&b.mem, &mut b.log, at, &[0; 3]);
                    b.root_is_alive();
                }
                b.poke(pfn, 0, 2 << 12 | RW_SEEN);
                b.touch(0x1000, READ).unwrap();
                b.root_is_alive();
            }
        }
    }
}

/// Guest tables that a random kernel makes in few frames: they collide at all levels.
#[derive(Clone, Debug)]
enum Op {
    Store { pfn: u64, slot: u64, target: u64, flags: u64 },
    Touch { va: u64, write: bool },
    Activate { pfn: u64, user: bool },
    Bytes { pfn: u64, offset: u64, bytes: Vec<u8> },
    Release { pfn: u64 },
}

/// Frames 1 to 8 mostly serve as tables: two each as L4, L3, L2 and L1. 9 and 10 are data.
const FEW: u64 = 11;

fn any_slot() -> impl Strategy<Value = u64> {
    prop_oneof![10 => 0u64..2, 1 => prop::sample::select(vec![255u64, 256, 511])]
}

fn address(l4: u64, l3: u64, l2: u64, l1: u64) -> u64 {
    let va = l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12;
    ((va << 16) as i64 >> 16) as u64
}

fn any_va() -> impl Strategy<Value = u64> {
    (any_slot(), any_slot(), any_slot(), any_slot(), 0u64..4096)
        .prop_map(|(a, b, c, d, offset)| address(a, b, c, d) | offset)
}

fn any_flags() -> impl Strategy<Value = u64> {
    const SOME: u64 = pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY | pte::NX;
    prop_oneof![
        6 => any::<u64>().prop_map(|bits| RW_SEEN & !(bits & bits >> 20 & SOME)),
        2 => any::<u64>().prop_map(|bits| bits & (SOME | pte::PRESENT)),
        1 => any::<u64>().prop_map(|bits| bits & (SOME | pte::PSE) | pte::PRESENT),
    ]
}

/// Mostly an entry that leads from a table to one of the next level.
fn any_store() -> impl Strategy<Value = Op> {
    (1..9u64, any_slot(), 0..2u64, 0..FEW, any_flags(), 0..8u8).prop_map(
        |(pfn, slot, which, wild, flags, kind)| {
            let next_level = pfn.div_ceil(2) * 2 + 1;
            // A large page begins at frame 0, where the tables are.
            let target = if flags & pte::PSE != 0 { 0 } else { next_level + which };
            let target = if kind == 0 { wild } else { target };
            Op::Store { pfn: if kind == 1 { wild } else { pfn }, slot, target, flags }
        },
    )
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => any_store(),
        16 => (any_va(), any::<bool>()).prop_map(|(va, write)| Op::Touch { va, write }),
        2 => (1..3u64, any::<bool>()).prop_map(|(pfn, user)| Op::Activate { pfn, user }),
        1 => (0..FEW, any::<bool>()).prop_map(|(pfn, user)| Op::Activate { pfn, user }),
        1 => (0..FEW, 0u64..4096, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(pfn, offset, bytes)| Op::Bytes { pfn, offset, bytes }),
        1 => (0..FEW).prop_map(|pfn| Op::Release { pfn }),
    ]
}

impl Bench {
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Store { pfn, slot, target, flags } => {
                self.poke(pfn, slot, target << 12 | flags);
            }
            Op::Touch { va, write } if !is_reserved(va) => {
                let _ = self.touch(va, Access { write, ..READ });
            }
            Op::Touch { .. } => {}
            Op::Activate { pfn, user } => {
                self.view = if user { View::User } else { View::Kernel };
                self.activate(pfn << 12);
            }
            Op::Bytes { pfn, offset, ref bytes } => {
                let at = Maddr(self.at(pfn, 0).0 + offset);
                let _ = self.shadow.store(&self.mem, &mut self.log, at, bytes);
            }
            Op::Release { pfn } => {
                self.release(pfn);
            }
        }
    }

    /// What the CPU walks is a shadow of the address space in use, and nothing else since.
    fn root_is_alive(&self) {
        let root = self.space.root();
        assert_eq!(Some(root), self.shadow.root());
        let table = self.shadow.pool.at(root.0).expect("the root's frame is a table in use");
        let pool::Table { source, level, view, .. } = *self.shadow.pool.table(table);
        assert_eq!((source, level, view), (pool::Source::Guest(self.shadow.space), 4, self.view));
    }

    /// Whatever the CPU can reach, the guest's tables allow; and no table in use can be written.
    fn check(&self, va: u64) {
        let Some((maddr, writable)) = self.cpu(va) else { return };
        let user = self.view == View::User;
        let space = self.shadow.space << 12;
        if maddr.mfn() == Mfn(0) {
            let guest = walk::walk(&self.mem, &PseudoPhysicalTables, space, va);
            assert!(!user && guest.is_err(), "the overlay is in nobody's way at {va:#x}");
            return;
        }
        let guest = walk::walk(&self.mem, &PseudoPhysicalTables, space, va).expect("mapped by the guest");
        assert_eq!(guest.maddr, Some(maddr), "the same memory at {va:#x}");
        assert!(guest.allows(Access { write: writable, user, fetch: false }), "no more rights at {va:#x}");
        let pfn = self.mem.mfn_to_pfn(maddr.mfn()).expect("a guest's frame");
        assert!(!writable || !self.shadow.is_table(pfn), "table {pfn} is writable at {va:#x}");
        assert!(
            guest.leaf().value & pte::ACCESSED != 0 && (!writable || guest.leaf().value & pte::DIRTY != 0)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_shadow_never_allows_more_than_the_guest(
        ops in prop::collection::vec(any_op(), 1..150),
        frames in prop::sample::select(vec![Shadow::MIN_FRAMES, 64]),
    ) {
        let mut b = Bench::new(frames);
        // Every table leads on from the start; the linking at slot 0 in frames 1 to 4 is `Bench::new`'s.
        for (pfn, slot) in (1..9).flat_map(|pfn| [(pfn, 0), (pfn, 1)]) {
            b.poke(pfn, slot, (pfn.div_ceil(2) * 2 + 1 + slot) << 12 | RW_SEEN);
        }
        for op in &ops {
            b.apply(op);
            b.root_is_alive();
            for bits in 0..16u64 {
                b.check(address(bits >> 3, bits >> 2 & 1, bits >> 1 & 1, bits & 1));
            }
            if let Op::Touch { va, .. } = *op && !is_reserved(va) {
                b.check(va);
            }
            prop_assert!(b.shadow.tables() as u64 <= frames);
        }
    }
}
