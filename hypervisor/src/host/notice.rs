//! Lines for the user on standard error, while a guest runs and after it.
//!
//! Any thread may send them. They never panic, unlike `eprintln!`, and wait for a reader only until the end of the run
//! was asked for ([`stop_waiting`]): a pipe that nobody reads, or a terminal stopped by Ctrl-S, must not hold up the
//! end. What may not be done here: keeping a lock while waiting, or setting O_NONBLOCK (the open file is shared with
//! the programs that started this one).

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that one write(2) may have. POSIX guarantees that a pipe takes PIPE_BUF (4096 on Linux) without blocking when
/// poll(2) says that it has room.
pub const AT_ONCE: usize = libc::PIPE_BUF;
/// The same for a terminal, for which nothing is guaranteed: Linux reports room from 256 bytes upwards.
const AT_ONCE_TERMINAL: usize = 64;
/// How long one wait for a reader lasts, in milliseconds, before the end of the run is looked for again.
const WAIT_MS: libc::c_int = 50;

static NO_WAITING: AtomicBool = AtomicBool::new(false);

/// One line, after the program's name.
pub fn notice(what: impl Display) {
    text(&format!("paravane: {what}\n"));
}

/// Text as it is.
pub fn text(text: &str) {
    let stderr = io::stderr();
    // Nobody is left to be told of a failure.
    let _ = write(stderr.as_fd(), text.as_bytes());
}

/// Writes all of `bytes`, waiting for a reader like text for the user does.
///
/// # Errors
/// What write(2) says, and `TimedOut` when nobody has read for as long as the end of the run could wait.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    send(fd, bytes, &NO_WAITING)
}

/// From now on text that cannot be written at once is dropped. Async-signal-safe.
pub fn stop_waiting() {
    NO_WAITING.store(true, Ordering::Release);
}

/// Whether `fd` has room for some bytes, or has failed, within `wait_ms`. Async-signal-safe.
pub fn has_room(fd: BorrowedFd<'_>, wait_ms: libc::c_int) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, live for the call.
    unsafe { libc::poll(&raw mut poll, 1, wait_ms) > 0 }
}

/// Writes all of `bytes`; gives up with `TimedOut` once `give_up` is set and there is no room.
fn send(fd: BorrowedFd<'_>, mut bytes: &[u8], give_up: &AtomicBool) -> io::Result<()> {
    let at_once = if fd.is_terminal() { AT_ONCE_TERMINAL } else { AT_ONCE };
    while !bytes.is_empty() {
        while !has_room(fd, WAIT_MS) {
            if give_up.load(Ordering::Acquire) {
                return Err(io::Error::new(ErrorKind::TimedOut, "nobody reads it"));
            }
        }
        let piece = bytes.get(..at_once).unwrap_or(bytes);
        // SAFETY: `piece` is live and as long as it says.
        let written = unsafe { libc::write(fd.as_raw_fd(), piece.as_ptr().cast(), piece.len()) };
        match usize::try_from(written) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
