//! send(2) with flags, which the standard library's sockets do not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Flags of [`send`]: do not wait, and raise no SIGPIPE if the other side has closed the connection.
pub const NOW: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Sends bytes through a socket; returns how many it took.
///
/// # Errors
/// What send(2) reports; with [`NOW`], `WouldBlock` when the socket has no room and `BrokenPipe` when it is closed.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: `bytes` is live and as long as its length says.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
