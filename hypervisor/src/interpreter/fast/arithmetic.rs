//! Moves, arithmetic and logic on registers, memory and immediate operands.

use std::marker::PhantomData;

use crate::exec::alu::{product, shift};
use crate::exec::status::{self, Status};
use crate::interpreter::core::Core;
use crate::interpreter::op::{Handler, Leave, Op};
use crate::interpreter::outside::Machine;

/// An operation with two operands, of which the first is the destination.
pub(in crate::interpreter) trait Binary {
    /// It reads its destination.
    const READS: bool = true;
    /// It writes its destination.
    const WRITES: bool = true;
    /// The result, and the status flags after it.
    fn apply(a: u64, b: u64, status: Status, size: usize) -> (u64, Status);
}

macro_rules! binary {
    ($($(#[$meta:meta])* $name:ident, $reads:literal, $writes:literal, |$a:ident, $b:ident, $status:ident, $size:ident| $result:expr;)*) => {$(
        $(#[$meta])*
        pub(in crate::interpreter) struct $name;
        impl Binary for $name {
            const READS: bool = $reads;
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply($a: u64, $b: u64, $status: Status, $size: usize) -> (u64, Status) {
                $result
            }
        }
    )*};
}

binary! {
    Mov, false, true, |_a, b, status, _size| (b, status);
    Add, true, true, |a, b, _status, size| status::add(a, b, false, size);
    Sub, true, true, |a, b, _status, size| status::sub(a, b, false, size);
    Cmp, true, false, |a, b, _status, size| status::sub(a, b, false, size);
    And, true, true, |a, b, _status, size| (a & b, Status::logic(a & b, size));
    Test, true, false, |a, b, _status, size| (a & b, Status::logic(a & b, size));
    Or, true, true, |a, b, _status, size| (a | b, Status::logic(a | b, size));
    Xor, true, true, |a, b, _status, size| (a ^ b, Status::logic(a ^ b, size));
    Imul, true, true, |a, b, _status, size| product::low(a, b, size);
    Shl, true, true, |a, b, _status, size| shift::left(a, b as u32, size);
    Shr, true, true, |a, b, _status, size| shift::right(a, b as u32, size);
    Sar, true, true, |a, b, _status, size| shift::arithmetic(a, b as u32, size);
    Rol, true, true, |a, b, status, size| turned(shift::turned_left(a, b as u32, size), status);
    Ror, true, true, |a, b, status, size| turned(shift::turned_right(a, b as u32, size), status);
    /// INC is a sum with the immediate operand 1 that keeps CF, DEC a difference.
    Inc, true, true, |a, b, status, size| keep_carry(status::add(a, b, false, size), status);
    Dec, true, true, |a, b, status, size| keep_carry(status::sub(a, b, false, size), status);
}

#[inline(always)]
fn turned((value, carry, overflow): (u64, bool, bool), status: Status) -> (u64, Status) {
    (value, status.rotated(carry, overflow))
}

#[inline(always)]
fn keep_carry((value, new): (u64, Status), old: Status) -> (u64, Status) {
    (value, new.with_carry(old.carry()))
}

/// The handlers of an operation for each form of its operands.
pub(in crate::interpreter) struct Forms<B>(PhantomData<B>);

/// Where the operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::interpreter) enum Form {
    RegisterRegister,
    RegisterImmediate,
    RegisterMemory,
    MemoryRegister,
    MemoryImmediate,
}

impl<B: Binary> Forms<B> {
    /// The handler for operands of `size` bytes; `None` where there is none.
    pub fn handler<X: Machine>(form: Form, size: usize) -> Option<Handler<X>> {
        macro_rules! sized {
            ($handler:ident) => {
                match size {
                    1 => $handler::<X, B, 1>,
                    4 => $handler::<X, B, 4>,
                    8 => $handler::<X, B, 8>,
                    _ => return None,
                }
            };
        }
        Some(match form {
            Form::RegisterRegister => sized!(register_register),
            Form::RegisterImmediate => sized!(register_immediate),
            Form::RegisterMemory => sized!(register_memory),
            Form::MemoryRegister => sized!(memory_register),
            Form::MemoryImmediate => sized!(memory_immediate),
        })
    }
}

#[inline(always)]
fn to_register<X: Machine, B: Binary, const SIZE: usize>(core: &mut Core<X>, op: &Op<X>, b: u64) {
    let a = if B::READS { core.place(op.to) } else { 0 };
    let (value, status) = B::apply(a, b, core.status, SIZE);
    if B::WRITES {
        core.set_place::<SIZE>(op.to, value);
    }
    if B::READS {
        core.status = status;
    }
}

fn register_register<X: Machine, B: Binary, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let b = core.place(op.from);
    to_register::<X, B, SIZE>(core, op, b);
    core.next(ops, at + 1, left)
}

fn register_immediate<X: Machine, B: Binary, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    to_register::<X, B, SIZE>(core, op, op.value);
    core.next(ops, at + 1, left)
}

fn register_memory<X: Machine, B: Binary, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    match core.load_operand::<SIZE>(op) {
        Ok(b) => {
            to_register::<X, B, SIZE>(core, op, b);
            core.next(ops, at + 1, left)
        }
        Err(exception) => core.raise_operand(op, exception, at, left),
    }
}

#[inline(always)]
fn to_memory<X: Machine, B: Binary, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    b: u64,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (va, user, status) = (core.effective(op), core.cpu.user, core.status);
    if !B::READS {
        let done = core.reach.store::<SIZE>(va, b, user);
        return core.after_store(done, op, ops, at, left);
    }
    if !B::WRITES {
        return match core.reach.load::<SIZE>(va, user) {
            Ok(a) => {
                core.status = B::apply(a, b, status, SIZE).1;
                core.next(ops, at + 1, left)
            }
            Err(exception) => core.raise_operand(op, exception, at, left),
        };
    }
    let done =
        core.reach.modify::<SIZE, _>(va, user, |a| B::apply(a, b, status, SIZE)).map(|(status, all)| {
            core.status = status;
            all
        });
    core.after_store(done, op, ops, at, left)
}

fn memory_register<X: Machine, B: Binary, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let b = core.place(op.from);
    to_memory::<X, B, SIZE>(core, op, b, ops, at, left)
}

fn memory_immediate<X: Machine, B: Binary, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let b = i64::from(op.other).cast_unsigned();
    to_memory::<X, B, SIZE>(core, op, b, ops, at, left)
}
