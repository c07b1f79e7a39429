//! From the guest to standard output: unbuffered, in order, nothing lost without a word.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::console::ConsoleSink;

/// What happened to a console's output; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct OutputState {
    first_byte: Arc<OnceLock<Instant>>,
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl OutputState {
    /// When the guest's first output had been handed to the kernel.
    pub(super) fn first_byte(&self) -> Option<Instant> {
        self.first_byte.get().copied()
    }
    /// Why output was lost, if it was.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Writes to a file descriptor of its own.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    state: OutputState,
    /// The domain is to end: a reader that takes nothing must not hold it up.
    stop: Arc<AtomicBool>,
    /// Output was lost; what follows would only confuse.
    closed: bool,
}

impl Output {
    /// A sink on standard output.
    pub(super) fn stdout(state: OutputState, stop: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self { file: File::from(io::stdout().as_fd().try_clone_to_owned()?), state, stop, closed: false })
    }

    /// Like `Write::write_all`, but waits for a terminal that somebody else made non-blocking, and gives up
    /// when interrupted in a wait after the domain's end was asked for.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if !matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                    return Err(e);
                }
                Err(e) if self.stop.load(Ordering::Acquire) => return Err(e),
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait_writable(&self.file),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

impl ConsoleSink for Output {
    fn write(&mut self, bytes: &[u8]) {
        if self.closed || bytes.is_empty() {
            return;
        }
        match self.write_all(bytes) {
            Ok(()) => {
                self.state.first_byte.get_or_init(Instant::now);
            }
            Err(error) => {
                self.closed = true;
                *self.state.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
    }
}

fn wait_writable(file: &File) {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, valid for the call. Whatever it returns, the next write says what is the matter.
    unsafe { libc::poll(&mut poll, 1, -1) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn output_arrives_in_order_and_the_first_byte_is_timed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let state = OutputState::default();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut sink = Output { file, state: state.clone(), stop: Arc::default(), closed: false };
        assert!(state.first_byte().is_none());
        sink.write(b"one ");
        let first = state.first_byte();
        sink.write(b"two");
        assert!(first.is_some() && state.first_byte() == first);
        drop(sink);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        assert!(state.failure().is_none());
    }

    #[test]
    fn a_full_disk_is_reported_once() {
        let Ok(file) = File::options().write(true).open("/dev/full") else {
            return crate::skip::skip("dev-full", "this host has no /dev/full");
        };
        let state = OutputState::default();
        let mut sink = Output { file, state: state.clone(), stop: Arc::default(), closed: false };
        sink.write(b"lost");
        sink.write(b"lost too");
        assert_eq!(state.failure().map(|e| e.kind()), Some(ErrorKind::StorageFull));
        assert!(state.failure().is_none() && state.first_byte().is_none());
    }
}
