//! Random bytes from the host's kernel.

/// Fills `bytes` from getrandom(2); returns how many bytes are filled. Fewer than asked for only before the host's
/// kernel has seeded its generator, or for more than 256 bytes when a signal comes.
pub fn fill(bytes: &mut [u8]) -> usize {
    // SAFETY: `bytes` is live and as long as its length says.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(got).unwrap_or(0)
}
