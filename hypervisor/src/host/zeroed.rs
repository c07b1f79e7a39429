//! Arrays of zeroes that grow with a guest's memory, or are large: an allocation that may be refused.
//!
//! What is never touched of them costs no memory. The standard library's own ways to the same end the whole program
//! when the host refuses; here it is an error, after which another engine or a smaller guest may do. Nothing else
//! belongs here.

use std::alloc::{Layout, alloc_zeroed};

use zerocopy::FromZeros;

/// The host has no memory, or no addresses, for something that the hypervisor needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host refuses {} for {what}; free memory, lower --mem, or raise the limit (ulimit -v)",
    crate::text::units::bytes(*bytes)
)]
pub struct NoMemory {
    /// What it was for.
    pub what: &'static str,
    /// Bytes that were asked for.
    pub bytes: u64,
}

/// `len` values whose bytes are all zero.
pub fn zeroed<T: FromZeros>(what: &'static str, len: u64) -> Result<Vec<T>, NoMemory> {
    let bytes = len.saturating_mul(size_of::<T>() as u64);
    let refused = NoMemory { what, bytes };
    let len = usize::try_from(len).map_err(|_| refused)?;
    let layout = Layout::array::<T>(len).map_err(|_| refused)?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not 0.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return Err(refused);
    }
    // SAFETY: the global allocator gave `start` for an array of `len` values of T, and all of its bytes are zero,
    // which `FromZeros` says is a value of T.
    Ok(unsafe { Vec::from_raw_parts(start.cast::<T>(), len, len) })
}

/// An empty list with room for `len` values, so that filling it allocates nothing.
pub fn room<T>(what: &'static str, len: u64) -> Result<Vec<T>, NoMemory> {
    let refused = NoMemory { what, bytes: len.saturating_mul(size_of::<T>() as u64) };
    let mut list = Vec::new();
    list.try_reserve_exact(usize::try_from(len).map_err(|_| refused)?).map_err(|_| refused)?;
    Ok(list)
}

/// Checks that there is room for the hypervisor's tables of a fixed size, which are made one by one and cannot be
/// refused by then. Keeps nothing; costs two system calls.
///
/// Not by the allocator: glibc takes the release of a large block as a sign to serve blocks of that size from its heap
/// from then on (mallopt(3), M_MMAP_THRESHOLD), where calloc has to write their zeroes.
pub fn check_own_room() -> Result<(), NoMemory> {
    /// Several times what they take: the ledger, which is most of it, has 900 KiB.
    const OWN: usize = 4 << 20;
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, wherever there is room; nothing else is changed.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), OWN, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(NoMemory { what: "the hypervisor's own tables", bytes: OWN as u64 });
    }
    // SAFETY: the mapping that was just made, which nobody knows of.
    unsafe { libc::munmap(start, OWN) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::host::zeroed::*;

    #[test]
    fn what_is_had_is_zero_and_as_long_as_asked() {
        assert_eq!(zeroed::<u16>("a test", 3), Ok(vec![0; 3]));
        assert_eq!(zeroed::<u64>("a test", 0), Ok(vec![]));
        assert!(room::<u64>("a test", 7).unwrap().capacity() >= 7);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for len in [1 << 50, u64::MAX / 8, u64::MAX] {
            assert!(zeroed::<u64>("a test", len).is_err() && room::<u64>("a test", len).is_err(), "{len:#x}");
        }
        let text = zeroed::<u64>("a test", 1 << 50).unwrap_err().to_string();
        assert!(text.contains("8 PiB for a test") && text.contains("--mem"), "{text}");
    }
}
