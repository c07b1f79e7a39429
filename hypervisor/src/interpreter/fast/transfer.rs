//! Moves that extend, addresses, the stack, and instructions that do nothing.

use crate::exec::operand::sign_extend;
use crate::interpreter::core::{Core, on_stack};
use crate::interpreter::op::{Leave, Op};
use crate::interpreter::outside::Machine;

/// The number of RSP.
const RSP: u8 = 4;
/// The number of RBP.
const RBP: u8 = 5;

#[inline(always)]
fn extended<const SIGN: bool, const FROM: usize>(value: u64) -> u64 {
    if SIGN {
        return sign_extend(value, FROM);
    }
    match FROM {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value & 0xffff_ffff,
    }
}

/// MOVZX, MOVSX and MOVSXD from a register.
pub(in crate::interpreter) fn extend<X: Machine, const SIGN: bool, const FROM: usize, const TO: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let value = extended::<SIGN, FROM>(core.place(op.from));
    core.set_place::<TO>(op.to, value);
    core.next(ops, at + 1, left)
}

/// The same from memory.
pub(in crate::interpreter) fn extend_memory<
    X: Machine,
    const SIGN: bool,
    const FROM: usize,
    const TO: usize,
>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    match core.load_operand::<FROM>(op) {
        Ok(value) => {
            core.set_place::<TO>(op.to, extended::<SIGN, FROM>(value));
            core.next(ops, at + 1, left)
        }
        Err(exception) => core.raise_operand(op, exception, at, left),
    }
}

/// LEA.
pub(in crate::interpreter) fn address<X: Machine, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let value = core.effective(op);
    core.set_place::<SIZE>(op.to, value);
    core.next(ops, at + 1, left)
}

/// NOP and its kin.
pub(in crate::interpreter) fn nothing<X: Machine>(
    core: &mut Core<X>,
    _: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    core.next(ops, at + 1, left)
}

/// PUSH of a register.
pub(in crate::interpreter) fn push<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let value = core.place(op.from);
    push_value(core, op, value, ops, at, left)
}

/// PUSH of an immediate operand.
pub(in crate::interpreter) fn push_immediate<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    push_value(core, op, op.value, ops, at, left)
}

/// PUSH from memory.
pub(in crate::interpreter) fn push_memory<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    match core.load_operand::<8>(op) {
        Ok(value) => push_value(core, op, value, ops, at, left),
        Err(exception) => core.raise_operand(op, exception, at, left),
    }
}

#[inline(always)]
fn push_value<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    value: u64,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (rsp, user) = (core.place(RSP).wrapping_sub(8), core.cpu.user);
    match core.reach.store::<8>(rsp, value, user) {
        Err(exception) => core.raise(on_stack(exception), at, left),
        done => {
            core.set_place::<8>(RSP, rsp);
            core.after_store(done, op, ops, at, left)
        }
    }
}

/// POP of a register.
pub(in crate::interpreter) fn pop<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (rsp, user) = (core.place(RSP), core.cpu.user);
    match core.reach.load::<8>(rsp, user) {
        Ok(value) => {
            core.set_place::<8>(RSP, rsp.wrapping_add(8));
            core.set_place::<8>(op.to, value);
            core.next(ops, at + 1, left)
        }
        Err(exception) => core.raise(on_stack(exception), at, left),
    }
}

/// LEAVE.
pub(in crate::interpreter) fn leave_frame<X: Machine>(
    core: &mut Core<X>,
    _: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (frame, user) = (core.place(RBP), core.cpu.user);
    match core.reach.load::<8>(frame, user) {
        Ok(value) => {
            core.set_place::<8>(RSP, frame.wrapping_add(8));
            core.set_place::<8>(RBP, value);
            core.next(ops, at + 1, left)
        }
        Err(exception) => core.raise(on_stack(exception), at, left),
    }
}
