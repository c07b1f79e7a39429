//! Hypercalls: a typed function for each call, one file per family.
//!
//! [`Hypercalls`] is the boundary itself. Kernels use [`Hypervisor`]; tests on a host use a stand-in. The functions
//! here make their call at once; calls that can wait belong in a [`crate::queue`].

pub mod console;
pub mod event;
mod interface;
pub mod memory;
mod raw;
pub mod sched;
pub mod trap;
pub mod vcpu;
pub mod version;

use paravane_abi::Errno;

pub use interface::Hypercalls;
pub use raw::Hypervisor;
pub(crate) use raw::hypercall_page;

/// Makes a hypercall with up to six arguments.
///
/// # Errors
/// What the hypervisor answers.
///
/// # Safety
/// As for [`Hypercalls::call`].
pub unsafe fn call<const N: usize>(number: u64, args: [u64; N]) -> Result<u64, Errno> {
    let mut all = [0; 6];
    all.iter_mut().zip(args).for_each(|(slot, arg)| *slot = arg);
    // SAFETY: the caller's promise.
    Errno::from_result(unsafe { Hypervisor.call(number, all) })
}

/// Makes a hypercall of the form `(operation, address of a structure)`.
///
/// # Safety
/// `argument` must be the structure that the operation takes; as for [`Hypercalls::call`] otherwise.
unsafe fn operation<T>(number: u64, op: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the structure is borrowed exclusively; the rest is the caller's promise.
    unsafe { call(number, [u64::from(op), (&raw mut *argument).addr() as u64]) }
}
