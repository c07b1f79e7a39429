//! Linux's system calls that the standard library lacks.

use std::io::Error;

use libc::{c_int, c_void, pid_t};

/// Forks. The child runs `child` and ends with the status that it returns.
///
/// Only a process with one thread may call this: locks that other threads hold would stay locked in the child.
pub fn fork(child: impl FnOnce() -> i32) -> Result<pid_t, String> {
    // SAFETY: the caller has one thread, so no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(format!("fork: {}", Error::last_os_error())),
        0 => {
            let status = child();
            // SAFETY: ends this process at once, so that none of the parent's buffers is flushed twice.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(pid),
    }
}

/// Waits for a child. Returns its exit status, or which signal killed it.
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

/// Memory that is private to this process, or shared with its children.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Zeroed memory of `pages` pages; `flags` is MAP_PRIVATE or MAP_SHARED.
    pub fn new(pages: usize, flags: c_int) -> Result<Self, String> {
        let len = pages * PAGE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so that no existing mapping changes.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags | libc::MAP_ANONYMOUS, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("mmap: {}", Error::last_os_error()));
        }
        Ok(Self { start: start.cast(), len })
    }

    /// The bytes. They may only be read and written while the protection allows it.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes from `start` are mapped while `self` lives, and borrowed mutably only once. Memory that
        // is shared with another process is read only after that process has ended.
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
        // SAFETY: the pages belong to this mapping, and `&mut self` excludes slices of it.
        let result = unsafe { libc::mprotect(start.cast(), pages * PAGE, prot) };
        if result != 0 { Err(format!("mprotect: {}", Error::last_os_error())) } else { Ok(()) }
    }

    /// Discards pages: they read as zeroes afterwards.
    pub fn discard(&mut self, first: usize, pages: usize) -> Result<(), String> {
        assert!((first + pages) * PAGE <= self.len);
        let start = self.start.wrapping_add(first * PAGE);
        // SAFETY: the pages belong to this mapping, and its bytes have no invariants.
        let result = unsafe { libc::madvise(start.cast(), pages * PAGE, libc::MADV_DONTNEED) };
        if result != 0 { Err(format!("madvise: {}", Error::last_os_error())) } else { Ok(()) }
    }

    /// Changes the length, which may move the mapping.
    pub fn resize(&mut self, pages: usize) -> Result<(), String> {
        // SAFETY: only `self` has the mapping, and no slice of it exists while `self` is borrowed mutably.
        let start = unsafe { libc::mremap(self.start.cast(), self.len, pages * PAGE, libc::MREMAP_MAYMOVE) };
        if start == libc::MAP_FAILED {
            return Err(format!("mremap: {}", Error::last_os_error()));
        }
        (self.start, self.len) = (start.cast(), pages * PAGE);
        Ok(())
    }

    /// Moves the mapping to the address of another one, which it replaces.
    pub fn move_to(&mut self, target: Self) -> Result<(), String> {
        assert_eq!(target.len, self.len);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges belong to these mappings and have the same length, and no slice of either exists.
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
        // SAFETY: the range belongs to `self`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// A signal handler: gets the signal's number, its `siginfo_t` and the interrupted context.
pub type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs `handler` for `signal`.
pub fn handle(signal: c_int, handler: Handler) -> Result<(), String> {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handlers of this program call only async-signal-safe functions.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result != 0 { Err(format!("sigaction: {}", Error::last_os_error())) } else { Ok(()) }
}

/// Microseconds between timer signals: long enough for a guest on a busy host to make progress between two.
pub const PERIOD: libc::suseconds_t = 20_000;

/// Sends SIGALRM at this interval, in microseconds; 0 stops it.
pub fn every(micros: libc::suseconds_t) {
    let period = libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: `timer` outlives the call, and no other pointer is passed.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
