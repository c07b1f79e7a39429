//! `--console file=PATH`: the guest's output goes to a file. There is no input.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::backend::{Backend, NOTHING, Watch, Wish, watch};
use crate::host::limit::Advice;
use crate::host::notice::notice;
use crate::text::printable;

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened.
    #[error("cannot write to {}: {error}; name a file that can be made or written", printable::path(path))]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is a pipe or a socket: its reader could stop the guest, or be gone before the guest starts.
    #[error("{} is {kind}; use {instead} for that", printable::path(path))]
    NoFile {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to use instead.
        instead: &'static str,
    },
}

/// The file; `None` once a write has failed.
#[derive(Debug)]
pub struct FileEnd {
    file: Option<File>,
    path: PathBuf,
}

impl FileEnd {
    /// Creates the file, or empties it; with `append`, its content is kept.
    ///
    /// # Errors
    /// When it cannot be written, or is a pipe or a socket.
    pub fn open(path: &Path, append: bool) -> Result<Self, FileError> {
        let kind = std::fs::metadata(path).map(|meta| meta.file_type());
        let no_file = |kind, instead| FileError::NoFile { path: path.to_owned(), kind, instead };
        match kind {
            Ok(kind) if kind.is_fifo() => {
                return Err(no_file("a named pipe", "a socket (unix=PATH) or a shell's redirection (stdio)"));
            }
            Ok(kind) if kind.is_socket() => return Err(no_file("a socket", "unix=PATH")),
            _ => {}
        }
        let mut options = File::options();
        options.create(true).write(!append).append(append).truncate(!append);
        // A terminal at this path must neither block the device's thread nor become the controlling terminal.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        match options.open(path) {
            Ok(file) => Ok(Self { file: Some(file), path: path.to_owned() }),
            Err(error) => Err(FileError::Open { path: path.to_owned(), error }),
        }
    }
}

impl Backend for FileEnd {
    fn watch(&self, wish: Wish) -> Watch {
        let wanted = self.file.as_ref().filter(|_| wish.write);
        [wanted.map_or(NOTHING, |file| watch(file.as_raw_fd(), libc::POLLOUT)), NOTHING, NOTHING]
    }
    fn ready(&mut self, _: &Watch) {}
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(file) = &mut self.file else { return bytes.len() };
        match file.write(bytes) {
            Ok(count) if count > 0 => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            // Output after a gap would only confuse.
            failed => {
                let why = failed.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                let path = printable::path(&self.path);
                let advice = Advice::of_writes(&why);
                notice(format_args!(
                    "the console's output is lost from here on: cannot write to {path}: {why}{advice}"
                ));
                self.file = None;
                bytes.len()
            }
        }
    }
    fn read(&mut self, _: &mut [u8]) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::console::file::*;

    #[test]
    fn a_file_is_emptied_without_append() {
        let path = std::env::temp_dir().join(format!("paravane-console-{}", std::process::id()));
        for (append, text) in [(false, "one"), (true, "onetwo"), (false, "two")] {
            let mut end = FileEnd::open(&path, append).unwrap();
            let part = if text.starts_with("one") && !append { "one" } else { "two" };
            assert_eq!(end.write(part.as_bytes()), 3);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        let missing = path.join("below/a/file");
        let error = FileEnd::open(&missing, false).unwrap_err().to_string();
        assert!(error.starts_with("cannot write to ") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn pipes_and_sockets_are_refused_with_advice() {
        let path = std::env::temp_dir().join(format!("paravane-console-socket-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = FileEnd::open(&path, false).unwrap_err().to_string();
        assert!(error.ends_with("is a socket; use unix=PATH for that"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the string ends with NUL.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(FileEnd::open(&path, false).unwrap_err().to_string().contains("a named pipe"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn output_to_a_full_disk_is_lost() {
        if !Path::new("/dev/full").exists() {
            return crate::testing::skip::skip("dev-full", "this host has no /dev/full");
        }
        let mut end = FileEnd::open(Path::new("/dev/full"), false).unwrap();
        for _ in 0..3 {
            assert_eq!(end.write(b"lost"), 4);
        }
        let wish = Wish { read: true, write: true };
        assert!(end.watch(wish).iter().all(|fd| fd.fd == -1), "nothing to wait for");
    }
}
