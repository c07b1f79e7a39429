//! Emergency writes: a character in a configuration register, for a guest that has no queues or no longer trusts
//! them (virtio 1.2, section 5.3.4, `emerg_wr`).
//!
//! They are made by the vCPU's thread, which may not wait. While a worker has the back end it is rung for; else the
//! byte goes out at once. What there is no room for waits, up to a limit: only here can output be lost.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError, TryLockError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::backend::console::backend::Backend;

/// Bytes that wait at most.
const LIMIT: usize = 4096;

/// Bytes written in an emergency and not passed on yet.
#[derive(Debug)]
pub(super) struct Emergency {
    bytes: Mutex<VecDeque<u8>>,
    bell: EventFd,
}

impl Emergency {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { bytes: Mutex::default(), bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Takes a byte, and passes it on if no worker is there for that.
    pub(super) fn push(&self, byte: u8, backend: &Mutex<Box<dyn Backend>>) {
        let mut bytes = self.lock();
        if bytes.len() < LIMIT {
            bytes.push_back(byte);
        }
        drop(bytes);
        // A counter that is full has rung often enough.
        let _ = self.bell.write(1);
        self.flush(backend);
    }

    /// Passes on what waits, unless somebody else has the back end. Whoever had it calls this afterwards, so that
    /// nothing stays that came meanwhile.
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

    /// Passes on the first `count` bytes that wait to a back end that the caller has; whether all of them went.
    pub(super) fn pass_on(&self, backend: &mut dyn Backend, mut count: usize) -> bool {
        loop {
            // A copy: the vCPU's thread does not wait for a write.
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

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
    /// Becomes readable with each byte; emptied by [`Emergency::take_bell`].
    pub(super) fn bell_fd(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
    /// Empties the bell.
    pub(super) fn take_bell(&self) {
        // Empty already: nothing to do.
        let _ = self.bell.read();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
