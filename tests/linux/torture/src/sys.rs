//! Linux's calls, as far as the standard library does not have them.

use std::io::Error;

use libc::{c_int, c_void, pid_t};

/// Forks. The child runs `child` and ends with the status that it returns.
///
/// Only a process with one thread may call this: others' locks would stay locked in the child.
pub fn fork(child: impl FnOnce() -> i32) -> Result<pid_t, String> {
    // SAFETY: the caller has one thread, so the child finds no lock held by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(format!("fork: {}", Error::last_os_error())),
        0 => {
            let status = child();
            // SAFETY: ends this process; nothing of the parent's is flushed twice.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(pid),
    }
}

/// Waits for a child; its exit status, or a word about what killed it.
pub fn wait(pid: pid_t) -> Result<i32, String> {
    let mut status: c_int = 0;
    loop {
        // SAFETY: `status` outlives the call.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            break;
        }
        let error = Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(format!("waitpid: {error}"));
        }
    }
    if libc::WIFSIGNALED(status) {
        return Err(format!("a child was killed by signal {}", libc::WTERMSIG(status)));
    }
    Ok(libc::WEXITSTATUS(status))
}

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Memory of this process's own, or shared with its children.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Zeroed memory of `pages` pages; `flags` is MAP_PRIVATE or MAP_SHARED.
    pub fn new(pages: usize, flags: c_int) -> Result<Self, String> {
        let len = pages * PAGE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel chooses touches nothing that exists.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags | libc::MAP_ANONYMOUS, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("mmap: {}", Error::last_os_error()));
        }
        Ok(Self { start: start.cast(), len })
    }

    /// The bytes, to be read and written: not while the protection forbids that.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes from `start` are mapped for as long as `self` lives, and lent to one at a time. What is
        // shared with another process is only looked at when that has ended.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The address of byte `at`.
    pub fn address(&self, at: usize) -> *mut u8 {
        assert!(at < self.len);
        self.start.wrapping_add(at)
    }

    /// Changes the protection of pages.
    pub fn protect(&mut self, first: usize, pages: usize, prot: c_int) -> Result<(), String> {
        assert!((first + pages) * PAGE <= self.len);
        let start = self.start.wrapping_add(first * PAGE);
        // SAFETY: the pages are this mapping's; who holds no slice of them does not notice.
        let result = unsafe { libc::mprotect(start.cast(), pages * PAGE, prot) };
        if result != 0 { Err(format!("mprotect: {}", Error::last_os_error())) } else { Ok(()) }
    }

    /// Gives pages back: they read as zeroes afterwards.
    pub fn discard(&mut self, first: usize, pages: usize) -> Result<(), String> {
        assert!((first + pages) * PAGE <= self.len);
        let start = self.start.wrapping_add(first * PAGE);
        // SAFETY: the pages are this mapping's, and bytes without invariants.
        let result = unsafe { libc::madvise(start.cast(), pages * PAGE, libc::MADV_DONTNEED) };
        if result != 0 { Err(format!("madvise: {}", Error::last_os_error())) } else { Ok(()) }
    }

    /// Changes the length, which may move the mapping.
    pub fn resize(&mut self, pages: usize) -> Result<(), String> {
        // SAFETY: the mapping is ours alone, and nobody has a slice of it while `self` is borrowed mutably.
        let start = unsafe { libc::mremap(self.start.cast(), self.len, pages * PAGE, libc::MREMAP_MAYMOVE) };
        if start == libc::MAP_FAILED {
            return Err(format!("mremap: {}", Error::last_os_error()));
        }
        (self.start, self.len) = (start.cast(), pages * PAGE);
        Ok(())
    }

    /// Moves the mapping to where another one is, which it replaces.
    pub fn move_to(&mut self, target: Self) -> Result<(), String> {
        assert_eq!(target.len, self.len);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are ours and of the same length, and nobody has a slice of either.
        let start = unsafe { libc::mremap(self.start.cast(), self.len, self.len, flags, target.start) };
        if start == libc::MAP_FAILED {
            return Err(format!("mremap: {}", Error::last_os_error()));
        }
        self.start = start.cast();
        std::mem::forget(target);
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// What handles a signal, with its number, what is known of it, and the interrupted registers.
pub type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Has `handler` run on `signal`.
pub fn handle(signal: c_int, handler: Handler) -> Result<(), String> {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handlers of this program call nothing that a signal may not interrupt.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result != 0 { Err(format!("sigaction: {}", Error::last_os_error())) } else { Ok(()) }
}

/// Microseconds between timer signals: so long that a guest on a busy host gets something done between two.
pub const PERIOD: libc::suseconds_t = 20_000;

/// Sends SIGALRM every so many microseconds; 0 for no more.
pub fn every(micros: libc::suseconds_t) {
    let period = libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: `timer` outlives the call, and nothing else is passed.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
