//! Operations that do not fit their budget.

use super::super::frame::{FrameType, Level};
use super::*;

/// A guest with an unused tree: an L4 table in frame 4, and `l1s` L1 tables below one L2.
pub(super) fn with_tree(l1s: u64) -> World {
    let mut w = World::with_frames(l1s + 16);
    w.poke(4, 1, w.entry(5, TABLE));
    w.poke(5, 2, w.entry(6, TABLE));
    for n in 0..l1s {
        w.poke(6, n, w.entry(7 + n, TABLE));
        w.poke(7 + n, 3, w.entry(15 + l1s, RO));
    }
    for pfn in 4..7 + l1s {
        w.protect(pfn);
    }
    w
}

fn finish(w: &mut World, mut op: impl FnMut(&mut World) -> Result<(), Stop>) -> (u32, Result<(), Stop>) {
    for restarts in 0..1000 {
        match op(w) {
            Err(Stop::Restart) => {}
            done => return (restarts, done),
        }
    }
    panic!("no progress");
}

#[test]
fn a_pin_goes_on_where_it_stopped() {
    let mut w = with_tree(40);
    w.direct.work.limit = 8 * 512;
    let (restarts, done) = finish(&mut w, |w| w.pin(4, Level::L4));
    assert_eq!(done, Ok(()));
    assert!((4..=10).contains(&restarts), "{restarts}: each restart does at least five more tables");
    assert_eq!(w.held(46), Some(FrameType::Table(Level::L1)));
    assert_eq!(w.direct.work.parked().count(), 0);
    assert_eq!(w.unpin(4), Ok(()));
    let mfn = w.mfn(50);
    let (restarts, done) =
        finish(&mut w, |w| w.op(|d, m, p, _, _| d.get_writable(m, p, mfn).inspect(|()| d.put_writable(mfn))));
    assert_eq!(done, Ok(()));
    assert!(restarts > 0);
    assert_eq!(w.held(46), None);
}

#[test]
fn so_does_the_linking_of_a_tree() {
    let mut w = with_tree(40);
    w.direct.work.limit = 8 * 512;
    let (restarts, done) = finish(&mut w, |w| w.update(L4, 3, w.entry(5, TABLE)));
    assert_eq!(done, Ok(()));
    assert!(restarts > 0);
    assert_eq!(w.held(5), Some(FrameType::Table(Level::L3)));
    assert_eq!(w.load(L4, 3), w.entry(5, TABLE));
}

#[test]
fn a_bad_entry_at_the_very_end_undoes_it_all() {
    let mut w = with_tree(40);
    w.direct.work.limit = 8 * 512;
    assert_eq!(w.update(L1, 46, w.entry(46, RW)), Ok(()));
    w.poke(46, 511, w.entry(L1, RW));
    w.protect(46);
    let (restarts, done) = finish(&mut w, |w| w.pin(4, Level::L4));
    assert_eq!(done, EBUSY);
    assert!(restarts > 0);
    let (_, done) = finish(&mut w, |w| w.update(L1, 7, w.entry(7, RW)));
    assert_eq!(done, Ok(()));
    for pfn in 4..47 {
        assert!(!matches!(w.held(pfn), Some(FrameType::Table(_))), "frame {pfn}");
    }
}

#[test]
fn two_operations_that_interrupt_each_other_both_end() {
    let mut w = with_tree(40);
    w.direct.work.limit = 8 * 512;
    assert_eq!(w.pin(4, Level::L4), Err(Stop::Restart));
    // An interrupt handler's own update comes in between; the pin then begins anew.
    let (_, done) = finish(&mut w, |w| w.update(L1, 60, w.entry(4, RO)));
    assert_eq!(done, Ok(()));
    let (_, done) = finish(&mut w, |w| w.pin(4, Level::L4));
    assert_eq!(done, Ok(()));
}

#[test]
fn ordinary_trees_never_restart() {
    let mut w = with_tree(100);
    assert_eq!(w.pin(4, Level::L4), Ok(()));
    assert_eq!(w.unpin(4), Ok(()));
    assert_eq!(w.held(50), None);
}
