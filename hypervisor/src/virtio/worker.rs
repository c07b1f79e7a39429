//! The threads of an active device, and how they end.
//!
//! A worker ends when it is asked to ([`Stop`]) or when its driver has violated the protocol; in both cases all
//! workers of the device end. The vCPU's thread asks them to end and does not wait: the last worker interrupts the
//! driver.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::link::Link;
use super::violation::{Broken, Offence};
use crate::host::threads;

thread_local! {
    /// The queue from which this worker last took a request, or tried to.
    static QUEUE: Cell<Option<u16>> = const { Cell::new(None) };
}

/// Notes which queue this worker looks at, to be reported with a violation. Not a field of [`Broken`], because most
/// violations are found by code that does not know the queue.
pub(super) fn look_at(queue: u16) {
    QUEUE.set(Some(queue));
}

/// Asks a device's workers to end.
#[derive(Debug)]
pub struct Stop {
    asked: AtomicBool,
    bell: EventFd,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self { asked: AtomicBool::new(false), bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }
    /// Whether the workers should end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
    /// A descriptor that becomes readable, and stays so, when the workers should end.
    pub fn fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
    fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // It cannot overflow: it is written only a few times.
        let _ = self.bell.write(1);
    }
}

/// The workers of an active device.
#[derive(Debug)]
pub struct Workers {
    stop: Arc<Stop>,
    running: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    link: Arc<Link>,
    /// Simulates a host without threads left.
    #[cfg(test)]
    pub(super) refuse: bool,
}

impl Workers {
    pub(super) fn new(link: Arc<Link>) -> io::Result<Self> {
        Ok(Self {
            stop: Arc::new(Stop::new()?),
            running: Arc::default(),
            threads: Vec::new(),
            link,
            #[cfg(test)]
            refuse: false,
        })
    }

    /// Starts a worker: a thread called `name`, of which 15 bytes are kept.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&Stop) -> Result<(), Broken> + Send + 'static,
    ) -> io::Result<()> {
        #[cfg(test)]
        if self.refuse {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let end = End {
            stop: Arc::clone(&self.stop),
            running: Arc::clone(&self.running),
            link: Arc::clone(&self.link),
        };
        self.running.fetch_add(1, Ordering::AcqRel);
        // If the thread cannot be started, the closure is dropped, and `end` with it.
        let thread = threads::spawn(name, move || {
            if let Err(what) = body(&end.stop) {
                end.link.break_down(Offence { queue: QUEUE.get(), what });
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Asks the workers to end.
    pub(super) fn stop(&self) {
        self.stop.ask();
    }
    /// Whether all have ended.
    pub(super) fn have_ended(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }
}

impl Drop for Workers {
    /// Waits for the workers. That takes no time after `have_ended`; otherwise the domain is ending.
    fn drop(&mut self) {
        self.stop.ask();
        for thread in self.threads.drain(..) {
            // A panic has been reported already, and has stopped the device.
            let _ = thread.join();
        }
    }
}

/// When dropped, does what is necessary at the end of a worker, also after a panic.
struct End {
    stop: Arc<Stop>,
    running: Arc<AtomicUsize>,
    link: Arc<Link>,
}

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.link.break_down(Offence { queue: QUEUE.get(), what: Broken::Bug });
        }
        if self.link.needs_reset() {
            self.stop.ask();
        }
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 && self.stop.is_asked() {
            self.link.workers_ended();
        }
    }
}
