//! What is behind a network device on the host: somewhere that frames go to and come from.
//!
//! A back end never blocks and never fails: a frame that it cannot pass on is lost, as on a wire, and a wire
//! that is gone is [`Backend::is_up`] being false. What the other side sends is no more to be trusted than
//! what the guest does.

use std::io;
use std::os::fd::RawFd;

use super::header::Header;
use super::scatter_list::ScatterList;

/// The longest frame that any back end passes: 64 KiB of IP, an Ethernet header, and a VLAN tag.
pub const MAX_FRAME: usize = 65535 + 14 + 4;

/// What became of a frame to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was passed on, or lost.
    Done,
    /// There is no room now; [`Watch::events`] asks for `POLLOUT`.
    Later,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame is in the pieces: so many bytes, its header among them. `num_buffers` is not filled in.
    Frame(usize),
    /// A frame was longer than the pieces, and is lost.
    Lost,
    /// Nothing, now.
    Nothing,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// A descriptor for poll(2).
    pub fd: RawFd,
    /// `POLLIN`, `POLLOUT`; errors are always told.
    pub events: libc::c_short,
}

/// The host's side of a network device.
pub trait Backend: Send {
    /// Offloads that it can do, as feature bits of the device.
    fn features(&self) -> u64 {
        0
    }
    /// The driver has accepted `features`. Before any frame, and by the device's thread: the host may take its time, as
    /// for a TAP interface it takes a lock that all interfaces share.
    ///
    /// # Errors
    /// When the host does not let it; the device then needs a reset.
    fn accept(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }
    /// Whether there is anything at the other end.
    fn is_up(&self) -> bool;
    /// What to wait for, if for anything, when there is room for a frame (`receive`) or not.
    fn watch(&self, receive: bool) -> Option<Watch>;
    /// What was waited for has happened (`revents` of poll(2)). Afterwards the same does not happen again at
    /// once, or [`Backend::receive`] and [`Backend::flush`] have something to do.
    fn ready(&mut self, revents: libc::c_short);
    /// Sends a frame, whose header was checked and is no longer in the pieces.
    fn send(&mut self, header: &Header, frame: &mut ScatterList<'_>) -> Sent;
    /// Passes on what it may have kept to send together.
    fn flush(&mut self) {}
    /// Receives a frame, header first.
    fn receive(&mut self, into: &mut ScatterList<'_>) -> Received;
}
