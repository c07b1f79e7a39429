//! Fetching and decoding the instruction that trapped.
//!
//! One decoder per exit: a few words on the stack over tables that [`prepare`] has made once.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::access::Trap;
use crate::machine::memory::PAGE_SIZE;
use crate::x86::walk::Access;

/// The longest instruction (SDM vol. 2, 2.3.11).
const MAX_LENGTH: usize = 15;

/// Makes the decoder's tables, which happens once in a process, so that no exit has to.
pub(crate) fn prepare() {
    const NOP: [u8; 1] = [0x90];
    let _ = Decoder::with_ip(64, &NOP, 0, DecoderOptions::NONE).decode();
}

impl Trap<'_> {
    /// The instruction at RIP; `None` where the guest's memory holds none.
    pub fn decode(&self) -> Option<Instruction> {
        let rip = self.regs.rip;
        let mut bytes = [0u8; MAX_LENGTH];
        let in_page = ((PAGE_SIZE - rip % PAGE_SIZE) as usize).min(MAX_LENGTH);
        let (head, tail) = bytes.split_at_mut(in_page);
        self.fetch(rip, head)?;
        // An instruction that ends in this page does not need the next one.
        let fetched = match tail.is_empty() || self.fetch(rip.wrapping_add(in_page as u64), tail).is_some() {
            true => MAX_LENGTH,
            false => in_page,
        };
        let mut decoder = Decoder::with_ip(64, bytes.get(..fetched)?, rip, DecoderOptions::NONE);
        let insn = decoder.decode();
        (!insn.is_invalid()).then_some(insn)
    }

    fn fetch(&self, va: u64, buf: &mut [u8]) -> Option<()> {
        let access = Access { write: false, user: self.cpu.user, fetch: true };
        let at = self.shadow.lookup(self.mem, va, access).ok()?.maddr()?;
        self.mem.read(at, buf).ok()
    }
}
