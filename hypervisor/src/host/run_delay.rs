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
        let before = own.ns();
        assert!(before.is_some());
        std::thread::spawn(move || assert!(own.ns() >= before, "whoever reads it")).join().unwrap();
    }
}
