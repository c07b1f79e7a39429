//! `--net`: how it is parsed, and how the network device is opened.

use std::path::PathBuf;
use std::str::FromStr;

use crate::backend::net::backend::Backend;
use crate::backend::net::mac::{BadMac, Mac};
use crate::backend::net::peer::Peer;
use crate::backend::net::tap;
use crate::backend::net::tap::{BadName, Tap, TapError};
use crate::backend::net::unix;
use crate::backend::net::user::{Lost, Ports, User, UserError};
use crate::backend::unix::UnixError;
use crate::virtio::net::Net;

/// The back end of a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendOption {
    /// `tap=NAME`: a TAP interface.
    Tap(String),
    /// `user`: passt, with these ports passed on.
    User(Ports),
    /// `unix=PATH`: a stream socket.
    Unix {
        /// The socket.
        path: PathBuf,
        /// `server`: waits for connections instead of making one.
        server: bool,
    },
    /// `peer`: a sink and source inside this process.
    Peer,
}

/// One `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOption {
    /// The back end.
    pub backend: BackendOption,
    /// `mac=ADDRESS`: the guest's address; `None`: a random one.
    pub mac: Option<Mac>,
}

/// A `--net` that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetOptionError {
    /// An unknown back end.
    #[error("expected tap=NAME, user, unix=PATH or peer first, not `{0}`")]
    Backend(String),
    /// An option that this back end does not have.
    #[error("unknown option `{0}`; user has tcp=PORTS and udp=PORTS, unix has server, all have mac=ADDRESS")]
    Unknown(String),
    /// A name that no interface can have.
    #[error(transparent)]
    Interface(#[from] BadName),
    /// Not a MAC address, or one that an interface cannot have.
    #[error(transparent)]
    Mac(#[from] BadMac),
    /// An option without a value.
    #[error("`{0}` needs a value")]
    Empty(&'static str),
}

/// A network device's back end cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `tap=`.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// `user`.
    #[error(transparent)]
    User(#[from] UserError),
    /// `unix=`.
    #[error(transparent)]
    Unix(#[from] UnixError),
}

fn value(text: &str, option: &'static str) -> Result<String, NetOptionError> {
    if text.is_empty() { Err(NetOptionError::Empty(option)) } else { Ok(text.to_owned()) }
}

fn interface(name: String) -> Result<String, NetOptionError> {
    tap::check_name(&name)?;
    Ok(name)
}

impl FromStr for NetOption {
    type Err = NetOptionError;

    fn from_str(text: &str) -> Result<Self, NetOptionError> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let backend = match first.split_once('=').unwrap_or((first, "")) {
            ("tap", name) => BackendOption::Tap(interface(value(name, "tap=NAME")?)?),
            ("unix", path) => BackendOption::Unix { path: value(path, "unix=PATH")?.into(), server: false },
            ("user", "") => BackendOption::User(Ports::default()),
            ("peer", "") => BackendOption::Peer,
            _ => return Err(NetOptionError::Backend(first.to_owned())),
        };
        let mut option = Self { backend, mac: None };
        for part in parts {
            option.add(part)?;
        }
        Ok(option)
    }
}

impl NetOption {
    fn add(&mut self, part: &str) -> Result<(), NetOptionError> {
        // Several lists of ports become one: passt separates ports by commas, too.
        let join = |list: &mut Option<String>, more: String| match list {
            Some(list) => *list = format!("{list},{more}"),
            None => *list = Some(more),
        };
        match (part.split_once('=').unwrap_or((part, "")), &mut self.backend) {
            (("mac", mac), _) => self.mac = Some(mac.parse()?),
            (("server", ""), BackendOption::Unix { server, .. }) => *server = true,
            (("tcp", list), BackendOption::User(ports)) => join(&mut ports.tcp, value(list, "tcp=PORTS")?),
            (("udp", list), BackendOption::User(ports)) => join(&mut ports.udp, value(list, "udp=PORTS")?),
            _ => return Err(NetOptionError::Unknown(part.to_owned())),
        }
        Ok(())
    }

    /// Opens the device with its back end. `lost` is called if passt fails to start, which can be later.
    ///
    /// # Errors
    /// When the back end cannot be opened; the message says what to do.
    pub fn open(&self, lost: &Lost) -> Result<Net, OpenError> {
        let backend: Box<dyn Backend> = match &self.backend {
            BackendOption::Tap(name) => Box::new(Tap::open(name)?),
            BackendOption::User(ports) => Box::new(User::start(ports, Lost::clone(lost))?),
            BackendOption::Unix { path, server: false } => Box::new(unix::connect(path)?),
            BackendOption::Unix { path, server: true } => Box::new(unix::listen(path)?),
            BackendOption::Peer => Box::new(Peer::default()),
        };
        Ok(Net::new(backend, self.mac.unwrap_or_else(Mac::random)))
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::device::net::*;

    fn parse(text: &str) -> Result<NetOption, NetOptionError> {
        text.parse()
    }

    #[test]
    fn options_are_parsed() {
        let tap = parse("tap=tap0,mac=02:00:00:00:00:01").unwrap();
        assert_eq!(tap.backend, BackendOption::Tap("tap0".into()));
        assert_eq!(tap.mac.unwrap().0, [2, 0, 0, 0, 0, 1]);
        assert_eq!(parse("user").unwrap().backend, BackendOption::User(Ports::default()));
        let ports = Ports { tcp: Some("8080:80,2222:22".into()), udp: Some("53".into()) };
        assert_eq!(parse("user,tcp=8080:80,udp=53,tcp=2222:22").unwrap().backend, BackendOption::User(ports));
        let unix = |server| BackendOption::Unix { path: "/run/net".into(), server };
        assert_eq!(parse("unix=/run/net").unwrap().backend, unix(false));
        assert_eq!(parse("unix=/run/net,server").unwrap().backend, unix(true));
        assert_eq!(parse("peer").unwrap(), NetOption { backend: BackendOption::Peer, mac: None });
    }

    #[test]
    fn mistakes_are_named() {
        use NetOptionError::{Backend, Empty, Interface, Mac, Unknown};
        let wrong = [
            ("", Backend("".into())),
            ("tun=x", Backend("tun=x".into())),
            ("user=me", Backend("user=me".into())),
            ("tap", Empty("tap=NAME")),
            ("tap=a/b", Interface(BadName("a/b".into()))),
            ("tap=sixteen-letters1", Interface(BadName("sixteen-letters1".into()))),
            ("unix=,server", Empty("unix=PATH")),
            ("user,tcp=", Empty("tcp=PORTS")),
            ("tap=t,server", Unknown("server".into())),
            ("tap=t,", Unknown("".into())),
            ("unix=p,tcp=1", Unknown("tcp=1".into())),
            ("peer,mac=01:00:00:00:00:01", Mac(BadMac("01:00:00:00:00:01".into()))),
            ("peer,mac=00:00:00:00:00:00", Mac(BadMac("00:00:00:00:00:00".into()))),
            ("peer,mac=2:0:0:0:0", Mac(BadMac("2:0:0:0:0".into()))),
            ("peer,mac=02:00:00:00:00:01:02", Mac(BadMac("02:00:00:00:00:01:02".into()))),
            ("peer,mac=02:00:00:00:00:+1", Mac(BadMac("02:00:00:00:00:+1".into()))),
            ("peer,mac=", Mac(BadMac("".into()))),
        ];
        for (text, error) in wrong {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
