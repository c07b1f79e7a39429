//! Threads: each has its own thread-local memory (FS), and no addition under a lock is lost.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use crate::random::Random;
use crate::{Outcome, spoils, sys};

/// The number of threads.
const THREADS: u64 = 4;
/// The number of additions by each thread.
const STEPS: u64 = 64;

thread_local! {
    static OWN: Cell<u64> = const { Cell::new(0) };
}

/// Runs the check in a child process, because a process with threads must not fork.
pub fn run(random: &mut Random) -> Outcome {
    let seed = random.next();
    match sys::wait(sys::fork(|| i32::from(count(seed).is_err()))?)? {
        0 => Ok(()),
        _ => Err("what threads counted is not the sum of what they did".into()),
    }
}

fn count(seed: u64) -> Outcome {
    let shared = Arc::new(Mutex::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let shared = shared.clone();
            std::thread::spawn(move || add(&shared, seed ^ n))
        })
        .collect();
    let mut sum: u64 =
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).fold(0, u64::wrapping_add);
    if spoils("threads") {
        sum ^= 1;
    }
    let total = *shared.lock().map_err(|e| e.to_string())?;
    if sum == total { Ok(()) } else { Err(format!("{sum} instead of {total}")) }
}

/// Adds numbers to a thread-local sum and to the shared one, and yields the processor in between.
fn add(shared: &Mutex<u64>, seed: u64) -> u64 {
    let mut random = Random::new(seed);
    for _ in 0..STEPS {
        let number = random.next();
        OWN.set(OWN.get().wrapping_add(number));
        if let Ok(mut shared) = shared.lock() {
            *shared = shared.wrapping_add(number);
        }
        std::thread::yield_now();
    }
    OWN.get()
}
