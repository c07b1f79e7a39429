//! An operation: a decoded instruction in the form in which it is executed.

use super::core::Core;
use super::outside::Machine;
use crate::x86::exception::Exception;

/// How an operation is executed: it does its part, and then the next operation's, by [`Core::next`], which it calls
/// last. Where the compiler makes a jump of that call, a run is one chain of jumps; where it does not, a run's depth is
/// limited by its budget.
///
/// The arguments: the processor, the operation, all operations of its page, its place among them, and how many
/// operations the run may still execute after it.
pub(super) type Handler<X> = fn(&mut Core<X>, &Op<X>, &[Op<X>], usize, u32) -> Leave;

/// The most operations of one run.
pub(super) const RUN: u32 = 64;

/// No operation is known.
pub(super) const NOWHERE: u16 = u16::MAX;

/// An operation.
pub(super) struct Op<X> {
    pub run: Handler<X>,
    /// A displacement or an immediate operand, sign-extended.
    pub value: u64,
    /// A displacement where `value` is an immediate operand, or the other way round.
    pub other: i32,
    /// The instruction's offset in its page.
    pub offset: u16,
    /// Its length.
    pub length: u8,
    /// The place of the operation that a branch leads to; [`NOWHERE`] if it is another page's, or not yet known.
    pub link: u16,
    /// Places in [`Core::r`](Core): the destination and the source.
    pub to: u8,
    pub from: u8,
    /// What an address is made of.
    pub base: u8,
    pub index: u8,
    pub shift: u8,
    /// The address goes by way of SS: where it is not canonical, #SS is raised.
    pub on_stack: bool,
}

impl<X> Clone for Op<X> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X> Copy for Op<X> {}

/// Why a run ended. What else there is to say is in the [`Core`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// It may execute no more operations, or the loop has to look at something: the next one is at `at`.
    Pause,
    /// The branch at `at` leads to `rip`, and is not linked.
    Goto,
    /// The instruction at `at` has to be executed in its general form.
    General,
    /// The instruction at `at` has raised `raised`.
    Raise,
    /// The instruction at `at` lies in two pages.
    Crossing,
}

impl<X: Machine> Core<X> {
    /// Executes the operation at `at`, if the run may go on.
    #[inline(always)]
    pub fn next(&mut self, ops: &[Op<X>], at: usize, left: u32) -> Leave {
        match ops.get(at) {
            Some(op) if left > 0 => (op.run)(self, op, ops, at, left - 1),
            _ => self.leave(Leave::Pause, at, left),
        }
    }

    /// Ends the run.
    #[inline(always)]
    pub fn leave(&mut self, leave: Leave, at: usize, left: u32) -> Leave {
        (self.at, self.left) = (at, left);
        leave
    }

    /// Ends the run with a fault of the operation at `at`, which does not count as executed.
    #[cold]
    pub fn raise(&mut self, exception: Exception, at: usize, left: u32) -> Leave {
        self.raised = exception;
        self.leave(Leave::Raise, at, left)
    }
}

/// The instruction has to be executed in its general form.
pub(super) fn general<X: Machine>(core: &mut Core<X>, _: &Op<X>, _: &[Op<X>], at: usize, left: u32) -> Leave {
    core.leave(Leave::General, at, left)
}

/// The instruction lies in two pages.
pub(super) fn crossing<X: Machine>(
    core: &mut Core<X>,
    _: &Op<X>,
    _: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    core.leave(Leave::Crossing, at, left + 1)
}

/// No instruction: decoding ended here. Goes on at `offset`, which may be the next page's beginning.
pub(super) fn end_of_block<X: Machine>(
    core: &mut Core<X>,
    op: &Op<X>,
    ops: &[Op<X>],
    at: usize,
    left: u32,
) -> Leave {
    if op.link != NOWHERE {
        return core.next(ops, op.link.into(), left + 1);
    }
    core.rip = core.page.wrapping_add(op.offset.into());
    core.leave(Leave::Goto, at, left + 1)
}
