//! Large arrays of zeroes, such as tables whose size depends on the guest's memory, allocated fallibly.
//!
//! Pages of them that are never touched take no memory. The standard library aborts the program when such an allocation
//! fails; here it is an error, so that another engine or a smaller guest can be tried. Nothing else belongs here. Any
//! thread may allocate; nothing here is async-signal-safe.

use std::alloc::{Layout, alloc_zeroed};

use zerocopy::FromZeros;

/// The host refused memory, or address space, that the hypervisor needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the host refuses {} for {what}; free memory, lower --mem, or raise the limit (ulimit -v)",
    crate::text::units::bytes(*bytes)
)]
pub struct NoMemory {
    /// What the memory was for.
    pub what: &'static str,
    /// The number of bytes asked for.
    pub bytes: u64,
}

/// Allocates `len` values whose bytes are all zero.
///
/// # Errors
/// When the host refuses the memory; the message names `what`.
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

/// An empty list with room for `len` values, so that filling it does not allocate.
///
/// # Errors
/// As [`zeroed`].
pub fn room<T>(what: &'static str, len: u64) -> Result<Vec<T>, NoMemory> {
    let refused = NoMemory { what, bytes: len.saturating_mul(size_of::<T>() as u64) };
    let mut list = Vec::new();
    list.try_reserve_exact(usize::try_from(len).map_err(|_| refused)?).map_err(|_| refused)?;
    Ok(list)
}

/// Checks that there is memory for the hypervisor's tables of fixed size, which are allocated later, one by one and
/// infallibly. Allocates nothing for longer than the call; takes two system calls.
///
/// It does not ask the allocator: when a large block is freed, glibc serves later blocks of that size from its heap
/// (mallopt(3), M_MMAP_THRESHOLD), where calloc has to write their zeroes.
///
/// # Errors
/// When the host refuses the memory.
pub fn check_own_room() -> Result<(), NoMemory> {
    /// Several times what the tables take: the ledger, the largest, has 900 KiB.
    const OWN: usize = 4 << 20;
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice; no other mapping is changed.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), OWN, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(NoMemory { what: "the hypervisor's own tables", bytes: OWN as u64 });
    }
    // SAFETY: unmaps the mapping that was just made, to which no pointer exists.
    unsafe { libc::munmap(start, OWN) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::host::zeroed::*;

    #[test]
    fn arrays_are_zero_and_of_the_length_asked_for() {
        assert_eq!(zeroed::<u16>("a test", 3), Ok(vec![0; 3]));
        assert_eq!(zeroed::<u64>("a test", 0), Ok(vec![]));
        assert!(room::<u64>("a test", 7).unwrap().capacity() >= 7);
    }

    #[test]
    fn an_allocation_that_the_host_refuses_is_an_error() {
        for len in [1 << 50, u64::MAX / 8, u64::MAX] {
            assert!(zeroed::<u64>("a test", len).is_err() && room::<u64>("a test", len).is_err(), "{len:#x}");
        }
        let text = zeroed::<u64>("a test", 1 << 50).unwrap_err().to_string();
        assert!(text.contains("8 PiB for a test") && text.contains("--mem"), "{text}");
    }
}
