//! Fetching and decoding the instruction that trapped.

use iced_x86::Instruction;

use super::access::Trap;
use crate::x86::decode::{Dialect, instruction_at};
use crate::x86::walk::Access;

impl Trap<'_> {
    /// The instruction at RIP; `None` where the guest's memory holds none.
    pub fn decode(&self) -> Option<Instruction> {
        instruction_at(self.regs.rip, Dialect::Intel, |va, buf| self.fetch(va, buf))
    }

    fn fetch(&self, va: u64, buf: &mut [u8]) -> Option<()> {
        let access = Access { write: false, user: self.cpu.user, fetch: true };
        let at = self.shadow.lookup(self.mem, va, access).ok()?.maddr()?;
        self.mem.read(at, buf).ok()
    }
}
