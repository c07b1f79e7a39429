//! Near jumps, calls and returns; moves and sets by a condition.
//!
//! A direct branch within its page is linked to the operation that it leads to, once that is known.

use iced_x86::ConditionCode;
use paravane_abi::addr::is_canonical;

use crate::exec::status::Status;
use crate::interpreter::core::{Core, on_stack};
use crate::interpreter::op::{Handler, Leave, NOWHERE, Op};
use crate::interpreter::outside::Machine;
use crate::x86::exception::Exception;

const RSP: u8 = 4;
/// In place of an operation's place: nothing is to be linked.
const UNLINKED: usize = usize::MAX;

/// The condition with this number in instructions.
const fn condition(number: u8) -> ConditionCode {
    use ConditionCode as C;
    match number {
        0 => C::o,
        1 => C::no,
        2 => C::b,
        3 => C::ae,
        4 => C::e,
        5 => C::ne,
        6 => C::be,
        7 => C::a,
        8 => C::s,
        9 => C::ns,
        10 => C::p,
        11 => C::np,
        12 => C::l,
        13 => C::ge,
        14 => C::le,
        _ => C::g,
    }
}

#[inline(always)]
fn holds<const C: u8>(status: Status) -> bool {
    matches!(status.holds(const { condition(C) }), Some(true))
}

/// One handler for each condition.
macro_rules! by_condition {
    ($condition:expr, $($path:tt)*) => {
        by_condition!(@ $condition, [$($path)*]
            o 0, no 1, b 2, ae 3, e 4, ne 5, be 6, a 7, s 8, ns 9, p 10, np 11, l 12, ge 13, le 14, g 15)
    };
    (@ $condition:expr, $path:tt $($name:ident $number:literal),*) => {
        match $condition {
            $(ConditionCode::$name => by_condition!(% $path $number),)*
            ConditionCode::None => return None,
        }
    };
    (% [$handler:ident, $($generic:tt),*] $number:literal) => { $handler::<X, $number, $($generic),*> };
}

/// The handler of a conditional jump.
pub(in crate::interpreter) fn jump_if<X: Machine>(by: ConditionCode) -> Option<Handler<X>> {
    Some(by_condition!(by, conditional, false))
}

/// The handler of a conditional move between registers of 4 or 8 bytes.
pub(in crate::interpreter) fn move_if<X: Machine>(by: ConditionCode, size: usize) -> Option<Handler<X>> {
    Some(match size {
        4 => by_condition!(by, conditional_move, 4),
        8 => by_condition!(by, conditional_move, 8),
        _ => return None,
    })
}

/// The handler of SETcc of a register.
pub(in crate::interpreter) fn set_if<X: Machine>(by: ConditionCode) -> Option<Handler<X>> {
    Some(by_condition!(by, conditional_set, false))
}

#[inline(always)]
fn go<X: Machine>(core: &mut Core<X>, op: &Op<X>, ops: &[Op<X>], at: usize, left: u32) -> Leave {
    if op.link != NOWHERE {
        return core.next(ops, op.link.into(), left);
    }
    core.rip = op.value;
    core.leave(Leave::Goto, at, left)
}

fn conditional<X: Machine, const C: u8, const UNUSED: bool>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    if holds::<C>(core.status) { go(core, op, ops, at, left) } else { core.next(ops, at + 1, left) }
}

fn conditional_move<X: Machine, const C: u8, const SIZE: usize>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let from = if holds::<C>(core.status) { op.from } else { op.to };
    let value = core.place(from);
    core.set_place::<SIZE>(op.to, value);
    core.next(ops, at + 1, left)
}

fn conditional_set<X: Machine, const C: u8, const UNUSED: bool>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let value = holds::<C>(core.status).into();
    core.set_place::<1>(op.to, value);
    core.next(ops, at + 1, left)
}

/// JMP to a place that the instruction names.
pub(in crate::interpreter) fn jump<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    go(core, op, ops, at, left)
}

/// Ends the run at a target that a register or memory named.
#[inline(always)]
fn go_to<X: Machine>(core: &mut Core<X>, target: u64, at: usize, left: u32) -> Leave {
    if !is_canonical(target) {
        return core.raise(Exception::protection(0), at, left);
    }
    core.rip = target;
    core.leave(Leave::Goto, UNLINKED, left)
}

/// JMP to the place in a register.
pub(in crate::interpreter) fn jump_register<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    _: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let target = core.place(op.from);
    go_to(core, target, at, left)
}

/// JMP to the place in memory.
pub(in crate::interpreter) fn jump_memory<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    _: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    match core.load_operand::<8>(op) {
        Ok(target) => go_to(core, target, at, left),
        Err(exception) => core.raise_operand(op, exception, at, left),
    }
}

/// Pushes the return address of the CALL `op`; `Some(true)` where that is all.
#[inline(always)]
fn push_return<X: Machine>(core: &mut Core<X>, op: &Op<X>) -> Result<bool, Exception> {
    let next = core.page.wrapping_add(u64::from(op.offset) + u64::from(op.length));
    let (rsp, user) = (core.place(RSP).wrapping_sub(8), core.cpu.user);
    let done = core.reach.store::<8>(rsp, next, user).map_err(on_stack)?;
    core.set_place::<8>(RSP, rsp);
    Ok(done)
}

/// CALL of a place that the instruction names.
pub(in crate::interpreter) fn call<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    match push_return(core, op) {
        Ok(true) => go(core, op, ops, at, left),
        Ok(false) => {
            core.rip = op.value;
            core.leave(Leave::Goto, UNLINKED, left)
        }
        Err(exception) => core.raise(exception, at, left),
    }
}

#[inline(always)]
fn call_to<X: Machine>(core: &mut Core<X>, op: &Op<X>, target: u64, at: usize, left: u32) -> Leave {
    if !is_canonical(target) {
        return core.raise(Exception::protection(0), at, left);
    }
    match push_return(core, op) {
        Ok(_) => go_to(core, target, at, left),
        Err(exception) => core.raise(exception, at, left),
    }
}

/// CALL of the place in a register.
pub(in crate::interpreter) fn call_register<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    _: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let target = core.place(op.from);
    call_to(core, op, target, at, left)
}

/// CALL of the place in memory.
pub(in crate::interpreter) fn call_memory<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    _: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    match core.load_operand::<8>(op) {
        Ok(target) => call_to(core, op, target, at, left),
        Err(exception) => core.raise_operand(op, exception, at, left),
    }
}

/// RET; `value` is what it removes from the stack besides.
pub(in crate::interpreter) fn ret<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    _: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    let (rsp, user) = (core.place(RSP), core.cpu.user);
    match core.reach.load::<8>(rsp, user) {
        Ok(target) if is_canonical(target) => {
            core.set_place::<8>(RSP, rsp.wrapping_add(8).wrapping_add(op.value));
            go_to(core, target, at, left)
        }
        Ok(_) => core.raise(Exception::protection(0), at, left),
        Err(exception) => core.raise(on_stack(exception), at, left),
    }
}
