//! Fetching and decoding one instruction.
//!
//! The caller says how to read code at a linear address. Nothing is allocated for an instruction: a decoder is a few
//! words on the stack, over tables that [`prepare`] makes once.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::machine::memory::PAGE_SIZE;

/// The longest instruction (SDM vol. 2, 2.3.11).
pub const MAX_LENGTH: usize = 15;
/// Bytes of SYSCALL.
pub const SYSCALL_LENGTH: u64 = 2;

/// Whose decoding rules apply, where vendors differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// As Intel's processors do.
    #[default]
    Intel,
    /// As AMD's processors do: without a 64-bit form of far pointers, whose REX.W they ignore.
    Amd,
}

impl Dialect {
    const fn options(self) -> u32 {
        match self {
            Self::Intel => DecoderOptions::NONE,
            Self::Amd => DecoderOptions::AMD,
        }
    }
}

/// Makes the decoder's tables, once in a process, so that no exit has to.
pub fn prepare() {
    const NOP: [u8; 1] = [0x90];
    let _ = decoder(&NOP, 0).decode();
}

/// A decoder of 64-bit code that begins at linear address `va`.
pub fn decoder(code: &[u8], va: u64) -> Decoder<'_> {
    Decoder::with_ip(64, code, va, DecoderOptions::NONE)
}

/// The instruction at `va`; `None` where there is none, or none that is valid.
///
/// `fetch` fills a buffer with the code at an address, within one page; `None` if it cannot be fetched. An instruction
/// that ends in its page is decoded without the next page.
pub fn instruction_at(
    va: u64,
    dialect: Dialect,
    mut fetch: impl FnMut(u64, &mut [u8]) -> Option<()>,
) -> Option<Instruction> {
    let mut bytes = [0u8; MAX_LENGTH];
    let in_page = usize::try_from(PAGE_SIZE - va % PAGE_SIZE).unwrap_or(MAX_LENGTH).min(MAX_LENGTH);
    let (head, tail) = bytes.split_at_mut(in_page);
    fetch(va, head)?;
    let whole = tail.is_empty() || fetch(va.wrapping_add(in_page as u64), tail).is_some();
    let fetched = if whole { MAX_LENGTH } else { in_page };
    let insn = Decoder::with_ip(64, bytes.get(..fetched)?, va, dialect.options()).decode();
    (!insn.is_invalid()).then_some(insn)
}

#[cfg(test)]
mod tests {
    use iced_x86::Mnemonic;

    use super::*;

    /// `code` from `start` on, and nothing from the next page on unless `next` has it.
    fn decode(start: u64, code: &[u8], next: Option<&[u8]>) -> Option<Instruction> {
        instruction_at(start, Dialect::Intel, |va, buf| {
            let from = if va == start { code } else { next? };
            for (to, byte) in buf.iter_mut().zip(from) {
                *to = *byte;
            }
            Some(())
        })
    }

    #[test]
    fn an_instruction_at_the_end_of_its_page_does_not_need_the_next_one() {
        let (cli, mov_cr3) = ([0xfa], [0x0f, 0x22, 0xd8]);
        assert_eq!(decode(0x1fff, &cli, None).map(|insn| insn.mnemonic()), Some(Mnemonic::Cli));
        assert_eq!(decode(0x1ffe, &mov_cr3[..2], None), None);
        let crossing = decode(0x1ffe, &mov_cr3[..2], Some(&mov_cr3[2..])).unwrap();
        assert_eq!((crossing.mnemonic(), crossing.ip(), crossing.next_ip()), (Mnemonic::Mov, 0x1ffe, 0x2001));
    }

    #[test]
    fn far_pointers_depend_on_the_vendor() {
        // REX.W JMP FAR [RAX]
        let code = [0x48, 0xff, 0x28];
        let size = |dialect| {
            let insn = instruction_at(0x1000, dialect, |_, buf| {
                buf.get_mut(..3)?.copy_from_slice(&code);
                Some(())
            });
            insn.unwrap().memory_size().size()
        };
        assert_eq!((size(Dialect::Intel), size(Dialect::Amd)), (10, 6));
    }
}
