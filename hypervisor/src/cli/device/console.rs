//! `--console`: how it is parsed, and how its back end is opened.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use crate::backend::console::backend::Backend;
use crate::backend::console::file::{FileEnd, FileError};
use crate::backend::console::loopback::Loopback;
use crate::backend::console::pty::{Pty, PtyError};
use crate::backend::console::unix::Socket;
use crate::backend::unix::UnixError;

/// A `--console`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleOption {
    /// `stdio`: the program's standard input and output.
    Stdio,
    /// `file=PATH`: output only.
    File {
        /// The file.
        path: PathBuf,
        /// `append`: keeps the file's content.
        append: bool,
    },
    /// `unix=PATH`: a stream socket.
    Unix {
        /// The socket.
        path: PathBuf,
        /// `server`: waits for programs instead of connecting to one.
        server: bool,
    },
    /// `pty`: a new pseudo-terminal.
    Pty,
    /// `loopback`: output comes back as input.
    Loopback,
}

/// A `--console` that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleOptionError {
    /// An unknown back end.
    #[error("expected stdio, file=PATH, unix=PATH, pty or loopback, not `{0}`")]
    Backend(String),
    /// An option that this back end does not have.
    #[error("unknown option `{0}`; file=PATH has append, unix=PATH has server, the others have none")]
    Unknown(String),
    /// A path is missing.
    #[error("`{0}` needs a path")]
    Empty(&'static str),
}

/// A console's back end cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `file=`.
    #[error(transparent)]
    File(#[from] FileError),
    /// `unix=`.
    #[error(transparent)]
    Unix(#[from] UnixError),
    /// `pty`.
    #[error(transparent)]
    Pty(#[from] PtyError),
    /// The host refused a resource.
    #[error("{0}")]
    Host(#[from] io::Error),
}

impl FromStr for ConsoleOption {
    type Err = ConsoleOptionError;

    fn from_str(text: &str) -> Result<Self, ConsoleOptionError> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, path) = first.split_once('=').unwrap_or((first, ""));
        let mut option = match (name, path) {
            ("stdio", "") => Self::Stdio,
            ("pty", "") => Self::Pty,
            ("loopback", "") => Self::Loopback,
            ("file", "") => return Err(ConsoleOptionError::Empty("file=PATH")),
            ("unix", "") => return Err(ConsoleOptionError::Empty("unix=PATH")),
            ("file", path) => Self::File { path: path.into(), append: false },
            ("unix", path) => Self::Unix { path: path.into(), server: false },
            _ => return Err(ConsoleOptionError::Backend(first.to_owned())),
        };
        for part in parts {
            match (part, &mut option) {
                ("append", Self::File { append: flag, .. }) => *flag = true,
                ("server", Self::Unix { server: flag, .. }) => *flag = true,
                _ => return Err(ConsoleOptionError::Unknown(part.to_owned())),
            }
        }
        Ok(option)
    }
}

impl ConsoleOption {
    /// The file or socket that the option names.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::File { path, .. } | Self::Unix { path, .. } => Some(path),
            Self::Stdio | Self::Pty | Self::Loopback => None,
        }
    }

    /// Opens the back end; calls `announce` with the name of a pseudo-terminal. `None` for the program's standard input
    /// and output, which the caller has to provide.
    ///
    /// # Errors
    /// When the back end cannot be opened; the message says what to do.
    pub fn open(
        &self,
        announce: impl FnOnce(&std::path::Path),
    ) -> Result<Option<Box<dyn Backend>>, OpenError> {
        Ok(Some(match self {
            Self::Stdio => return Ok(None),
            Self::File { path, append } => Box::new(FileEnd::open(path, *append)?),
            Self::Unix { path, server: false } => Box::new(Socket::connect(path)?),
            Self::Unix { path, server: true } => Box::new(Socket::listen(path)?),
            Self::Pty => {
                let pty = Pty::open()?;
                announce(pty.path());
                Box::new(pty)
            }
            Self::Loopback => Box::new(Loopback::new()?),
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::device::console::*;

    #[test]
    fn options_are_parsed_and_mistakes_named() {
        use ConsoleOptionError::{Backend, Empty, Unknown};
        let parse = |text: &str| text.parse::<ConsoleOption>();
        let file = |append| ConsoleOption::File { path: "log".into(), append };
        let unix = |server| ConsoleOption::Unix { path: "/run/c".into(), server };
        let right = [
            ("stdio", ConsoleOption::Stdio),
            ("pty", ConsoleOption::Pty),
            ("loopback", ConsoleOption::Loopback),
            ("file=log", file(false)),
            ("file=log,append", file(true)),
            ("unix=/run/c", unix(false)),
            ("unix=/run/c,server", unix(true)),
        ];
        for (text, option) in right {
            assert_eq!(parse(text), Ok(option), "{text}");
        }
        let wrong = [
            ("", Backend("".into())),
            ("tty", Backend("tty".into())),
            ("stdio=1", Backend("stdio=1".into())),
            ("file", Empty("file=PATH")),
            ("unix=,server", Empty("unix=PATH")),
            ("file=log,server", Unknown("server".into())),
            ("unix=c,append", Unknown("append".into())),
            ("pty,raw", Unknown("raw".into())),
            ("stdio,", Unknown("".into())),
        ];
        for (text, error) in wrong {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
