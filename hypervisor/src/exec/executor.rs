//! A virtual CPU that executes one instruction: registers, privileged state and the machine around them.

use super::operand::Operands;
use super::outside::{Attempt, Stored, Surroundings};
use super::virtual_cpu::VirtualCpu;
use crate::x86::exception::Exception;
use crate::x86::registers::Regs;

/// All that executing one instruction may touch.
pub(crate) struct Executor<'a, M> {
    pub cpu: &'a mut VirtualCpu,
    pub regs: &'a mut Regs,
    pub outside: M,
}

/// With whose rights memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// The running code's.
    Current,
    /// The CPU's own: accesses to descriptor tables, the TSS and the kernel's stack.
    System,
}

impl<M: Surroundings> Executor<'_, M> {
    /// The operands of instructions of any privilege, accessed with the running code's rights.
    pub fn operands(&mut self) -> Operands<'_, M> {
        Operands { regs: self.regs, memory: &mut self.outside, user: self.cpu.user }
    }

    fn is_user(&self, rights: Rights) -> bool {
        self.cpu.user && rights == Rights::Current
    }

    /// Stores `bytes`.
    pub(super) fn write(&mut self, va: u64, bytes: &[u8], rights: Rights) -> Attempt<Stored, M> {
        let user = self.is_user(rights);
        self.outside.write(va, bytes, user)
    }

    /// Reads a value of `size` (1 to 8) bytes.
    pub(super) fn read_value(&mut self, va: u64, size: usize, rights: Rights) -> Attempt<u64, M> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..size).ok_or(Exception::undefined())?;
        let user = self.is_user(rights);
        self.outside.read(va, part, user)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stores the low `size` (1 to 8) bytes of `value`.
    pub(super) fn write_value(
        &mut self,
        va: u64,
        size: usize,
        value: u64,
        rights: Rights,
    ) -> Attempt<Stored, M> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..size).ok_or(Exception::undefined())?;
        self.write(va, part, rights)
    }

    /// Goes to virtual CPL 3 or 0; the page tables' rights follow.
    pub(super) fn set_user(&mut self, user: bool) -> Attempt<(), M> {
        if self.cpu.user != user {
            self.cpu.user = user;
            self.activate()?;
        }
        Ok(())
    }

    /// Has the machine switch to the tables that the control registers name.
    pub(super) fn activate(&mut self) -> Attempt<(), M> {
        self.outside.activate(self.cpu).map_err(super::outside::Incomplete::Machine)
    }
}
