//! Waking a vCPU, whether it runs or waits.
//!
//! A vCPU in the guest is kicked by its engine. One whose thread is in the host is only told, by a flag that it reads
//! before it enters again (KVM's own `vcpu->mode` works like that): a kick of the engine would make the next entry
//! leave the guest for nothing. One that waits first polls that flag for a while ([`BusyPoll`]), and then sleeps on an
//! eventfd, which remembers a ring that came a moment too early.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::host::busy_poll::BusyPoll;
use crate::machine::kick::Kick;

/// Where the vCPU's thread is. It alone changes it.
mod place {
    /// In the host: it sees `rung` before it enters the guest.
    pub const HOST: u8 = 0;
    /// In [`Waker::wait`](super::Waker::wait), looking: it sees `rung`.
    pub const LOOKS: u8 = 1;
    /// There, asleep or about to be: it hears the bell.
    pub const SLEEPS: u8 = 2;
    /// In the guest, or about to be or just out of it.
    pub const GUEST: u8 = 3;
}

/// Wakes the vCPU in every state.
pub struct Waker {
    engine: Arc<dyn Kick>,
    bell: EventFd,
    place: AtomicU8,
    /// Somebody kicked. Set before `place` is read, and read after `place` is set: one of the two sides sees the other.
    rung: AtomicBool,
    /// The vCPU's thread's own; nobody else takes it.
    habit: Mutex<BusyPoll>,
}

impl Waker {
    /// A waker for the vCPU that `engine` kicks.
    pub fn new(engine: Arc<dyn Kick>) -> std::io::Result<Self> {
        Ok(Self {
            engine,
            bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            place: AtomicU8::new(place::HOST),
            rung: AtomicBool::new(false),
            habit: Mutex::default(),
        })
    }

    /// Waits until woken, at most for `time` (`None`: as long as it takes). Signals end its sleep early.
    pub fn wait(&self, time: Option<Duration>) {
        let end = time.and_then(|time| Instant::now().checked_add(time));
        let over = || end.is_some_and(|end| Instant::now() >= end);
        let mut habit = self.habit.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.store(place::LOOKS, Ordering::SeqCst);
        if !habit.look(|| self.rung.load(Ordering::Relaxed) || over()) {
            self.place.store(place::SLEEPS, Ordering::SeqCst);
            if !self.rung.load(Ordering::SeqCst) {
                self.sleep(end.map(|end| end.saturating_duration_since(Instant::now())));
            }
            habit.slept();
        }
        self.place.store(place::HOST, Ordering::SeqCst);
        self.hear();
    }

    /// The vCPU's thread is about to enter the guest. False if somebody kicked since the last call or wait: then it
    /// must not, and look for the reason.
    pub fn enter_guest(&self) -> bool {
        self.place.store(place::GUEST, Ordering::SeqCst);
        let rung = self.rung.load(Ordering::SeqCst);
        if rung {
            self.leave_guest();
            self.hear();
        }
        !rung
    }

    /// The vCPU's thread, in the host, looks for the reasons of all kicks until now.
    pub fn hear(&self) {
        // A swap, because it must see what was done before the kicks that it takes back.
        self.rung.swap(false, Ordering::SeqCst);
    }

    /// It is out of the guest again.
    pub fn leave_guest(&self) {
        self.place.store(place::HOST, Ordering::Release);
    }

    fn sleep(&self, time: Option<Duration>) {
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
        // SAFETY: one live pollfd, a null or live timespec, no signal mask.
        unsafe { libc::ppoll(&mut fd, 1, limit, std::ptr::null()) };
        // Empties the bell; it is empty already when the time was up. Who rings only now is heard all the same, and the
        // next sleep is none.
        let _ = self.bell.read();
    }
}

impl Kick for Waker {
    fn kick(&self) {
        self.rung.store(true, Ordering::SeqCst);
        match self.place.load(Ordering::SeqCst) {
            place::HOST | place::LOOKS => {}
            // The counter cannot overflow: it is emptied at every sleep, and u64::MAX kicks take centuries.
            place::SLEEPS => drop(self.bell.write(1)),
            _ => self.engine.kick(),
        }
    }
    fn arm(&self, ns: u64) {
        self.engine.arm(ns);
    }
}

#[cfg(test)]
mod tests;
