//! The boundary between a kernel and whatever answers its hypercalls.

#[cfg(doc)]
use paravane_abi::Errno;

/// Something that answers hypercalls.
pub trait Hypercalls {
    /// Makes hypercall `number`; the result is a value or a negated error number ([`Errno::from_result`]).
    ///
    /// # Safety
    /// Addresses among the arguments must be valid for what the call reads and writes there, and what the call
    /// does to the domain's memory and state must be sound for the code that runs after it.
    unsafe fn call(&mut self, number: u64, args: [u64; 6]) -> i64;
}
