use proptest::prelude::*;

use super::*;

fn write(number: u64) -> PteWrite {
    PteWrite { entry: Maddr(number * 8), old: 0, new: number + 1, level: 1 }
}

fn numbers(log: &TableLog, cursor: &Cursor) -> Option<Vec<u64>> {
    match log.since(cursor) {
        Unread::Stale => None,
        Unread::Changes { writes, .. } => Some(writes.iter().map(|w| w.entry.0 / 8).collect()),
    }
}

#[test]
fn a_reader_that_is_too_far_behind_is_told_that_all_is_stale() {
    let mut log = TableLog::default();
    let (slow, full) = (log.end(), TableLog::CAPACITY as u64);
    (0..full).for_each(|n| log.wrote(write(n)));
    assert_eq!(numbers(&log, &slow), Some((0..full).collect()));
    let quick = log.end();
    log.wrote(write(full));
    assert_eq!(numbers(&log, &slow), None);
    assert_eq!(numbers(&log, &quick), Some(vec![full]));
    assert_eq!(numbers(&log, &log.end()), Some(vec![]));
}

#[test]
fn reused_tables_have_a_limit_of_their_own() {
    let mut log = TableLog::default();
    let slow = log.end();
    (0..TableLog::REUSED_CAPACITY as u64).for_each(|n| log.reused_table(Mfn(n)));
    assert!(matches!(log.since(&slow), Unread::Changes { reused, .. } if reused.iter().count() == 256));
    log.reused_table(Mfn(0));
    assert!(matches!(log.since(&slow), Unread::Stale));
}

#[test]
fn every_reader_hears_of_flushes_and_of_an_epoch_once() {
    let mut log = TableLog::default();
    let mut readers = [log.end(); 2];
    log.flush_all();
    for reader in &mut readers {
        assert!(matches!(log.since(reader), Unread::Changes { flush: true, .. }));
        *reader = log.end();
        assert!(matches!(log.since(reader), Unread::Changes { flush: false, .. }));
    }
    log.invalidate_all();
    for reader in &mut readers {
        assert!(matches!(log.since(reader), Unread::Stale));
        *reader = log.end();
        assert!(matches!(log.since(reader), Unread::Changes { flush: false, .. }));
    }
}

#[test]
fn an_entry_that_keeps_its_value_is_no_change() {
    let mut log = TableLog::default();
    let before = log.end();
    log.wrote(PteWrite { new: 0, ..write(1) });
    assert_eq!(log.end(), before);
}

#[test]
fn a_single_reader_knows_everything() {
    let mut log = TableLog::default();
    log.wrote(write(0));
    assert!(log.is_known(log.position()));
    log.want(log.position());
    assert_eq!(log.take_wanted(), None);
}

#[test]
fn what_is_wanted_is_known_once_everyone_is_current() {
    let mut log = TableLog::default();
    log.wrote(write(0));
    log.share();
    assert!(log.is_known(log.position()), "nobody has run yet");
    log.wrote(write(1));
    log.flush_all();
    let (both, second) = (log.end(), Position(2));
    assert_eq!(both.position(), Position(3));
    assert!(log.is_known(Position(1)) && !log.is_known(second));
    log.want(both.position());
    log.want(second);
    assert_eq!(log.take_wanted(), Some(both.position()), "the latest");
    assert_eq!(log.take_wanted(), None, "asked once");
    log.want(second);
    log.everyone_knows(both.position());
    assert_eq!(log.take_wanted(), None, "no longer");
    log.wrote(write(2));
    log.everyone_knows(Position(1));
    assert!(log.is_known(both.position()), "what is known stays known");
    assert!(!log.is_known(log.position()));
}

#[test]
fn nobody_reads_what_was_applied_for_everyone() {
    let mut log = TableLog::default();
    log.share();
    let behind = log.end();
    (0..2 * TableLog::CAPACITY as u64).for_each(|n| log.wrote(write(n)));
    assert_eq!(numbers(&log, &behind), None);
    log.applied_for_everyone();
    assert!(log.is_known(log.position()));
    assert_eq!(numbers(&log, &behind), Some(vec![]));
    log.wrote(write(7));
    assert_eq!(numbers(&log, &behind), Some(vec![7]));
}

proptest! {
    /// Two readers, each at its own pace, see what an endless list would show them, or learn that it is gone.
    #[test]
    fn readers_see_what_an_endless_list_holds(steps in prop::collection::vec((0u8..3, 0u64..3000), 1..40)) {
        let mut log = TableLog::default();
        let (mut all, mut readers) = (Vec::new(), [(log.end(), 0usize); 2]);
        for (who, count) in steps {
            match readers.get_mut(usize::from(who)) {
                None => (0..count).for_each(|_| {
                    all.push(all.len() as u64);
                    log.wrote(write(all.len() as u64 - 1));
                }),
                Some((cursor, read)) => {
                    let missed = &all[*read..];
                    let wanted = (missed.len() <= TableLog::CAPACITY).then(|| missed.to_vec());
                    prop_assert_eq!(numbers(&log, cursor), wanted.clone());
                    if let (Unread::Changes { writes, .. }, Some(wanted)) = (log.since(cursor), wanted) {
                        for index in 0..=wanted.len() {
                            let at = writes.get(index).map(|w| w.entry.0 / 8);
                            prop_assert_eq!(at, wanted.get(index).copied());
                        }
                    }
                    (*cursor, *read) = (log.end(), all.len());
                }
            }
        }
    }
}
