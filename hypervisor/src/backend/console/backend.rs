//! The interface of a console's host side: it takes the guest's output and has input for the guest.
//!
//! A back end never blocks and never fails. When it has no room, the guest's request waits. When nobody is at the other
//! end, output is lost, as with a pulled cable.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What the device is ready to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The guest has room for input.
    pub read: bool,
    /// Output of the guest waits for room.
    pub write: bool,
}

/// Descriptors for poll(2), which ignores [`NOTHING`].
pub type Watch = [libc::pollfd; 3];

/// No descriptor to wait for.
pub const NOTHING: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };

/// Waits for `events` of `fd`.
pub fn watch(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// The host's side of a console.
pub trait Backend: Send {
    /// What to wait for in poll(2).
    fn watch(&self, wish: Wish) -> Watch;
    /// Handles the `revents` of poll(2). Afterwards, poll(2) does not report the same event at once, or
    /// [`Backend::read`] or [`Backend::write`] can make progress.
    fn ready(&mut self, watched: &Watch);
    /// Writes output; returns how many bytes were taken, 0 if there is no room now. Lost bytes count as taken.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Reads input; returns how many bytes, 0 if there are none now.
    fn read(&mut self, into: &mut [u8]) -> usize;
    /// The terminal's size, if it is a terminal.
    fn size(&self) -> Option<Size> {
        None
    }
}
