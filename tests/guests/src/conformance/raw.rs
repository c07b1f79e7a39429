//! Hypercalls as the ABI has them: a number, and a structure where the call wants its address.

use paravane_guest::abi::Errno;
use paravane_guest::abi::hypercall::VCPU_OP;
use paravane_guest::hypercall::call;

use super::calls::NOWHERE;

/// Makes a call whose arguments do no harm, whether they are taken or refused.
pub(super) fn raw<const N: usize>(number: u64, args: [u64; N]) -> Result<u64, Errno> {
    // SAFETY: the checks name only places that are their own, and undo what would outlive them.
    unsafe { call(number, args) }
}

/// An operation whose structure is not there.
pub(super) fn nowhere(number: u64, command: u32) -> Result<u64, Errno> {
    raw(number, [command.into(), NOWHERE])
}

/// An operation with its structure; what came of it, and the structure afterwards.
pub(super) fn op<T: Copy>(number: u64, command: u32, mut value: T) -> (Result<u64, Errno>, T) {
    let outcome = raw(number, [command.into(), &raw mut value as u64]);
    // SAFETY: initialised, and perhaps written to by the hypervisor, in whose structures any bits are fine.
    (outcome, unsafe { (&raw const value).read_volatile() })
}

/// As [`op`], for what only the outcome is of interest of.
pub(super) fn does<T: Copy>(number: u64, command: u32, value: T) -> Result<u64, Errno> {
    op(number, command, value).0
}

/// An operation of `vcpu_op` on vCPU 0 with its structure.
pub(super) fn vcpu<T: Copy>(command: u32, mut value: T) -> (Result<u64, Errno>, T) {
    let outcome = raw(VCPU_OP, [command.into(), 0, &raw mut value as u64]);
    // SAFETY: as for `op`.
    (outcome, unsafe { (&raw const value).read_volatile() })
}
