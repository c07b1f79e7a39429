//! `--console pty`: a new pseudo-terminal, for a terminal program to open.
//!
//! While no program has it open, the guest's output is discarded; otherwise the pty's buffer would fill, and the guest
//! would wait for ever. poll(2) reports when the last program has closed it (`POLLHUP`), but not when one opens it:
//! inotify(7) watches the pty's name for that.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::{Path, PathBuf};

use super::backend::{Backend, NOTHING, Watch, Wish, watch};

/// The longest name of a pty: "/dev/pts/" and a number.
const NAME_LEN: usize = 64;
const GONE: libc::c_short = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;

/// A pty cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a pseudo-terminal: {0}; is /dev/pts mounted? unix=PATH needs none")]
pub struct PtyError(#[from] io::Error);

/// The master side of a pty.
#[derive(Debug)]
pub struct Pty {
    master: File,
    path: PathBuf,
    /// An inotify instance: readable after a program has opened the pty.
    opened: File,
    /// A program has it open.
    attached: bool,
    /// No program has it open, but input from before is left.
    unread: bool,
}

impl Pty {
    /// Creates a pty.
    ///
    /// # Errors
    /// When the host has none left, or has no ptys at all.
    pub fn open() -> Result<Self, PtyError> {
        // SAFETY: no pointer; the descriptor is ours alone.
        let master = unsafe {
            owned(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC))?
        };
        let fd = master.as_raw_fd();
        // SAFETY: a descriptor that is open.
        check(unsafe { libc::grantpt(fd) })?;
        // SAFETY: as above.
        check(unsafe { libc::unlockpt(fd) })?;
        let name = name(fd)?;
        make_raw(fd)?;
        // SAFETY: no pointer; the descriptor is ours alone.
        let opened = unsafe { owned(libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC))? };
        // Opened and closed once, the pty reports POLLHUP; a new one does not.
        // SAFETY: a string that ends with zero; the descriptor is ours alone.
        drop(unsafe { owned(libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)) }?);
        // SAFETY: as above.
        check(unsafe { libc::inotify_add_watch(opened.as_raw_fd(), name.as_ptr(), libc::IN_OPEN) })?;
        let path = PathBuf::from(name.to_str().map_err(|_| io::Error::from(ErrorKind::InvalidData))?);
        Ok(Self { master, path, opened, attached: false, unread: false })
    }

    /// The path to open it by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks whether a program has it open.
    fn look(&mut self) {
        let mut poll = watch(self.master.as_raw_fd(), libc::POLLIN);
        // SAFETY: one pollfd, valid for the call, which does not wait.
        unsafe { libc::poll(&mut poll, 1, 0) };
        self.note(poll.revents);
    }

    fn note(&mut self, revents: libc::c_short) {
        self.attached = revents & GONE == 0;
        self.unread = !self.attached && revents & libc::POLLIN != 0;
    }
}

