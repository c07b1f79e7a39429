//! `--net unix=PATH`: frames over an AF_UNIX stream socket, to passt's socket, QEMU's `-netdev stream`, or a program of
//! the user's own.

#![forbid(unsafe_code)]

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::stream::Framed;
use crate::backend::unix::{UnixError, bind};

/// Connects to the program that listens on `path`.
pub fn connect(path: &Path) -> Result<Framed, UnixError> {
    let socket = UnixStream::connect(path).and_then(Framed::connected);
    socket.map_err(|error| UnixError::Connect { path: path.to_owned(), error })
}

/// Listens on `path`.
pub fn listen(path: &Path) -> Result<Framed, UnixError> {
    let socket = bind(path).and_then(Framed::listening);
    socket.map_err(|error| UnixError::Listen { path: path.to_owned(), error })
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
