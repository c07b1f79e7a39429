//! poll(2), for threads that serve a device.

use std::io;
use std::os::fd::RawFd;

/// Waits until one of `fds` has an event, for `timeout_ms` milliseconds at most (-1: without limit). Returns how many
/// have one; 0 also when a signal interrupted the call. Negative descriptors are ignored.
///
/// # Errors
/// What poll(2) reports, except for an interruption.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: libc::c_int) -> io::Result<usize> {
    let count = libc::nfds_t::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `fds` is a live array of `count` entries.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout_ms) };
    usize::try_from(ready).or_else(|_| match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        error => Err(error),
    })
}

/// Sleeps until one of `fds` is readable, or a signal comes.
///
/// # Errors
/// As [`poll`].
pub fn wait(fds: &[RawFd]) -> io::Result<()> {
    let mut polled: Vec<_> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    poll(&mut polled, -1).map(drop)
}