/// # Safety
/// `fd` is an open descriptor that nobody else owns, or negative after a failure.
unsafe fn owned(fd: RawFd) -> io::Result<File> {
    check(fd)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn name(master: RawFd) -> io::Result<CString> {
    let mut bytes = [0u8; NAME_LEN];
    // SAFETY: the buffer is as long as it says.
    let error = unsafe { libc::ptsname_r(master, bytes.as_mut_ptr().cast(), bytes.len()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let name = CStr::from_bytes_until_nul(&bytes).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
    Ok(name.to_owned())
}

/// Makes the pty raw before a program opens it: otherwise it would echo the guest's output to the guest.
fn make_raw(fd: RawFd) -> io::Result<()> {
    let mut modes = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: room for a termios; 0 says that it was filled.
    check(unsafe { libc::tcgetattr(fd, modes.as_mut_ptr()) })?;
    // SAFETY: filled, see above; from here on a whole termios.
    check(unsafe {
        let mut modes = modes.assume_init();
        libc::cfmakeraw(&mut modes);
        libc::tcsetattr(fd, libc::TCSANOW, &modes)
    })
}

impl Backend for Pty {
    fn watch(&self, wish: Wish) -> Watch {
        let opened = watch(self.opened.as_raw_fd(), libc::POLLIN);
        let read = if wish.read { libc::POLLIN } else { 0 };
        let write = if wish.write && self.attached { libc::POLLOUT } else { 0 };
        // While no program has it open, poll(2) reports that again and again.
        let useful = self.attached || self.unread && wish.read;
        let master = if useful { watch(self.master.as_raw_fd(), read | write) } else { NOTHING };
        [master, opened, NOTHING]
    }

    fn ready(&mut self, [master, opened, _]: &Watch) {
        if opened.revents != 0 {
            let mut events = [0; 4096];
            // Drain the events: their number does not matter.
            while (&self.opened).read(&mut events).is_ok_and(|count| count == events.len()) {}
        }
        if opened.revents != 0 || master.revents & GONE != 0 {
            self.look();
        }
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if self.attached {
            self.look();
        }
        if !self.attached {
            return bytes.len();
        }
        match (&self.master).write(bytes) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => bytes.len(),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> usize {
        if !(self.attached || self.unread) {
            return 0;
        }
        match (&self.master).read(into) {
            Ok(count) if count > 0 => count,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted) => 0,
            // EIO: the last program has closed it.
            _ => {
                self.look();
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::console::pty::*;

    fn pty() -> Option<Pty> {
        Pty::open().inspect_err(|error| crate::testing::skip::skip("pty", error)).ok()
    }

    fn poll(pty: &mut Pty, wish: Wish) {
        let mut fds = pty.watch(wish);
        // SAFETY: the array is live and has that length.
        assert!(unsafe { libc::poll(fds.as_mut_ptr(), 3, -1) } > 0);
        pty.ready(&fds);
    }

    const READ: Wish = Wish { read: true, write: false };

    #[test]
    fn programs_come_and_go() {
        let Some(mut pty) = pty() else { return };
        for round in 0..3 {
            assert_eq!(pty.write(&[b'x'; 100_000]), 100_000, "for nobody");
            let mut user = File::options().read(true).write(true).open(pty.path()).unwrap();
            while !pty.attached {
                poll(&mut pty, READ);
            }
            assert_eq!(pty.write(b"prompt\n"), 7, "{round}");
            let mut bytes = [0; 7];
            user.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"prompt\n", "nothing from before, and not as a terminal changes it");
            user.write_all(b"mem\x03\r").unwrap();
            let (mut typed, mut got) = ([0; 16], 0);
            while got == 0 {
                poll(&mut pty, READ);
                got = pty.read(&mut typed);
            }
            assert_eq!(&typed[..got], b"mem\x03\r");
            user.write_all(b"bye").unwrap();
            drop(user);
            let mut last = Vec::new();
            while pty.attached || pty.unread {
                poll(&mut pty, READ);
                let got = pty.read(&mut typed);
                last.extend_from_slice(&typed[..got]);
            }
            assert_eq!(last, b"bye");
            let [master, ..] = pty.watch(Wish { read: true, write: true });
            assert_eq!(master.fd, -1, "poll(2) would report for ever that no program has it open");
        }
    }

    #[test]
    fn output_waits_for_a_program_that_does_not_read() {
        let Some(mut pty) = pty() else { return };
        let mut user = File::options().read(true).write(true).open(pty.path()).unwrap();
        while !pty.attached {
            poll(&mut pty, READ);
        }
        let mut sent = 0;
        loop {
            match pty.write(&[b'y'; 1000]) {
                0 => break,
                count => sent += count,
            }
        }
        let mut bytes = vec![0; sent];
        user.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, vec![b'y'; sent]);
        poll(&mut pty, Wish { read: false, write: true });
        assert_eq!(pty.write(b"more"), 4);
    }
}
