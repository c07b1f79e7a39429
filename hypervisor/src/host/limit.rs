//! Names the resource limit (setrlimit(2)) that caused an error of the host.
//!
//! EMFILE, EAGAIN and EFBIG say that a limit was reached, but not which one, and not how to raise it. What may not be
//! done here: guessing a limit for an error number that has other causes. Any thread may use this; it is not
//! async-signal-safe.

use std::fmt;
use std::io;

/// Something that the host refused, and the limit that caused it if there is one.
#[derive(Debug)]
pub struct Limited {
    what: &'static str,
    error: io::Error,
}

impl Limited {
    /// `what` was refused (an infinitive: "make a timer") with `error`.
    pub fn new(what: &'static str, error: io::Error) -> Self {
        Self { what, error }
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}{}", self.what, self.error, Advice::of_timer(&self.error))
    }
}

impl std::error::Error for Limited {}

/// What to do about an error. Its text follows the error's; it is empty where no limit causes the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice(Option<(&'static str, &'static str, libc::__rlimit_resource_t)>);

impl Advice {
    /// For descriptors: open, socket, eventfd, memfd_create, clone with a pidfd, fcntl(F_DUPFD).
    pub fn of_files(error: &io::Error) -> Self {
        Self(match error.raw_os_error() {
            Some(libc::EMFILE) => Some(("open files", "ulimit -n", libc::RLIMIT_NOFILE)),
            _ => None,
        })
    }
    /// For timers, whose signals the kernel reserves in advance (timer_create(2), EAGAIN).
    pub fn of_timer(error: &io::Error) -> Self {
        Self(match error.raw_os_error() {
            Some(libc::EAGAIN) => Some(("pending signals", "ulimit -i", libc::RLIMIT_SIGPENDING)),
            _ => None,
        })
    }
    /// For processes and threads (clone(2), EAGAIN).
    pub fn of_processes(error: &io::Error) -> Self {
        Self(match error.raw_os_error() {
            Some(libc::EAGAIN) => Some(("processes", "ulimit -u", libc::RLIMIT_NPROC)),
            _ => Self::of_files(error).0,
        })
    }
    /// For files that are written (write(2), EFBIG).
    pub fn of_writes(error: &io::Error) -> Self {
        Self(match error.raw_os_error() {
            Some(libc::EFBIG) => Some(("file sizes", "ulimit -f", libc::RLIMIT_FSIZE)),
            _ => None,
        })
    }
    /// Whether a limit caused the error.
    pub fn is_some(self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((what, command, resource)) = self.0 else { return Ok(()) };
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is live and has room for one rlimit.
        let known = unsafe { libc::getrlimit(resource, &raw mut limit) } == 0;
        if known && limit.rlim_cur != libc::RLIM_INFINITY {
            write!(f, "; the limit of {what} is {}: raise it ({command})", limit.rlim_cur)
        } else {
            write!(f, "; raise the limit of {what} ({command})")
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::host::limit::*;

    #[test]
    fn the_limit_behind_an_error_is_named() {
        let error = io::Error::from_raw_os_error;
        let text = |advice: Advice| advice.to_string();
        assert!(text(Advice::of_files(&error(libc::EMFILE))).contains("ulimit -n"));
        assert!(text(Advice::of_timer(&error(libc::EAGAIN))).contains("ulimit -i"));
        assert!(text(Advice::of_processes(&error(libc::EAGAIN))).contains("ulimit -u"));
        assert!(text(Advice::of_processes(&error(libc::EMFILE))).contains("ulimit -n"));
        assert!(text(Advice::of_writes(&error(libc::EFBIG))).contains("ulimit -f"));
        assert_eq!(text(Advice::of_files(&error(libc::EACCES))), "");
        let message = Limited::new("make a timer", error(libc::EAGAIN)).to_string();
        assert!(
            message.starts_with("cannot make a timer: ") && message.contains("pending signals"),
            "{message}"
        );
    }
}
