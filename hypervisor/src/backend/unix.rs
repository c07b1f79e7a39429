//! AF_UNIX sockets that users name: those of networks, consoles and socket devices.

#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::text::printable;

/// A socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// Cannot connect.
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
    /// Cannot listen.
    #[error("cannot listen on {path}: {error}{}", listen_hint(error), path = printable::path(path))]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Advice for a socket that cannot be created.
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

/// Creates a listening socket at `path`. A socket left from a former run, on which nobody listens, is replaced.
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
