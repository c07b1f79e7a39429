//! `console_io`: the hypervisor's own console. Xen refuses it to ordinary domains.

use paravane_abi::Errno;
use paravane_abi::console::{CONSOLEIO_READ, CONSOLEIO_WRITE};
use paravane_abi::hypercall::CONSOLE_IO;

use super::call;

/// Writes bytes.
///
/// # Errors
/// `EPERM` or another error if this domain may not use it.
pub fn write(bytes: &[u8]) -> Result<(), Errno> {
    let args = [u64::from(CONSOLEIO_WRITE), bytes.len() as u64, bytes.as_ptr().addr() as u64];
    // SAFETY: reads `bytes` only.
    unsafe { call(CONSOLE_IO, args) }.map(drop)
}

/// Reads up to `buffer.len()` bytes; returns how many.
///
/// # Errors
/// As for [`write()`].
pub fn read(buffer: &mut [u8]) -> Result<usize, Errno> {
    let args = [u64::from(CONSOLEIO_READ), buffer.len() as u64, buffer.as_mut_ptr().addr() as u64];
    // SAFETY: writes `buffer` only.
    unsafe { call(CONSOLE_IO, args) }.map(|count| buffer.len().min(count as usize))
}
