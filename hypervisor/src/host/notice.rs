//! Lines for the user on standard error, while a guest runs and after it.
//!
//! Any thread may write them. Writing never panics, unlike `eprintln!`, and waits for a reader only until the run is
//! asked to end ([`stop_waiting`]): a pipe that nobody reads, or a terminal stopped by Ctrl-S, must not delay the
//! end. Only [`stop_waiting`] and [`has_room`] are async-signal-safe.
//!
//! What may not be done here: holding a lock while waiting, or setting O_NONBLOCK (the open file description is shared
//! with the programs that started this one).

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The most bytes of one write(2). POSIX guarantees that a pipe for which poll(2) reports room takes PIPE_BUF bytes
/// (4096 on Linux) without blocking.
pub const AT_ONCE: usize = libc::PIPE_BUF;
/// The same for a terminal, for which POSIX guarantees nothing: Linux reports room when there are 256 bytes or more.
const AT_ONCE_TERMINAL: usize = 64;
/// How long one wait for a reader lasts, in milliseconds. After each, the end of the run is checked for.
const WAIT_MS: libc::c_int = 50;

static NO_WAITING: AtomicBool = AtomicBool::new(false);

/// Writes one line, beginning with the program's name.
pub fn notice(what: impl Display) {
    text(&format!("paravane: {what}\n"));
}

/// Writes text unchanged.
pub fn text(text: &str) {
    let stderr = io::stderr();
    // A failure to write to standard error cannot be reported anywhere.
    let _ = write(stderr.as_fd(), text.as_bytes());
}

/// Writes all of `bytes`, and waits for a reader as [`notice`] does.
///
/// # Errors
/// What write(2) reports, and `TimedOut` if there is no room and the run is asked to end.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    send(fd, bytes, &NO_WAITING)
}

/// Writes as much of `bytes` as there is room for now, and waits for nobody; returns how many those were. May be
/// called with a lock held.
///
/// # Errors
/// What write(2) reports.
pub fn write_now(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let at_once = at_once(fd);
    let mut rest = bytes;
    while !rest.is_empty() && has_room(fd, 0) {
        match write_piece(fd, rest.get(..at_once).unwrap_or(rest)) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(bytes.len() - rest.len())
}

/// From now on, text for which there is no room is dropped. Async-signal-safe.
pub fn stop_waiting() {
    NO_WAITING.store(true, Ordering::Release);
}

/// Waits at most `wait_ms` milliseconds until `fd` has room or has failed; returns whether it does. Async-signal-safe.
pub fn has_room(fd: BorrowedFd<'_>, wait_ms: libc::c_int) -> bool {
    writable(fd, wait_ms) != 0
}

/// What poll(2) says of writing to `fd`, after at most `wait_ms` milliseconds; 0 if nothing.
fn writable(fd: BorrowedFd<'_>, wait_ms: libc::c_int) -> libc::c_short {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, live for the call.
    let reported = unsafe { libc::poll(&raw mut poll, 1, wait_ms) };
    if reported > 0 { poll.revents } else { 0 }
}

/// Whether `fd` is a pipe or a socket whose reader is gone, so that a write would raise SIGPIPE.
pub fn is_deserted(fd: BorrowedFd<'_>) -> bool {
    writable(fd, 0) & (libc::POLLERR | libc::POLLHUP) != 0
}

/// Writes all of `bytes`; gives up with `TimedOut` once `give_up` is set and there is no room.
fn send(fd: BorrowedFd<'_>, mut bytes: &[u8], give_up: &AtomicBool) -> io::Result<()> {
    let at_once = at_once(fd);
    while !bytes.is_empty() {
        while !has_room(fd, WAIT_MS) {
            if give_up.load(Ordering::Acquire) {
                return Err(io::Error::new(ErrorKind::TimedOut, "nobody reads it"));
            }
        }
        match write_piece(fd, bytes.get(..at_once).unwrap_or(bytes)) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How much a descriptor with room takes without blocking.
fn at_once(fd: BorrowedFd<'_>) -> usize {
    if fd.is_terminal() { AT_ONCE_TERMINAL } else { AT_ONCE }
}

/// One write(2) of some bytes; how many of them were written.
fn write_piece(fd: BorrowedFd<'_>, piece: &[u8]) -> io::Result<usize> {
    // SAFETY: `piece` is live and as long as its length says.
    let written = unsafe { libc::write(fd.as_raw_fd(), piece.as_ptr().cast(), piece.len()) };
    match usize::try_from(written) {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Ok(count) => Ok(count),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests;
