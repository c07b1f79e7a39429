//! From the guest to standard output: unbuffered, in order, and with a message if anything is lost.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::input::Keyboard;
use crate::host::notice;
use crate::machine::console::ConsoleSink;
use crate::monitor::Control;

/// What happened to a console's output; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct OutputState {
    first_byte: Arc<OnceLock<Instant>>,
    failure: Arc<Mutex<Option<io::Error>>>,
    unread: Arc<AtomicBool>,
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
    /// Whether the last of it was dropped at the end of the run, because nobody took it.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}

/// Writes to a file descriptor of its own.
///
/// The guest waits for whoever reads it, until the end of the run is asked for: then it takes what the reader has room
/// for. O_NONBLOCK would be our parent's as well, so writes block, and the end interrupts them (see `ending`).
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    state: OutputState,
    /// Says whether the domain is to end: a reader that takes nothing must not hold it up.
    control: Control,
    /// To be started before a wait, for a user who wants to leave.
    early: Option<Keyboard>,
    /// Output was lost; what follows would only confuse.
    closed: bool,
}

impl Output {
    /// A sink on standard output. `early` is what reads the keyboard, if it may not wait for the first output.
    pub(super) fn stdout(state: OutputState, control: Control, early: Option<Keyboard>) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { file, state, control, early, closed: false })
    }

    /// Like `Write::write_all`, but waits for a terminal that somebody else made non-blocking, and gives up with
    /// `Ok(false)` when nobody takes the bytes after the domain's end was asked for.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            let ending = self.control.is_stopping();
            if ending && !notice::has_room(self.file.as_fd(), 0) {
                return Ok(false);
            }
            let piece = if ending { bytes.get(..notice::AT_ONCE).unwrap_or(bytes) } else { bytes };
            match self.file.write(piece) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                // The end may have been asked for.
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    notice::has_room(self.file.as_fd(), -1);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

impl ConsoleSink for Output {
    fn write(&mut self, bytes: &[u8]) {
        if self.closed || bytes.is_empty() {
            return;
        }
        self.early.take_if(|keyboard| keyboard.has_started());
        if let Some(keyboard) = &self.early
            && !notice::has_room(self.file.as_fd(), 0)
        {
            keyboard.start();
        }
        match self.write_all(bytes) {
            Ok(true) => {
                self.state.first_byte.get_or_init(Instant::now);
            }
            Ok(false) => {
                self.closed = true;
                self.state.unread.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                self.closed = true;
                *self.state.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
    }
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
        let mut sink =
            Output { file, state: state.clone(), control: Control::default(), early: None, closed: false };
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
            return crate::testing::skip::skip("dev-full", "this host has no /dev/full");
        };
        let state = OutputState::default();
        let mut sink =
            Output { file, state: state.clone(), control: Control::default(), early: None, closed: false };
        sink.write(b"lost");
        sink.write(b"lost too");
        assert_eq!(state.failure().map(|e| e.kind()), Some(ErrorKind::StorageFull));
        assert!(state.failure().is_none() && state.first_byte().is_none());
    }
}
