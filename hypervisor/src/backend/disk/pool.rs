//! Jobs done by a few threads with ordinary system calls: for image formats, and for hosts without io_uring.
//!
//! The threads are called `pv-block-io`; each works on one job at a time.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::image::Image;
use super::jobs::{Done, Job, Jobs, Op};
use crate::host::poll::wait;
use crate::host::threads;

/// Threads, and so the requests of a queue that the host works on at the same time.
const THREADS: usize = 4;

/// A job on its way to a thread, with its token. Its buffers are guest memory, which the pool's owner keeps mapped:
/// when the pool is dropped, it waits for its threads.
struct Order(u16, Job);

#[derive(Default)]
struct Ended {
    jobs: Mutex<Vec<Done>>,
    /// Whether `jobs` has any. For busy polling, which would delay the threads by taking the lock.
    any: AtomicBool,
}

impl Ended {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Done>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn push(&self, job: Done) {
        let mut jobs = self.lock();
        jobs.push(job);
        self.any.store(true, Ordering::Release);
    }
    fn take(&self, into: &mut Vec<Done>) {
        let mut jobs = self.lock();
        into.append(&mut jobs);
        self.any.store(false, Ordering::Release);
    }
    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }
}

/// Threads that work on one image.
pub(super) struct Pool {
    orders: Option<Sender<Order>>,
    ended: Arc<Ended>,
    bell: EventFd,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads for `image`.
    ///
    /// # Errors
    /// When the host has no threads left.
    pub fn new(image: &Arc<dyn Image>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut pool = Self { orders: Some(sender), ended: Arc::default(), bell, threads: Vec::new() };
        for _ in 0..THREADS {
            let (image, receiver) = (Arc::clone(image), Arc::clone(&receiver));
            let (ended, bell) = (Arc::clone(&pool.ended), pool.bell.try_clone()?);
            let body = move || {
                while let Some(Order(token, mut job)) = next(&receiver) {
                    let result = guarded(|| perform(&*image, &mut job));
                    ended.push(Done { token, result, buffers: job.buffers });
                    // An error means that the counter is full, and so readable.
                    let _ = bell.write(1);
                }
            };
            pool.threads.push(threads::spawn("pv-block-io", body)?);
        }
        Ok(pool)
    }
}

fn next(orders: &Mutex<Receiver<Order>>) -> Option<Order> {
    orders.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Calls `f`. If it panics, as a library might for an unexpected image, the request fails; otherwise it would never
/// end.
fn guarded(f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // Unwind-safe: imago reads and writes its tables under locks only.
    panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

fn perform(image: &dyn Image, job: &mut Job) -> io::Result<()> {
    match job.op {
        Op::Read => return image.read(&mut job.buffers, job.offset),
        Op::Flush => return image.flush(),
        Op::Write => image.write(&mut job.buffers, job.offset)?,
        Op::Discard => image.discard(job.offset, job.len)?,
        Op::Zero { unmap } => image.zero(job.offset, job.len, unmap)?,
    }
    if job.sync { image.flush() } else { Ok(()) }
}

impl Jobs for Pool {
    fn begin(&mut self, token: u16, job: Job) -> io::Result<()> {
        let sent = self.orders.as_ref().map(|orders| orders.send(Order(token, job)));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    fn ended(&mut self, sleep: bool, [stop, kick]: [RawFd; 2], done: &mut Vec<Done>) -> io::Result<()> {
        if sleep {
            wait(&[self.bell.as_raw_fd(), stop, kick])?;
        }
        // Read before the list is taken: a job that ends after this writes to it again.
        let _ = self.bell.read();
        self.ended.take(done);
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        !self.ended.is_empty()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Without a sender, the threads finish the jobs that are queued, and end.
        self.orders = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
