//! Signals: each that is sent is handled, and the interrupted function finds its stack and registers unchanged.

use std::io::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::{c_int, c_void};

use crate::random::{Random, SUM, checksum};
use crate::{Outcome, spoils, sys};

/// The number of signals that one check sends to itself and to a child.
const COUNT: u64 = 200;

static HANDLED: AtomicU64 = AtomicU64::new(0);

/// Sends signals while the process computes checksums on its stack.
pub fn run(random: &mut Random) -> Outcome {
    sys::handle(libc::SIGUSR1, on_signal)?;
    sys::handle(libc::SIGALRM, on_signal)?;
    HANDLED.store(0, Ordering::Relaxed);
    let bytes = random.bytes(2000);
    let expected = checksum(SUM, &bytes);
    sys::every(sys::PERIOD);
    let mut wrong = 0;
    for sent in 0..COUNT {
        // SAFETY: sends this thread a signal that it handles.
        if unsafe { libc::raise(libc::SIGUSR1) } != 0 {
            sys::every(0);
            return Err(format!("raise: {}", Error::last_os_error()));
        }
        let on_stack: [u8; 2000] = std::array::from_fn(|index| bytes[index]);
        let sum = checksum(SUM, std::hint::black_box(&on_stack));
        wrong += u64::from(sum != expected);
        if HANDLED.load(Ordering::Relaxed) <= sent {
            wrong += 1;
        }
    }
    sys::every(0);
    if spoils("signals") {
        wrong += 1;
    }
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {COUNT} sums or signals were wrong")) }
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    // Uses the stack and the registers that the interrupted checksum uses.
    let noise: [u64; 64] = std::array::from_fn(|n| n as u64);
    let sum = noise.iter().fold(0u64, |sum, n| sum.wrapping_mul(31).wrapping_add(*n));
    std::hint::black_box(sum);
    HANDLED.fetch_add(1, Ordering::Relaxed);
}
