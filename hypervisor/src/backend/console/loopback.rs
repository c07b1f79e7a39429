//! `--console loopback`: the guest's output comes back as its input. For measurements: the guest sees what has arrived.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, NOTHING, Watch, Wish, watch};

/// Bytes at most that wait to be read.
const LIMIT: usize = 64 << 10;

/// A loopback.
#[derive(Debug)]
pub struct Loopback {
    bytes: VecDeque<u8>,
    /// Always readable, because nothing has to be waited for.
    ready: EventFd,
}

impl Loopback {
    /// An empty loopback.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        ready.write(1)?;
        Ok(Self { bytes: VecDeque::new(), ready })
    }
}

impl Backend for Loopback {
    fn watch(&self, wish: Wish) -> Watch {
        let possible = wish.read && !self.bytes.is_empty() || wish.write && self.bytes.len() < LIMIT;
        let ready = if possible { watch(self.ready.as_raw_fd(), libc::POLLIN) } else { NOTHING };
        [ready, NOTHING, NOTHING]
    }
    fn ready(&mut self, _: &Watch) {}
    fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(LIMIT.saturating_sub(self.bytes.len()));
        self.bytes.extend(bytes.iter().take(count));
        count
    }
    fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.bytes.len());
        into.iter_mut().zip(self.bytes.drain(..count)).for_each(|(to, byte)| *to = byte);
        count
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::console::loopback::*;

    #[test]
    fn output_comes_back_and_room_is_limited() {
        let mut end = Loopback::new().unwrap();
        let (both, none) = (Wish { read: true, write: true }, [-1; 3]);
        let fds = |end: &Loopback, wish| end.watch(wish).map(|fd| fd.fd);
        assert_eq!(fds(&end, Wish { read: true, write: false }), none);
        assert_eq!(end.write(&[1; LIMIT - 1]), LIMIT - 1);
        assert_eq!(end.write(&[2; 5]), 1);
        assert_eq!(end.write(&[3; 5]), 0);
        assert_eq!(fds(&end, Wish { read: false, write: true }), none);
        assert_ne!(fds(&end, both), none);
        let mut got = vec![0; 2 * LIMIT];
        assert_eq!(end.read(&mut got), LIMIT);
        assert_eq!(got[LIMIT - 2..=LIMIT], [1, 2, 0]);
        assert_eq!(end.read(&mut got), 0);
    }
}
