//! Waking a vCPU, whether it runs or waits.
//!
//! A running one is kicked by its engine; a waiting one sleeps here on an eventfd, which remembers a wake-up
//! that came a moment too early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::engine::Kick;

/// Wakes the vCPU in every state.
pub struct Waker {
    engine: Arc<dyn Kick>,
    bell: EventFd,
    /// The vCPU is in [`Waker::wait`], or about to be or just out of it: the bell is enough.
    waits: AtomicBool,
}

impl Waker {
    /// A waker for the vCPU that `engine` kicks.
    pub fn new(engine: Arc<dyn Kick>) -> std::io::Result<Self> {
        Ok(Self { engine, bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, waits: AtomicBool::new(false) })
    }

    /// Sleeps until woken, at most for `time` (`None`: as long as it takes). Signals end it early.
    pub fn wait(&self, time: Option<Duration>) {
        let mut fd = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.bell),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = time.map(|t| libc::timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        self.waits.store(true, Ordering::SeqCst);
        // SAFETY: one live pollfd, a null or live timespec, no signal mask.
        unsafe { libc::ppoll(&mut fd, 1, limit, std::ptr::null()) };
        // In this order, so that whoever still saw it waiting has rung before the bell is emptied, and is heard.
        self.waits.store(false, Ordering::SeqCst);
        // Empties the bell; it is empty already when the time was up.
        let _ = self.bell.read();
    }
}

impl Kick for Waker {
    fn kick(&self) {
        // The counter cannot overflow: it is emptied at every wait, and u64::MAX kicks take centuries.
        let _ = self.bell.write(1);
        // A kick of the engine would be for its next entry, and make it leave the guest for nothing.
        if !self.waits.load(Ordering::SeqCst) {
            self.engine.kick();
        }
    }
    fn arm(&self, ns: u64) {
        self.engine.arm(ns);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Kicks(AtomicUsize);

    impl Kick for Kicks {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn arm(&self, _: u64) {}
    }

    #[test]
    fn a_vcpu_that_waits_is_woken_without_a_kick_of_its_engine() {
        let kicks = Arc::new(Kicks::default());
        let waker = Waker::new(kicks.clone()).unwrap();
        waker.waits.store(true, Ordering::SeqCst);
        waker.kick();
        assert_eq!(kicks.0.load(Ordering::SeqCst), 0);
        waker.wait(None);
        waker.kick();
        assert_eq!(kicks.0.load(Ordering::SeqCst), 1, "it may be about to enter the guest");
        waker.wait(None);
    }
}
