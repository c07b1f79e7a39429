//! Pages of ours among the guest's.

use super::*;

const PLACE: u64 = 0x7_5000_0000;
const OUTSIDE: Mfn = Mfn(0);
const FETCH: Access = Access { write: false, user: false, fetch: true };

fn page(va: u64, writable: bool) -> OverlayPage {
    OverlayPage { va, mfn: OUTSIDE, writable, executable: !writable }
}

impl Bench {
    fn overlay(&mut self, pages: &[OverlayPage]) {
        self.shadow.set_overlay(&self.mem, &mut self.log, pages);
    }
    fn fault(&mut self, va: u64, access: Access) -> OverlayFill {
        self.shadow.fill_overlay(&self.mem, &mut self.log, &mut self.space, va, access)
    }
    fn collides(&mut self) -> bool {
        self.shadow.overlay_collides(&self.mem)
    }
}

#[test]
fn it_is_in_the_kernels_view_only() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.overlay(&[page(PLACE, false), page(PLACE + 0x1000, true)]);
    assert!(!b.collides());
    assert_eq!(b.fault(PLACE + 0x2000, FETCH), OverlayFill::NotOurs);
    assert_eq!(b.fault(PLACE, WRITE), OverlayFill::NotOurs, "the fault is the guest's");
    assert_eq!(b.fault(PLACE + 5, FETCH), OverlayFill::Filled);
    assert_eq!(b.fault(PLACE + 5, FETCH), OverlayFill::Spurious);
    assert_eq!(b.fault(PLACE + 0x1000, WRITE), OverlayFill::Filled);
    assert_eq!(b.cpu(PLACE + 5), Some((Maddr(5), false)));
    assert_eq!(b.cpu(PLACE + 0x1000), Some((Maddr(0), true)));
    assert_eq!(b.touch(PLACE, READ), Err(LookupError::PageFault(0)), "not for the hypervisor's own accesses");
    b.view = View::User;
    b.activate(1 << 12);
    assert_eq!(b.cpu(PLACE), None);
    assert_eq!(b.fault(PLACE, READ), OverlayFill::NotOurs);
    b.view = View::Kernel;
    b.activate(1 << 12);
    assert!(b.cpu(PLACE).is_some() && !b.collides(), "no refill, and nothing to check");
}

#[test]
fn a_page_that_goes_is_gone_in_every_address_space() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.overlay(&[page(PLACE, false), page(PLACE + 0x1000, true)]);
    for root in [1u64, 6] {
        b.activate(root << 12);
        b.fault(PLACE, FETCH);
        b.fault(PLACE + 0x1000, READ);
    }
    b.overlay(&[page(PLACE, false)]);
    assert_eq!(b.space.pending(&b.log).flush, Flush::All);
    for root in [1u64, 6] {
        b.activate(root << 12);
        assert!(b.cpu(PLACE).is_some() && b.cpu(PLACE + 0x1000).is_none());
    }
    b.overlay(&[]);
    assert_eq!(b.cpu(PLACE), None);
}

#[test]
fn the_guests_own_page_wins() {
    for filled in [false, true] {
        let mut b = Bench::new(SHADOW_FRAMES);
        b.touch(0, READ).unwrap_err();
        // In a 2 MiB region that the guest uses, and in one that it does not.
        for (va, map) in [(0x5000u64, (4u64, 5u64)), (0x60_0000, (3, 3))] {
            b.poke(4, 6, 50 << 12 | RW_SEEN);
            b.touch(0x6000, READ).unwrap();
            b.overlay(&[page(va, false)]);
            if filled {
                b.fault(va, FETCH);
                assert_eq!(b.cpu(va), Some((Maddr(0), false)));
            }
            assert!(!b.collides());
            b.poke(30, 0, 100 << 12 | RW_SEEN);
            // Now the guest maps it: an entry of its L1 table, or one of its L2 table.
            b.poke(map.0, map.1, (if map.0 == 3 { 30 } else { 100 }) << 12 | RW_SEEN);
            assert!(b.cpu(va).is_none_or(|(at, _)| at == b.at(100, 0)), "never ours any more");
            assert!(!filled || b.collides());
            assert_eq!(b.fault(va, FETCH), OverlayFill::Collides);
            assert!(b.collides() && b.collides(), "until it moves");
            b.overlay(&[page(PLACE, false)]);
            assert!(!b.collides());
            b.touch(va, READ).unwrap();
            assert_eq!(b.fault(PLACE, FETCH), OverlayFill::Filled);
        }
    }
}

#[test]
fn another_address_space_may_collide() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.overlay(&[page(0x5000, false)]);
    b.fault(0x5000, FETCH);
    // An address space of a shape of its own, with a large page there.
    b.poke(6, 0, 7 << 12 | RW_SEEN);
    b.poke(7, 0, 8 << 12 | RW_SEEN);
    b.poke(8, 0, RW_SEEN | pte::PSE);
    assert!(!b.collides());
    b.activate(6 << 12);
    assert!(b.collides());
}

#[test]
fn tables_without_the_rights_leave_no_room() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(3, 0, 4 << 12 | (RW_SEEN & !pte::RW));
    b.poke(4, 6, 50 << 12 | RW_SEEN);
    b.touch(0x6000, READ).unwrap();
    b.overlay(&[page(0x5000, true)]);
    assert!(!b.collides());
    assert_eq!(b.fault(0x5000, WRITE), OverlayFill::Collides);
    assert!(b.collides());
    b.overlay(&[page(0x5000, false)]);
    assert_eq!((b.fault(0x5000, FETCH), b.collides()), (OverlayFill::Filled, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_cpu_finds_ours_or_nothing_where_there_is_no_collision(
        ops in prop::collection::vec(any_op(), 1..100),
        places in prop::collection::vec(any_va(), 1..4),
        frames in prop::sample::select(vec![Shadow::MIN_FRAMES, 64]),
    ) {
        let mut b = Bench::new(frames);
        let mut places: Vec<u64> = places.into_iter().map(|va| va & !4095).filter(|&va| !is_reserved(va)).collect();
        places.sort_unstable();
        places.dedup();
        let pages: Vec<OverlayPage> = places.iter().map(|&va| page(va, false)).collect();
        b.overlay(&pages);
        for op in &ops {
            b.apply(op);
            b.root_is_alive();
            let collides = b.collides();
            for &va in &places {
                if !collides && b.view == View::Kernel {
                    prop_assert!(b.cpu(va).is_none_or(|(at, _)| at == OUTSIDE.maddr()), "{va:#x}");
                    match b.fault(va, FETCH) {
                        OverlayFill::Collides => prop_assert!(b.collides()),
                        OverlayFill::NotOurs => prop_assert!(false, "{va:#x}"),
                        _ => prop_assert_eq!(b.cpu(va), Some((OUTSIDE.maddr(), false))),
                    }
                }
                b.check(va);
            }
            for bits in 0..16u64 {
                b.check(address(bits >> 3, bits >> 2 & 1, bits >> 1 & 1, bits & 1));
            }
        }
    }
}
