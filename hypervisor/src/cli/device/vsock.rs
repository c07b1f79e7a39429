//! `--vsock`: how it is parsed, and how the socket device is opened.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::backend::unix::listen_hint;
use crate::text::printable;
use crate::virtio::vsock::Vsock;

/// A `--vsock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOption {
    /// The guest's address: 3 to 2^32 - 2.
    pub cid: u64,
    /// The socket on the host.
    pub socket: PathBuf,
}

/// A `--vsock` that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsockOptionError {
    /// An unknown option.
    #[error("unknown option `{0}`; expected cid=NUMBER,socket=PATH")]
    Unknown(String),
    /// One of the two options is missing.
    #[error("expected cid=NUMBER,socket=PATH; {0} is missing")]
    Missing(&'static str),
    /// An address that a guest cannot have.
    #[error(
        "`{0}` is not an address that a guest can have: give a number from 3 to 4294967294 (0 to 2 are the \
         hypervisor's and the host's)"
    )]
    Cid(String),
}

/// The socket on the host cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {error}{}", printable::path(path), listen_hint(error))]
pub struct OpenError {
    path: PathBuf,
    error: io::Error,
}

impl FromStr for VsockOption {
    type Err = VsockOptionError;

    fn from_str(text: &str) -> Result<Self, VsockOptionError> {
        let (mut cid, mut socket) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("cid", number)) => {
                    let value = number.parse().ok().filter(|value| (3..u64::from(u32::MAX)).contains(value));
                    cid = Some(value.ok_or_else(|| VsockOptionError::Cid(number.to_owned()))?);
                }
                Some(("socket", path)) if !path.is_empty() => socket = Some(PathBuf::from(path)),
                _ => return Err(VsockOptionError::Unknown(part.to_owned())),
            }
        }
        let cid = cid.ok_or(VsockOptionError::Missing("cid"))?;
        Ok(Self { cid, socket: socket.ok_or(VsockOptionError::Missing("socket"))? })
    }
}

impl VsockOption {
    /// Opens the device and its socket on the host.
    ///
    /// # Errors
    /// When the socket cannot be opened; the message says what to do.
    pub fn open(&self) -> Result<Vsock, OpenError> {
        Vsock::new(self.cid, &self.socket).map_err(|error| OpenError { path: self.socket.clone(), error })
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::device::vsock::*;

    #[test]
    fn options_are_parsed_and_mistakes_named() {
        use VsockOptionError::{Cid, Missing, Unknown};
        let parse = |text: &str| text.parse::<VsockOption>();
        let right = VsockOption { cid: 3, socket: "/run/v".into() };
        assert_eq!(parse("cid=3,socket=/run/v"), Ok(right.clone()));
        assert_eq!(parse("socket=/run/v,cid=3"), Ok(right));
        assert_eq!(parse("cid=3"), Err(Missing("socket")));
        assert_eq!(parse("socket=v"), Err(Missing("cid")));
        for bad in ["2", "4294967295", "-1", "x", ""] {
            assert_eq!(parse(&format!("cid={bad},socket=v")), Err(Cid(bad.into())));
        }
        for bad in ["", "cid", "socket=", "uds=v"] {
            assert_eq!(parse(bad), Err(Unknown(bad.into())));
        }
    }
}
