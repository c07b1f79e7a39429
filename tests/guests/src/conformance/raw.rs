//! Hypercalls as the ABI defines them: a number and arguments, among them addresses of structures.

use paravane_guest::abi::Errno;
use paravane_guest::abi::hypercall::VCPU_OP;
use paravane_guest::hypercall::call;

use super::calls::NOWHERE;

/// Makes a hypercall whose arguments do no harm, whether it accepts or refuses them.
pub(super) fn raw<const N: usize>(number: u64, args: [u64; N]) -> Result<u64, Errno> {
    // SAFETY: the checks only name memory of their own, and undo what would outlive them.
    unsafe { call(number, args) }
}

/// An operation whose structure is not mapped.
pub(super) fn nowhere(number: u64, command: u32) -> Result<u64, Errno> {
    raw(number, [command.into(), NOWHERE])
}

/// Makes an operation with its structure. Returns its result, and the structure afterwards.
pub(super) fn op<T: Copy>(number: u64, command: u32, mut value: T) -> (Result<u64, Errno>, T) {
    let outcome = raw(number, [command.into(), &raw mut value as u64]);
    // SAFETY: the structure is initialised. The hypervisor may have written to it; any bits are valid.
    (outcome, unsafe { (&raw const value).read_volatile() })
}

/// Like [`op`], but returns only the result.
pub(super) fn does<T: Copy>(number: u64, command: u32, value: T) -> Result<u64, Errno> {
    op(number, command, value).0
}

/// An operation of `vcpu_op` on vCPU 0 with its structure.
pub(super) fn vcpu<T: Copy>(command: u32, mut value: T) -> (Result<u64, Errno>, T) {
    let outcome = raw(VCPU_OP, [command.into(), 0, &raw mut value as u64]);
    // SAFETY: as for `op`.
    (outcome, unsafe { (&raw const value).read_volatile() })
}
