//! Near jumps, calls and returns, conditional moves and sets.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use paravane_abi::addr::is_canonical;

use super::{Done, Flow};
use crate::interpreter::core::Core;
use crate::interpreter::outside::Machine;
use crate::x86::exception::Exception;

/// A branch's target, which must be canonical.
fn to<E>(target: u64) -> Result<Option<Flow<E>>, Exception> {
    if is_canonical(target) { Ok(Some(Flow::Jump(target))) } else { Err(Exception::protection(0)) }
}

impl<X: Machine> Core<X> {
    pub(super) fn branch(&mut self, insn: &Instruction) -> Done<X> {
        use Mnemonic::*;
        match insn.flow_control() {
            FlowControl::ConditionalBranch => return Ok(self.conditional(insn)?),
            FlowControl::UnconditionalBranch if insn.mnemonic() == Jmp => {
                return Ok(to(insn.near_branch_target())?);
            }
            FlowControl::IndirectBranch if insn.mnemonic() == Jmp => {
                let target = self.read(insn, 0)?;
                return Ok(to(target)?);
            }
            FlowControl::Call | FlowControl::IndirectCall if insn.mnemonic() == Call => {
                let direct = matches!(
                    insn.op0_kind(),
                    OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
                );
                let target = if direct { insn.near_branch_target() } else { self.read(insn, 0)? };
                if !is_canonical(target) {
                    return Err(Exception::protection(0).into());
                }
                self.push(8, insn.next_ip())?;
                return Ok(Some(Flow::Jump(target)));
            }
            FlowControl::Return if insn.mnemonic() == Ret => {
                let target = self.top(8)?;
                let extra = if insn.op_count() > 0 { u64::from(insn.immediate16()) } else { 0 };
                let flow = to(target)?;
                self.r[4] = self.r[4].wrapping_add(8).wrapping_add(extra);
                return Ok(flow);
            }
            FlowControl::Next => {}
            _ => return Ok(None),
        }
        let Some(holds) = self.status.holds(insn.condition_code()) else { return Ok(None) };
        if insn.op_count() == 2 {
            // CMOV reads its source in either case, and a 32-bit one clears the upper half in either case.
            let source = self.read(insn, 1)?;
            let value = if holds { source } else { self.get(insn.op0_register()) };
            self.set(insn.op0_register(), value);
        } else {
            self.write(insn, 0, holds.into())?;
        }
        Ok(Some(Flow::Next))
    }

    fn conditional(&mut self, insn: &Instruction) -> Result<Option<Flow<X::Event>>, Exception> {
        use Mnemonic::*;
        let target = insn.near_branch_target();
        let taken = match insn.mnemonic() {
            Jcxz | Jecxz | Jrcxz => {
                let counter = if insn.mnemonic() == Jrcxz { Register::RCX } else { Register::ECX };
                self.get(counter) == 0
            }
            Loop | Loope | Loopne => {
                let counter = if self.counts_in_32_bits(insn) { Register::ECX } else { Register::RCX };
                let left = self.get(counter).wrapping_sub(1);
                let zero = self.status.is_zero();
                let taken = crate::exec::operand::truncate(left, counter.size()) != 0
                    && (insn.mnemonic() != Loope || zero)
                    && (insn.mnemonic() != Loopne || !zero);
                if taken && !is_canonical(target) {
                    return Err(Exception::protection(0));
                }
                self.set(counter, left);
                taken
            }
            _ => match self.status.holds(insn.condition_code()) {
                Some(holds) => holds,
                None => return Ok(None),
            },
        };
        if taken { to(target) } else { Ok(Some(Flow::Next)) }
    }

    fn counts_in_32_bits(&self, insn: &Instruction) -> bool {
        use iced_x86::Code::*;
        matches!(insn.code(), Loop_rel8_64_ECX | Loope_rel8_64_ECX | Loopne_rel8_64_ECX)
    }
}
