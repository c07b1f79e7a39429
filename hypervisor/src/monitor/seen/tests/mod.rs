//! The words themselves, by threads; and a model of everything that rests on them.

mod model;

use std::sync::atomic::AtomicBool;

use super::*;

#[test]
fn who_has_not_seen_enough_stays_outside() {
    let seen = Seen::new(2);
    assert!(seen.enter(0, Position(3)));
    assert!(seen.enter(1, Position(5)));
    seen.demand(Position(4));
    assert_eq!(seen.behind(Position(4)).collect::<Vec<_>>(), [0]);
    seen.leave(0);
    seen.wait_for(Position(4));
    assert!(!seen.enter(0, Position(3)), "it has to catch up");
    assert_eq!(seen.behind(Position(4)).next(), None, "and is outside meanwhile");
    assert!(seen.enter(0, Position(4)));
    seen.demand(Position(2));
    seen.leave(1);
    assert!(!seen.enter(1, Position(3)), "a demand stays");
    assert!(!seen.enter(2, Position(9)), "no such CPU");
}

/// One thread enters and leaves; the other demands, and after its wait takes away what the first must not use any more.
#[test]
fn nobody_is_inside_with_less_than_was_waited_for() {
    const ROUNDS: u64 = 20_000;
    let seen = Seen::new(1);
    let (log, over) = (AtomicU64::new(0), AtomicBool::new(false));
    // Up to where things have been taken away.
    let gone = AtomicU64::new(0);
    let late = std::thread::scope(|scope| {
        let cpu = scope.spawn(|| {
            let (mut late, mut current) = (0u64, 0);
            while !over.load(Ordering::Acquire) {
                if !seen.enter(0, Position(current)) {
                    current = log.load(Ordering::Acquire);
                    continue;
                }
                late += u64::from(gone.load(Ordering::Acquire) > current);
                seen.leave(0);
            }
            late
        });
        for round in 1..=ROUNDS {
            log.store(round, Ordering::Release);
            seen.demand(Position(round));
            seen.wait_for(Position(round));
            gone.store(round, Ordering::Release);
        }
        over.store(true, Ordering::Release);
        cpu.join().unwrap()
    });
    assert_eq!(late, 0);
}
