//! The waker on an engine that counts kicks, and every order of its steps.

mod model;

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::testing::engine::CountKicks;

fn waker() -> (Waker, Arc<CountKicks>) {
    let kicks = Arc::new(CountKicks::default());
    (Waker::new(kicks.clone()).unwrap(), kicks)
}

#[test]
fn the_engine_is_kicked_only_while_its_guest_runs() {
    let (waker, kicks) = waker();
    let kicked = || kicks.count();
    waker.kick();
    assert!(!waker.enter_guest(), "somebody kicked");
    assert!(waker.enter_guest(), "heard once");
    waker.kick();
    assert_eq!(kicked(), 1);
    waker.leave_guest();
    waker.kick();
    waker.wait(None);
    assert_eq!(kicked(), 1, "the flag is enough, and ends the wait");
    assert!(waker.enter_guest());
}

#[test]
fn no_wait_misses_a_kick() {
    const ROUNDS: usize = 2000;
    let (waker, kicks) = waker();
    let turn = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                // Maybe later than its turn: the bell of a kick that was heard before it rang ends the next wait.
                while turn.load(Ordering::Acquire) < round {
                    std::thread::yield_now();
                }
                waker.kick();
            }
        });
        for round in 1..=ROUNDS {
            turn.store(round, Ordering::Release);
            // For ever, if the kick is missed.
            waker.wait(None);
        }
    });
    assert_eq!(kicks.count(), 0);
}

#[test]
fn a_wait_ends_in_time() {
    let (waker, _) = waker();
    for ns in [0, 1, 10_000, 1_000_000] {
        waker.wait(Some(Duration::from_nanos(ns)));
    }
}
