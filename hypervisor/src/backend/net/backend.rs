//! The interface of a network: it takes frames from the guest and has frames for the guest.
//!
//! A back end never blocks and never fails. A frame that it cannot forward is lost, as on a wire; when the network is
//! gone, [`Backend::is_up`] returns false. The other side is trusted no more than the guest.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use super::header::Header;
use super::scatter_list::ScatterList;

/// The longest frame that any back end passes: 64 KiB of IP, an Ethernet header, and a VLAN tag.
pub const MAX_FRAME: usize = 65535 + 14 + 4;

/// The outcome of sending a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The frame was forwarded, or is lost.
    Done,
    /// There is no room now; [`Watch::events`] asks for `POLLOUT`.
    Later,
}

/// The outcome of receiving a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame was stored. Its length in bytes, header included; the header's `num_buffers` is not filled in.
    Frame(usize),
    /// A frame was longer than the list, and is lost.
    Lost,
    /// There is no frame now.
    Nothing,
}

/// What to wait for in poll(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// A descriptor for poll(2).
    pub fd: RawFd,
    /// `POLLIN`, `POLLOUT`; poll(2) always reports errors.
    pub events: libc::c_short,
}

/// The host's side of a network device.
pub trait Backend: Send {
    /// The supported offloads, as feature bits (see [`offload`](super::header::offload)).
    fn features(&self) -> u64 {
        0
    }
    /// The driver has accepted `features`. Called before any frame, on the device's thread, because it may take a
    /// while: for a TAP interface, the kernel takes a lock that all interfaces share.
    ///
    /// # Errors
    /// When the host refuses the offloads; the device then needs a reset.
    fn accept(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }
    /// Whether the network is there.
    fn is_up(&self) -> bool;
    /// What to wait for, if anything. `receive`: the guest has room for a frame.
    fn watch(&self, receive: bool) -> Option<Watch>;
    /// Handles the `revents` of poll(2). Afterwards, poll(2) does not report the same event at once, or
    /// [`Backend::receive`] or [`Backend::flush`] can make progress.
    fn ready(&mut self, revents: libc::c_short);
    /// Sends a frame. Its header was checked and is no longer in the list.
    fn send(&mut self, header: &Header, frame: &mut ScatterList<'_>) -> Sent;
    /// Sends frames that were kept to be sent together.
    fn flush(&mut self) {}
    /// Receives a frame into the list, header first.
    fn receive(&mut self, into: &mut ScatterList<'_>) -> Received;
}
