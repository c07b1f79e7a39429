//! IN, OUT, INS and OUTS.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{Operands, read_register, write_register};
use super::outside::{Attempt, IoPorts, Memory};
use super::string::{Repetition, port_index, step};
use crate::x86::exception::Exception;
use crate::x86::registers::Regs;

/// An instruction that accesses ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortAccess {
    /// The first port.
    pub port: u16,
    /// Bytes of one element: 1, 2 or 4.
    pub size: u8,
    /// IN or INS instead of OUT or OUTS.
    pub is_input: bool,
    /// INS or OUTS.
    pub is_string: bool,
}

impl PortAccess {
    /// `None` for any other instruction.
    pub(crate) fn of(insn: &Instruction, regs: &Regs) -> Option<Self> {
        use Mnemonic::*;
        let (is_input, is_string) = match insn.mnemonic() {
            In => (true, false),
            Out => (false, false),
            Insb | Insw | Insd => (true, true),
            Outsb | Outsw | Outsd => (false, true),
            _ => return None,
        };
        let size = match (is_string, is_input) {
            (true, _) => insn.memory_size().size(),
            (false, true) => insn.op0_register().size(),
            (false, false) => insn.op1_register().size(),
        };
        let immediate = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Immediate8);
        let port = if immediate { insn.immediate8().into() } else { regs.rdx as u16 };
        Some(Self { port, size: size as u8, is_input, is_string })
    }
}

impl<M: Memory + IoPorts> Operands<'_, M> {
    /// Executes IN and OUT, or up to `limit` elements of INS and OUTS. Returns the request that the last
    /// output made, after which no further element is transferred, and whether the instruction has ended.
    pub fn access_ports(
        &mut self,
        insn: &Instruction,
        access: PortAccess,
        limit: u64,
    ) -> Attempt<(Option<M::Event>, bool), M> {
        let PortAccess { port, size, is_input, is_string } = access;
        if is_string {
            return self.port_string(insn, access, limit);
        }
        if is_input {
            let value = self.memory.port_in(port, size);
            write_register(self.regs, insn.op0_register(), value.into());
            return Ok((None, true));
        }
        let value = read_register(self.regs, insn.op1_register()) as u32;
        Ok((self.memory.port_out(port, size, value), true))
    }

    fn port_string(
        &mut self,
        insn: &Instruction,
        access: PortAccess,
        limit: u64,
    ) -> Attempt<(Option<M::Event>, bool), M> {
        let operand = if access.is_input { 0 } else { 1 };
        let (index, counter) = port_index(insn, operand).ok_or(Exception::undefined())?;
        let size = usize::from(access.size);
        let mut repetition = Repetition::of(insn, counter, self.regs);
        for _ in 0..repetition.left().min(limit) {
            let va = self.address(insn, operand)?;
            let mut event = None;
            if access.is_input {
                // Reading a port may remove a byte from a device, so check first that it can be stored.
                self.memory.probe_write(va, size, self.user)?;
                let value = self.memory.port_in(access.port, access.size);
                self.store(va, size, value.into())?;
            } else {
                let value = self.load(va, size)? as u32;
                event = self.memory.port_out(access.port, access.size, value);
            }
            step(self.regs, index, size);
            repetition.count(self.regs);
            if event.is_some() {
                return Ok((event, repetition.left() == 0));
            }
        }
        Ok((None, repetition.left() == 0))
    }
}
