//! Every instruction that is interpreted, in its general form: operands as the decoder has them.
//!
//! Instructions that are executed often also have a specialised form, in [`super::fast`]. An instruction here either
//! completes or changes nothing.
//!
//! | instructions | where |
//! | --- | --- |
//! | moves, arithmetic, logic, exchanges | `integer.rs` |
//! | shifts, products, quotients, bits | `wide.rs` |
//! | jumps, calls, conditions | `branch.rs` |
//! | the stack | `stack.rs` |
//! | string instructions | `string.rs` |
//! | time, bases, hints | `system.rs` |
//! | SSE2: moves and integers | `vector_move.rs`, `vector_lanes.rs` |
//! | FXSAVE and its kin | `vector_state.rs` |
//!
//! Privileged and sensitive instructions are those of [`crate::exec`].

mod branch;
mod integer;
mod stack;
mod string;
mod system;
mod vector_lanes;
mod vector_move;
mod vector_state;
mod wide;

use iced_x86::{Instruction, Mnemonic};

use super::core::{Core, Trouble};
use super::outside::Machine;
use super::presence::is_present;
use crate::exec::privileged::Completion;
use crate::x86::exception::Exception;
use crate::x86::sensitive::Class;

/// Where execution goes on after an instruction that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow<E> {
    /// At the next instruction.
    Next,
    /// There.
    Jump(u64),
    /// At the same instruction: it is repeated, and has elements left.
    Again,
    /// As a privileged or sensitive instruction of `exec` says.
    Privileged(Completion<E>),
}

/// The result of an instruction. `None` where a file does not know the instruction.
pub(super) type Done<X> = Result<Option<Flow<<X as Machine>::Event>>, Trouble<<X as Machine>::Failure>>;

/// The result of an instruction that goes on at the next one.
type Plain = Result<bool, Exception>;

impl<X: Machine> Core<X> {
    /// Executes one instruction, the one at RIP.
    pub fn general(&mut self, insn: &Instruction) -> Result<Flow<X::Event>, Trouble<X::Failure>> {
        if let Some(flow) = self.sensitive(insn)? {
            return Ok(flow);
        }
        if let Some(flow) = self.branch(insn)? {
            return Ok(flow);
        }
        if let Some(ended) = self.string(insn)? {
            return Ok(if ended { Flow::Next } else { Flow::Again });
        }
        let known = self.integer(insn)?
            || self.wide(insn)?
            || self.stack(insn)?
            || self.system(insn)?
            || self.vector_move(insn)?
            || self.vector_lanes(insn)?
            || self.vector_state(insn)?;
        if known {
            return Ok(Flow::Next);
        }
        Err(if is_present(insn) { Trouble::Unknown(*insn) } else { Exception::undefined().into() })
    }

    /// Privileged and sensitive instructions.
    fn sensitive(&mut self, insn: &Instruction) -> Done<X> {
        if insn.mnemonic() == Mnemonic::Syscall {
            let next = insn.next_ip();
            return self.with_executor(|executor| {
                let at = executor.regs.rip;
                executor.regs.rip = next;
                let result = executor.syscall();
                if result.is_err() {
                    executor.regs.rip = at;
                }
                Ok(Some(result.map(|()| Flow::Privileged(Completion::Jumped))?))
            });
        }
        let breaks = matches!(insn.mnemonic(), Mnemonic::Int3 | Mnemonic::Int1);
        let Some(class) = Class::of(insn).or(breaks.then_some(Class::SoftwareInterrupt)) else {
            return Ok(None);
        };
        let done = self.with_executor(|executor| {
            if let Some(result) = executor.inspect(insn) {
                return Some(result.map(|()| Completion::Advance));
            }
            executor.privileged(insn).or_else(|| executor.at_any_level(insn))
        });
        match done {
            Some(result) => Ok(Some(Flow::Privileged(result?))),
            // Virtualization and the like: in no guest's CPUID.
            None if matches!(class, Class::Virtualization | Class::Flags | Class::ReadSegment) => Ok(None),
            None if self.cpu.user && class != Class::Halt => Err(Exception::protection(0).into()),
            None if self.cpu.user && insn.mnemonic() == Mnemonic::Hlt => Err(Exception::protection(0).into()),
            None => Ok(None),
        }
    }
}
