//! What is behind a console on the host: an end that bytes go to and come from.
//!
//! A back end never blocks and never fails. Where there is no room now it says so, and the guest's request
//! waits; where there is nobody any more bytes are lost, as on a cable that was pulled.

use std::os::fd::RawFd;

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What a device could go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The guest has room for what is typed.
    pub read: bool,
    /// Something of the guest's waits for room.
    pub write: bool,
}

/// Descriptors for poll(2); those that are [`NOTHING`] are passed over.
pub type Watch = [libc::pollfd; 3];

/// Nothing to wait for.
pub const NOTHING: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };

/// To wait for `events` of `fd`.
pub fn watch(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// The host's side of a console.
pub trait Backend: Send {
    /// What to wait for.
    fn watch(&self, wish: Wish) -> Watch;
    /// What was waited for has happened (`revents` of poll(2)). Afterwards the same does not happen again at
    /// once, or [`Backend::read`] or [`Backend::write`] has something to do.
    fn ready(&mut self, watched: &Watch);
    /// Passes bytes on, in order; how many. 0: there is no room now. Bytes for nobody count as passed on.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Takes what was typed; how many bytes. 0: nothing now.
    fn read(&mut self, into: &mut [u8]) -> usize;
    /// The terminal's size, for an end that is one.
    fn size(&self) -> Option<Size> {
        None
    }
}
