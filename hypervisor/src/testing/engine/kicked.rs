//! Another thread that kicks a virtual CPU for as long as a test wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::machine::kick::Kick;

/// The thread. It ends with this, also where a test fails.
pub(crate) struct Kicked {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kicked {
    /// Kicks at varying distances: some meet the way in or out, and between others the guest gets somewhere.
    ///
    /// The thread's share of a busy machine is anyone's guess: deadlines are what makes stops as many as are wanted.
    pub fn by(kicker: Arc<dyn Kick>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut distance = 0;
            while !flag.load(Ordering::Relaxed) {
                kicker.kick();
                distance = (distance + 37) % 256;
                for _ in 0..distance {
                    std::thread::yield_now();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Kicked {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
