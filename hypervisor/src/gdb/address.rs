//! Where gdb connects to.

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::text::printable;

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host's name or address, and a port; port 0 is one that is free.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Not a place to connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// It is none.
    #[error(
        "\"{}\" is no address for gdb to connect to: use HOST:PORT, a port, or the path of a socket with a / in it",
        printable::lines(.0)
    )]
    Unknown(String),
    /// It is a file, most likely the kernel's.
    #[error("{} is a file and no socket; name the kernel before --gdb, or write --gdb=ADDR", printable::path(.0))]
    File(PathBuf),
}

/// The host that is meant where none is named: nobody else can connect.
const LOOPBACK: &str = "127.0.0.1";

impl Address {
    /// The one that is meant where none is named.
    pub const DEFAULT: &str = "127.0.0.1:1234";
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let path = Path::new(text);
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => return Ok(Self::Unix(path.to_owned())),
            Ok(_) => return Err(BadAddress::File(path.to_owned())),
            Err(_) if text.contains('/') => return Ok(Self::Unix(path.to_owned())),
            Err(_) => {}
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse().map_err(|_| BadAddress::Unknown(text.to_owned()))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Self::Tcp(if host.is_empty() { LOOPBACK } else { host }.to_owned(), port))
    }
}

/// As gdb's `target remote` has it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", printable::path(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_host_is_this_machine_alone() {
        let parsed = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        assert_eq!(parsed("1234").as_deref(), Ok("127.0.0.1:1234"));
        assert_eq!(parsed(":1234").as_deref(), Ok("127.0.0.1:1234"));
        assert_eq!(parsed("0.0.0.0:1").as_deref(), Ok("0.0.0.0:1"));
        assert_eq!(parsed("[::1]:1").as_deref(), Ok("[::1]:1"));
        assert_eq!("/nowhere/gdb".parse(), Ok(Address::Unix("/nowhere/gdb".into())));
        assert!(matches!(parsed("kernel"), Err(BadAddress::Unknown(_))));
        assert!(matches!(parsed("a:65536"), Err(BadAddress::Unknown(_))));
        assert!(matches!(parsed("/dev/null"), Err(BadAddress::File(_))), "as in `--gdb KERNEL`");
    }
}
