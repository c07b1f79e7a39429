//! How long a thread has been ready to run without a CPU: what the host's scheduler took from a vCPU.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The account of the thread that opened it (Documentation/scheduler/sched-stats.rst, `/proc/<pid>/schedstat`).
#[derive(Debug)]
pub struct RunDelay(File);

impl RunDelay {
    /// Of the calling thread.
    ///
    /// # Errors
    /// When the kernel keeps no such account, or the host has no descriptor left.
    pub fn of_this_thread() -> io::Result<Self> {
        File::open("/proc/thread-self/schedstat").map(Self)
    }

    /// Nanoseconds so far; `None` if the kernel does not say. A system call of about a microsecond.
    pub fn ns(&self) -> Option<u64> {
        let mut text = [0; 64];
        let len = self.0.read_at(&mut text, 0).ok()?;
        delay(text.get(..len)?)
    }
}

/// The second of three numbers: time on a CPU, time ready without one, how often it got one.
fn delay(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_second_number_counts() {
        assert_eq!(delay(b"12 345 6\n"), Some(345));
        for broken in [&b""[..], b"12", b"12 x 3", b"\xff \xff"] {
            assert_eq!(delay(broken), None);
        }
    }

    #[test]
    fn every_thread_has_its_own() {
        // Other kernels than Debian's may be built without it.
        let Ok(own) = RunDelay::of_this_thread() else { return };
        assert!(own.ns().is_some());
        let file =
            |delay: &RunDelay| std::fs::read_link(format!("/proc/self/fd/{}", delay.0.as_raw_fd())).unwrap();
        let ours = file(&own);
        let theirs = std::thread::spawn(move || (file(&own), file(&RunDelay::of_this_thread().unwrap())));
        let (seen_there, theirs) = theirs.join().unwrap();
        assert!(seen_there == ours && theirs != ours, "{ours:?} {theirs:?}");
    }
}
