//! `--net unix=PATH`: frames over an AF_UNIX stream socket, to passt's socket, QEMU's `-netdev stream`, or a
//! program of one's own.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::stream::Framed;
use crate::text::printable;

/// A socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// Nobody listens.
    #[error(
        "cannot connect to {path}: {error}; start the program that listens there first, or add `,server` to \
         wait for it",
        path = printable::path(path)
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path}: {error}{}", listen_hint(error), path = printable::path(path))]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Connects to whoever listens on `path`.
pub fn connect(path: &Path) -> Result<Framed, UnixError> {
    let socket = UnixStream::connect(path).and_then(Framed::connected);
    socket.map_err(|error| UnixError::Connect { path: path.to_owned(), error })
}

/// Listens on `path`.
pub fn listen(path: &Path) -> Result<Framed, UnixError> {
    let socket = bind(path).and_then(Framed::listening);
    socket.map_err(|error| UnixError::Listen { path: path.to_owned(), error })
}

/// What to do when a socket cannot be made.
pub(crate) fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; a program listens there, or a file is in the way: end the one, remove the other, or name another path"
        }
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            "; name a path in a directory that exists and is yours"
        }
        io::ErrorKind::InvalidInput => "; a socket's path has 107 bytes at most",
        _ => "",
    }
}

/// Makes a socket at `path`; one that a former run left behind, and nobody listens on, is replaced.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

fn is_left_behind(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(refused)
}

#[cfg(test)]
mod tests {
    use crate::backend::net::backend::Backend;
    use crate::backend::net::unix::*;

    #[test]
    fn sockets_left_behind_are_replaced_and_others_are_not() {
        let path = std::env::temp_dir().join(format!("paravane-net-unix-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let text = connect(&path).unwrap_err().to_string();
        assert!(text.contains("start the program that listens there first"), "{text}");
        // A dropped listener leaves its file.
        drop(listen(&path).unwrap());
        let host = listen(&path).unwrap();
        assert!(!host.is_up());
        let text = listen(&path).unwrap_err().to_string();
        assert!(text.contains("cannot listen") && text.contains("name another path"), "{text}");
        let long = listen(Path::new(&"x".repeat(108))).unwrap_err().to_string();
        assert!(long.ends_with("a socket's path has 107 bytes at most"), "{long}");
        let nowhere = listen(Path::new("/nonexistent/s")).unwrap_err().to_string();
        assert!(nowhere.ends_with("name a path in a directory that exists and is yours"), "{nowhere}");
        assert!(connect(&path).unwrap().is_up());
        drop(host);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
    }
}
