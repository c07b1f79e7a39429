//! Fetching and decoding the instruction at RIP.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::machine::memory::PAGE_SIZE;
use crate::pv::domain::PvDomain;

/// The longest instruction (SDM vol. 2, 2.3.11).
pub(super) const MAX_LENGTH: usize = 15;

/// Reads code at `va`: as much as there is, for an instruction may end right before an unmapped page.
pub(super) fn fetch<'a>(d: &PvDomain, va: u64, buf: &'a mut [u8; MAX_LENGTH]) -> &'a [u8] {
    let in_page = usize::try_from(PAGE_SIZE - va % PAGE_SIZE).unwrap_or(MAX_LENGTH).min(MAX_LENGTH);
    let (head, tail) = buf.split_at_mut(in_page);
    if d.read_guest(va, head).is_err() {
        return &[];
    }
    let whole = d.read_guest(va.wrapping_add(in_page as u64), tail).is_ok();
    buf.get(..if whole { MAX_LENGTH } else { in_page }).unwrap_or_default()
}

/// The instruction at `va`; `None` where the guest's memory holds none.
pub(super) fn at(d: &PvDomain, va: u64) -> Option<Instruction> {
    let mut buf = [0; MAX_LENGTH];
    let insn = Decoder::with_ip(64, fetch(d, va, &mut buf), va, DecoderOptions::NONE).decode();
    (!insn.is_invalid()).then_some(insn)
}

/// The instruction at RIP.
pub(super) fn at_rip(d: &PvDomain) -> Option<Instruction> {
    at(d, d.vcpu.regs.rip)
}
