//! `--console stdio`: the program's standard input and output, a terminal or not.
//!
//! Input comes through a socket from the thread that reads standard input for any guest and filters the escape key.
//! Output must never block, but the inherited descriptor must not become non-blocking, because the parent process may
//! share it. So the same terminal or pipe is opened again where possible.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, NOTHING, Size, Watch, Wish, watch};
use crate::host::limit::Advice;
use crate::host::notice::has_room;
use crate::host::notice::notice;
use crate::host::socket::send;

/// Bytes that a terminal or pipe takes without blocking once poll(2) reports that it has room.
const CAREFUL: usize = 64;

/// Standard input and output as a console's back end.
#[derive(Debug)]
pub struct Stdio {
    keys: Option<UnixStream>,
    output: Option<Output>,
    size: Option<Size>,
    resized: EventFd,
}

/// The program's half.
#[derive(Debug)]
pub struct Outside {
    /// Input is sent into this. It waits there until the guest reads it.
    pub keys: UnixStream,
    /// To be written to when the terminal's size may have changed; `None` without a terminal.
    pub resized: Option<EventFd>,
}

/// The output, by the way in which blocking is avoided.
#[derive(Debug)]
enum Output {
    /// It does not block: it was opened again, or is a file.
    Free(File),
    /// A socket: send(2) has a flag for it.
    Socket(OwnedFd),
    /// It cannot be opened again: poll(2) is called first, and few bytes are written.
    Shared(File),
}

impl Output {
    fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(fd.try_clone_to_owned()?);
        let kind = file.metadata()?.file_type();
        if kind.is_socket() {
            return Ok(Self::Socket(file.into()));
        }
        if !kind.is_fifo() && !kind.is_char_device() {
            // Not opened again, because it would then have another file position.
            return Ok(Self::Free(file));
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again = File::options().write(true).custom_flags(flags).open(again);
        Ok(again.map_or(Self::Shared(file), Self::Free))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Free(file) | Self::Shared(file) => file.as_fd(),
            Self::Socket(socket) => socket.as_fd(),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Free(file) => file.write(bytes),
            Self::Socket(socket) => send(socket.as_fd(), bytes, libc::MSG_DONTWAIT),
            Self::Shared(file) => {
                if !has_room(file.as_fd(), 0) {
                    return Err(ErrorKind::WouldBlock.into());
                }
                file.write(bytes.get(..CAREFUL).unwrap_or(bytes))
            }
        }
    }

    /// The terminal's size; `None` if it is not a terminal, or does not know its size.
    fn size(&self) -> Option<Size> {
        // SAFETY: all zeroes is a valid winsize.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and `size` is what this request fills.
        let known = unsafe { libc::ioctl(self.fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } == 0;
        (known && size.ws_col > 0 && size.ws_row > 0)
            .then_some(Size { columns: size.ws_col, rows: size.ws_row })
    }
}

impl Stdio {
    /// A console that prints to `output`, and the program's half.
    ///
    /// # Errors
    /// When the host has no descriptors left, or `output` is closed.
    pub fn new(output: BorrowedFd<'_>) -> io::Result<(Self, Outside)> {
        let (keys, typed) = UnixStream::pair()?;
        typed.set_nonblocking(true)?;
        let resized = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let output = Output::new(output)?;
        let size = output.size();
        let outside = Outside { keys, resized: size.map(|_| resized.try_clone()).transpose()? };
        Ok((Self { keys: Some(typed), output: Some(output), size, resized }, outside))
    }
}

impl Backend for Stdio {
    fn watch(&self, wish: Wish) -> Watch {
        let keys = self.keys.as_ref().filter(|_| wish.read);
        let output = self.output.as_ref().filter(|_| wish.write);
        [
            keys.map_or(NOTHING, |keys| watch(keys.as_raw_fd(), libc::POLLIN)),
            output.map_or(NOTHING, |output| watch(output.fd().as_raw_fd(), libc::POLLOUT)),
            watch(self.resized.as_raw_fd(), libc::POLLIN),
        ]
    }

    fn ready(&mut self, [.., resized]: &Watch) {
        if resized.revents != 0 {
            // An error means that it is empty.
            let _ = self.resized.read();
            let now = self.output.as_ref().and_then(Output::size);
            self.size = now.or(self.size);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(output) = &mut self.output else { return bytes.len() };
        match output.write(bytes) {
            Ok(count) if count > 0 => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            failed => {
                let why = failed.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                // A closed pipe needs no message: its reader has gone.
                if why.kind() != ErrorKind::BrokenPipe {
                    let advice = Advice::of_writes(&why);
                    notice(format_args!("the console's output is lost from here on: {why}{advice}"));
                }
                self.output = None;
                bytes.len()
            }
        }
    }

    fn read(&mut self, into: &mut [u8]) -> usize {
        let Some(keys) = &mut self.keys else { return 0 };
        match keys.read(into) {
            Ok(count) if count > 0 => return count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The end of the input does not end the guest.
            _ => self.keys = None,
        }
        0
    }

    fn size(&self) -> Option<Size> {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::console::stdio::*;

    #[test]
    fn a_full_pipe_does_not_block_and_keeps_its_flags() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut end, outside) = Stdio::new(writer.as_fd()).unwrap();
        assert!(outside.resized.is_none() && end.size().is_none(), "a pipe has no size");
        let mut sent = 0;
        loop {
            match end.write(&[b'z'; 1000]) {
                0 => break,
                count => sent += count,
            }
        }
        // SAFETY: the call takes no pointer, and the descriptor is open.
        let flags = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        let mut bytes = vec![0; sent];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(end.write(b"more"), 4);
    }

    #[test]
    fn sockets_files_and_descriptors_that_cannot_be_opened_again() {
        let (mut ours, other) = UnixStream::pair().unwrap();
        let (mut end, _outside) = Stdio::new(other.as_fd()).unwrap();
        assert_eq!(end.write(b"abc"), 3);
        let mut bytes = [0; 3];
        ours.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        while end.write(&[0; 4096]) > 0 {}

        let (mut reader, writer) = io::pipe().unwrap();
        let mut shared = Output::Shared(File::from(OwnedFd::from(writer)));
        let mut sent = 0;
        let full = loop {
            match shared.write(&[7; 4096]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        reader.read_exact(&mut vec![0; sent]).unwrap();
    }

    #[test]
    fn keys_arrive_and_end() {
        let (_reader, writer) = io::pipe().unwrap();
        let (mut end, mut outside) = Stdio::new(writer.as_fd()).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(end.read(&mut bytes), 0);
        outside.keys.write_all(b"keys").unwrap();
        assert_eq!((end.read(&mut bytes), &bytes[..4]), (4, &b"keys"[..]));
        drop(outside);
        assert_eq!(end.read(&mut bytes), 0);
        assert!(end.watch(Wish { read: true, write: false })[0].fd == -1, "the end is reported once");
    }
}
