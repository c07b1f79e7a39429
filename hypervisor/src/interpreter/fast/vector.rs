//! Moves of whole vector registers, which copy and clear memory.

use crate::interpreter::core::Core;
use crate::interpreter::op::{Leave, Op};
use crate::interpreter::outside::Machine;
use crate::machine::memory::PAGE_SIZE;

/// Whether the 16 bytes at `va` lie in one page, and are aligned where they must be. If not, the general form decides.
#[inline(always)]
fn is_simple<const ALIGNED: bool>(va: u64) -> bool {
    if ALIGNED { va.is_multiple_of(16) } else { va % PAGE_SIZE <= PAGE_SIZE - 16 }
}

/// MOVUPS and its kin from memory; with `ALIGNED`, MOVAPS.
pub(in crate::interpreter) fn load<X: Machine, const ALIGNED: bool>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (va, user) = (core.effective(op), core.cpu.user);
    if !is_simple::<ALIGNED>(va) || core.check_vector().is_err() {
        return core.leave(Leave::General, at, left);
    }
    match (core.reach.load::<8>(va, user), core.reach.load::<8>(va.wrapping_add(8), user)) {
        (Ok(low), Ok(high)) => {
            core.vector.xmm[usize::from(op.to) % 16] = u128::from(low) | u128::from(high) << 64;
            core.next(ops, at + 1, left)
        }
        (Err(exception), _) | (_, Err(exception)) => core.raise_operand(op, exception, at, left),
    }
}

/// The same to memory.
pub(in crate::interpreter) fn store<X: Machine, const ALIGNED: bool>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (va, user) = (core.effective(op), core.cpu.user);
    if !is_simple::<ALIGNED>(va) || core.check_vector().is_err() {
        return core.leave(Leave::General, at, left);
    }
    let value = core.vector.xmm[usize::from(op.from) % 16];
    let first = core.reach.store::<8>(va, value as u64, user);
    let done = first.and_then(|first| {
        // In one page with the first half: it does not fault.
        core.reach.store::<8>(va.wrapping_add(8), (value >> 64) as u64, user).map(|second| first && second)
    });
    core.after_store(done, op, ops, at, left)
}

/// XORPS, PXOR and the like of a register with itself: zero.
pub(in crate::interpreter) fn clear<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    if core.check_vector().is_err() {
        return core.leave(Leave::General, at, left);
    }
    core.vector.xmm[usize::from(op.to) % 16] = 0;
    core.next(ops, at + 1, left)
}
