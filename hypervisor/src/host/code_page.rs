//! A page of this process whose code changes: what the nanobenchmark of self-modifying code needs.

use std::ptr::NonNull;

use paravane_nano::{SMC_BYTES, smc};

const BYTES: usize = 4096;
const _: () = assert!(SMC_BYTES <= BYTES);

/// A page that can be written and executed.
#[derive(Debug)]
pub struct CodePage(NonNull<u8>);

impl CodePage {
    /// A new one; `None` on hosts that forbid such memory.
    pub fn new() -> Option<Self> {
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new, private, anonymous memory, at no particular address.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, rights, flags, -1, 0) };
        if page == libc::MAP_FAILED { None } else { NonNull::new(page.cast()).map(Self) }
    }

    /// Stores into an instruction and runs it, `n` times rounded down to a multiple of 4, and at least 4 times; whether
    /// every store had its effect at once.
    pub fn store_and_run(&mut self, n: u64) -> (u64, bool) {
        let n = (n - n % 4).max(4);
        // SAFETY: a page of this value's own that can be read, written and executed.
        let sum = unsafe { smc(n, self.0.as_ptr()) };
        (n, u128::from(sum) == u128::from(n) * (u128::from(n) + 1) / 2)
    }
}

impl Drop for CodePage {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and used by nobody else.
        unsafe { libc::munmap(self.0.as_ptr().cast(), BYTES) };
    }
}
