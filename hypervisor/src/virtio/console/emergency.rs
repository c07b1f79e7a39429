//! Emergency writes: characters in the register `emerg_wr` (virtio 1.2, section 5.3.4), for a guest whose queues are
//! not set up or no longer work.
//!
//! They come on the vCPU's thread, which may not wait. While a worker holds the back end, an eventfd wakes it;
//! otherwise the byte is written at once. Bytes for which there is no room wait, up to a limit; bytes beyond the
//! limit are lost.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError, TryLockError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::backend::console::backend::Backend;

/// The most bytes that wait.
const LIMIT: usize = 4096;

/// Emergency bytes that have not been passed on yet.
#[derive(Debug)]
pub(super) struct Emergency {
    bytes: Mutex<VecDeque<u8>>,
    bell: EventFd,
}

impl Emergency {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { bytes: Mutex::default(), bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Queues a byte, and passes it on if no worker holds the back end.
    pub(super) fn push(&self, byte: u8, backend: &Mutex<Box<dyn Backend>>) {
        let mut bytes = self.lock();
        if bytes.len() < LIMIT {
            bytes.push_back(byte);
        }
        drop(bytes);
        // It fails if the counter is at its maximum: the worker is woken all the same.
        let _ = self.bell.write(1);
        self.flush(backend);
    }

    /// Passes on the waiting bytes, unless another thread holds the back end. That thread calls this when it has
    /// released the back end, so that bytes that came meanwhile do not stay.
    pub(super) fn flush(&self, backend: &Mutex<Box<dyn Backend>>) {
        while !self.is_empty() {
            let mut held = match backend.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if !self.pass_on(&mut **held, LIMIT) {
                return;
            }
        }
    }

    /// Passes the first `count` waiting bytes to a back end that the caller holds. Returns whether it took all of them.
    pub(super) fn pass_on(&self, backend: &mut dyn Backend, mut count: usize) -> bool {
        loop {
            // Copy them, so that the lock, which a vCPU's thread takes, is not held during a write.
            let mut part = [0; 256];
            let bytes = self.lock();
            let len = bytes.len().min(part.len()).min(count);
            part.iter_mut().zip(&*bytes).for_each(|(to, from)| *to = *from);
            drop(bytes);
            if len == 0 {
                return true;
            }
            let passed = backend.write(part.get(..len).unwrap_or_default()).min(len);
            if passed == 0 {
                return false;
            }
            self.lock().drain(..passed);
            count -= passed;
        }
    }

    /// Whether no bytes wait.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The number of waiting bytes.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
    /// An eventfd that becomes readable with each byte, and stays so until [`Emergency::take_bell`].
    pub(super) fn bell_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
    /// Resets the eventfd.
    pub(super) fn take_bell(&self) {
        // It fails if no byte came.
        let _ = self.bell.read();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
