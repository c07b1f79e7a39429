//! What is said of a refusal.

use super::super::{Obstacle, Reference};
use super::*;

impl World {
    /// What stood in the way of an operation that must have been refused.
    fn obstacle(&mut self, outcome: Result<(), Stop>, errno: Errno) -> String {
        assert_eq!(outcome, Err(Stop::Refused(errno)));
        let obstacle = self.direct.take_obstacle().expect("a refusal has a reason");
        assert_eq!(self.direct.take_obstacle(), None, "told once");
        obstacle.to_string()
    }

    fn frame_name(&self, pfn: u64) -> String {
        format!("machine frame {:#x}", self.mfn(pfn).0)
    }
}

#[test]
fn a_refusal_says_what_the_frame_is() {
    let mut w = World::new();
    let outcome = w.update(L1, FREE, w.entry(L1, RW));
    let told = w.obstacle(outcome, Errno::EBUSY);
    assert!(told.starts_with(&w.frame_name(L1)), "{told}");
    assert!(
        told.contains("is a page table (level 1) (linked, or used by a vCPU, once), and cannot be written"),
        "{told}"
    );
    let outcome = w.update(L2, 7, w.entry(FREE, TABLE));
    let told = w.obstacle(outcome, Errno::EINVAL);
    assert!(
        told.contains("is memory (mapped writable once), and cannot be a page table (level 1)"),
        "{told}"
    );
    let outcome = w.update(L4, 9, w.entry(L2, TABLE));
    let told = w.obstacle(outcome, Errno::EINVAL);
    assert!(
        told.contains("is a page table (level 2)") && told.contains("cannot be a page table (level 3)"),
        "{told}"
    );
    let outcome = w.update(L1, FREE, w.entry(FREE, RW | pte::PSE));
    assert!(w.obstacle(outcome, Errno::EINVAL).contains("has a bit that no guest may set"));
    let outcome = w.update(L1, FREE, pte::make(0, RW));
    assert!(w.obstacle(outcome, Errno::EBUSY).contains("machine frame 0x0 is not the guest's"));
    let outcome = w.update(L1, FREE, pte::make(1 << 30, RW));
    assert!(w.obstacle(outcome, Errno::EPERM).contains("there is no machine frame 0x40000000"));
    let outcome = w.unpin(FREE);
    assert!(w.obstacle(outcome, Errno::EINVAL).ends_with("is not pinned"));
    let outcome = w.pin(L4, Level::L4);
    assert!(w.obstacle(outcome, Errno::EINVAL).ends_with("is pinned already"));
    assert_eq!(w.update(L1, FREE, w.entry(FREE, RO)), Ok(()));
    assert_eq!(w.direct.take_obstacle(), None, "nothing was refused");
}

/// The innermost of what a pin validates is what is in the way.
#[test]
fn a_table_that_cannot_be_one_is_told_by_what_it_maps() {
    let mut w = World::new();
    w.poke(FREE, 3, w.entry(L3, RW));
    w.protect(FREE);
    let outcome = w.pin(FREE, Level::L1);
    let told = w.obstacle(outcome, Errno::EBUSY);
    assert!(told.starts_with(&w.frame_name(L3)) && told.contains("is a page table (level 3)"), "{told}");
    w.poke(FREE + 1, 3, w.entry(FREE + 1, TABLE));
    w.protect(FREE + 1);
    let outcome = w.pin(FREE + 1, Level::L2);
    let told = w.obstacle(outcome, Errno::EINVAL);
    assert!(told.starts_with(&w.frame_name(FREE + 1)), "{told}");
}

#[test]
fn the_entries_that_refer_to_a_frame_are_found() {
    let mut w = World::new();
    assert_eq!(w.update(L1, 300, w.entry(FREE, RO)), Ok(()));
    let found = |w: &World, pfn, most| w.direct.references(&w.memory, w.mfn(L4), w.mfn(pfn), most);
    let at = |va, level, writable| Reference { va, level, writable };
    let both = [at(FREE << 12, Level::L1, true), at(300 << 12, Level::L1, false)];
    assert_eq!(found(&w, FREE, 9), both);
    assert_eq!(found(&w, FREE, 1), both[..1]);
    assert_eq!(found(&w, L1, 9), [at(0, Level::L2, true), at(L1 << 12, Level::L1, false)]);
    assert_eq!(found(&w, 3000, 9), []);
    assert_eq!(
        both.map(|reference| reference.to_string()),
        ["mapped writable at 0x4000", "mapped read-only at 0x12c000"]
    );
    assert_eq!(at(1 << 21, Level::L2, true).to_string(), "linked by the table of level 2 for 0x200000");
    let use_of = |found| Obstacle::Use { mfn: Mfn(0), wanted: FrameType::None, found };
    assert_eq!(use_of(None).frame(), Some(Mfn(0)));
}
