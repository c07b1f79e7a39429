//! Instructions that are executed often, each in a form of its own for its operands and their size.
//!
//! `lower.rs` chooses among them. Whatever has no form here, for its size, its segment or a register like AH, is
//! executed in its general one. A handler ends with [`Core::next`]: what follows must be nothing, so that the compiler
//! can make a jump of it.

pub(super) mod arithmetic;
pub(super) mod branch;
pub(super) mod transfer;
pub(super) mod vector;

use super::core::{Core, PLACES, on_stack};
use super::op::{Leave, Op};
use super::outside::Machine;
use crate::x86::exception::Exception;

impl<X: Machine> Core<X> {
    /// A general register, or what else an address is made of.
    #[inline(always)]
    pub fn place(&self, number: u8) -> u64 {
        self.r[usize::from(number) % PLACES]
    }

    /// Sets the low `SIZE` bytes of a general register: 4 clear the upper half, fewer keep the rest.
    #[inline(always)]
    pub fn set_place<const SIZE: usize>(&mut self, number: u8, value: u64) {
        let place = &mut self.r[usize::from(number) % PLACES];
        *place = match SIZE {
            1 => *place & !0xff | value & 0xff,
            2 => *place & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub fn effective(&self, op: &Op<X>) -> u64 {
        let scaled = self.place(op.index) << (op.shift & 3);
        self.place(op.base).wrapping_add(scaled).wrapping_add(op.value)
    }

    /// Reads the memory operand.
    #[inline(always)]
    pub fn load_operand<const SIZE: usize>(&mut self, op: &Op<X>) -> Result<u64, Exception> {
        let (va, user) = (self.effective(op), self.cpu.user);
        self.reach.load::<SIZE>(va, user)
    }

    /// Ends the run with a fault of a memory operand.
    #[cold]
    pub fn raise_operand(&mut self, op: &Op<X>, exception: Exception, at: usize, left: u32) -> Leave {
        self.raise(if op.on_stack { on_stack(exception) } else { exception }, at, left)
    }

    /// After a store: goes on, or ends the run because the loop must look at something, or because it faulted.
    #[inline(always)]
    pub fn after_store(
        &mut self,
        done: Result<bool, Exception>,
        op: &Op<X>,
        ops: &[Op<X>],
        at: usize,
        left: u32,
    ) -> Leave {
        match done {
            Ok(true) => self.next(ops, at + 1, left),
            Ok(false) => self.leave(Leave::Pause, at + 1, left),
            Err(exception) => self.raise_operand(op, exception, at, left),
        }
    }
}
