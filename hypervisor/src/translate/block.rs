//! One block: from an address to a transfer of control that is certain, or so many instructions, or the end of a page.
//!
//! Conditional branches leave it in between. The trapping bytes at its end are where branches go whose targets have no
//! translation yet.

use iced_x86::{ConstantOffsets, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic};

use super::jump_table::JumpTable;
use super::lookup::{self, Shared};
use super::transfer::Transfer;
use crate::codegen::copy::is_plain;
use crate::codegen::emitter::{Dead, Emitter, Environment, Forward, TRAP, Unsuitable};
use crate::codegen::recipe::{Point, Recipe, Then};
use crate::x86::sensitive::Class;

/// The most instructions of a block.
const MAX_INSTRUCTIONS: usize = 64;
/// The least bytes of a block, without its entry for lookups: a jump must fit where it begins.
const MIN_BYTES: usize = 5;
const HLT: u8 = 0xf4;
const UD2: [u8; 2] = [0x0f, 0x0b];

/// The guest's code at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// Its linear address.
    pub va: u64,
    /// The code, and some bytes of the next page if there is one.
    pub code: &'a [u8],
    /// How many bytes are in the first page.
    pub in_page: usize,
    /// Whether lookups are likely to come to it.
    pub is_target: bool,
    /// Where the function that it belongs to is likely to return to.
    pub returns_to: Option<u64>,
}

/// What translating makes, in buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct Product {
    pub bytes: Vec<u8>,
    pub points: Vec<Point>,
    /// Offsets of displacements, and to where in the guest they lead.
    pub links: Vec<(Forward, u64)>,
    /// Addresses to which calls return, and interrupts that end HLT.
    pub returns: Vec<u64>,
    /// Targets of calls.
    pub called: Vec<u64>,
    /// Where it is entered by lookups, if it is: bytes from its beginning.
    pub entry: Option<u32>,
    /// Where its code begins.
    pub body: u32,
    /// Whether its one instruction goes on in the next page.
    pub crosses: bool,
    /// The table of the cases to one of which it jumps, if it ends like that.
    pub cases: Option<u64>,
}

impl Product {
    fn clear(&mut self) {
        self.bytes.clear();
        self.points.clear();
        self.links.clear();
        self.returns.clear();
        self.called.clear();
        self.entry = None;
        self.body = 0;
        self.crosses = false;
        self.cases = None;
    }

    /// Only the entry of a block that begins at `body` in the cache.
    pub fn make_entry(
        &mut self,
        va: u64,
        body: u64,
        base: u64,
        origin: u32,
        env: Environment,
        shared: &Shared,
    ) -> bool {
        self.clear();
        let mut emitter = Emitter::new(&mut self.bytes, &mut self.points, base, origin, env);
        let Ok(start) = lookup::entry(&mut emitter, shared, va) else { return false };
        let made = emitter.jump(Recipe::at(va), body).is_ok();
        self.entry = u32::try_from(start.wrapping_sub(base)).ok();
        made
    }
}

/// A block in the making.
pub(super) struct Block<'a> {
    pub emitter: Emitter<'a>,
    pub shared: &'a Shared,
    pub links: &'a mut Vec<(Forward, u64)>,
    pub returns: &'a mut Vec<u64>,
    pub called: &'a mut Vec<u64>,
    /// Where its function is likely to return to.
    pub returns_to: Option<u64>,
    /// Where its code begins.
    body: usize,
}

/// Whether a block goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    On,
    Elsewhere,
}

/// Translates the code at `source` for the address `base`, into `product`, whose points count from `origin`. `guess`
/// says where a call through memory would go now.
///
/// `None` where there is no whole instruction.
pub(super) fn translate(
    source: Source<'_>,
    (base, origin): (u64, u32),
    env: Environment,
    shared: &Shared,
    product: &mut Product,
    is_logged: impl Fn(u64) -> bool,
    mut guess: impl FnMut(&Instruction) -> Option<u64>,
) -> Option<()> {
    product.clear();
    let Product { bytes, points, links, returns, called, crosses, entry, body, cases } = product;
    let emitter = Emitter::new(bytes, points, base, origin, env);
    let returns_to = source.returns_to;
    let mut block = Block { emitter, shared, links, returns, called, returns_to, body: 0 };
    if source.is_target {
        while !lookup::is_aligned(block.emitter.here(), shared) {
            block.emitter.raw(&[TRAP]);
        }
        let start = lookup::entry(&mut block.emitter, shared, source.va).ok()?;
        *entry = u32::try_from(start.wrapping_sub(base)).ok();
        block.body = block.emitter.len();
        *body = u32::try_from(block.body).ok()?;
    }
    let mut decoder = Decoder::with_ip(64, source.code, source.va, DecoderOptions::NONE);
    let mut insn = Instruction::default();
    let mut count = 0;
    let mut seen = JumpTable::default();
    loop {
        let at = decoder.position();
        let ip = decoder.ip();
        if count == MAX_INSTRUCTIONS || at >= source.in_page {
            block.link(ip);
            break;
        }
        decoder.decode_out(&mut insn);
        count += 1;
        let first = at == 0;
        if insn.is_invalid() {
            if decoder.last_error() == DecoderError::NoMoreBytes {
                if first {
                    return None;
                }
                block.link(ip);
            } else {
                block.emitter.op(Recipe::at(ip), &UD2);
            }
            break;
        }
        let end = decoder.position();
        if end > source.in_page {
            if !first {
                block.link(ip);
                break;
            }
            *crosses = true;
        }
        let code = source.code.get(at..end)?;
        let plain = is_plain(&insn);
        if plain {
            seen.note(&insn);
        }
        let logs = plain && is_logged(ip);
        // Of use for operands that are to be displaced only, which most instructions have not.
        let offsets = if insn.is_ip_rel_memory_operand() || logs {
            decoder.get_constant_offsets(&insn)
        } else {
            ConstantOffsets::default()
        };
        let rest = source.code.get(end..).unwrap_or_default();
        let (len, links_len) = (block.emitter.len(), block.links.len());
        let (returns_len, called_len) = (block.returns.len(), block.called.len());
        let goes = if logs && block.logged(&insn, offsets, code) {
            Ok(Goes::On)
        } else if plain {
            block.emitter.copy(&insn, offsets, code).map(|()| Goes::On)
        } else if Class::of(&insn).is_some() {
            block.sensitive(&insn, rest)
        } else {
            block.transfer(&insn, code, &mut guess)
        };
        match goes {
            Ok(Goes::On) if *crosses => {
                block.link(insn.next_ip());
                break;
            }
            Ok(Goes::On) => {}
            Ok(Goes::Elsewhere) => {
                *cases = seen.of_jump(&insn);
                break;
            }
            Err(_) => {
                block.emitter.cut(len);
                block.links.truncate(links_len);
                block.returns.truncate(returns_len);
                block.called.truncate(called_len);
                block.emitter.op(Recipe::at(ip).then(Then::Native), &[TRAP]);
                break;
            }
        }
    }
    block.finish().ok()
}

impl Block<'_> {
    /// Emits a store that is logged, if it has a form for that.
    fn logged(&mut self, insn: &Instruction, offsets: ConstantOffsets, code: &[u8]) -> bool {
        let len = self.emitter.len();
        let emitted = self.logged_store(insn, offsets, code).is_ok();
        if !emitted {
            self.emitter.cut(len);
        }
        emitted
    }

    fn sensitive(&mut self, insn: &Instruction, rest: &[u8]) -> Result<Goes, Unsuitable> {
        if insn.mnemonic() == Mnemonic::Iretq {
            return self.iret(insn).map(|()| Goes::Elsewhere);
        }
        // STI and HLT are one: with an exit between them an interrupt that HLT is to wait for could be lost.
        let waits = insn.mnemonic() == Mnemonic::Sti && rest.first() == Some(&HLT);
        if waits || insn.mnemonic() == Mnemonic::Hlt {
            self.returns.push(insn.next_ip().wrapping_add(waits.into()));
        }
        if waits {
            self.emitter.callout(insn);
        } else {
            self.emitter.sensitive(insn, Dead { flags: flags_die(insn.next_ip(), rest) });
        }
        Ok(if insn.flow_control() == FlowControl::Next { Goes::On } else { Goes::Elsewhere })
    }

    fn transfer(
        &mut self,
        insn: &Instruction,
        code: &[u8],
        guess: &mut impl FnMut(&Instruction) -> Option<u64>,
    ) -> Result<Goes, Unsuitable> {
        match Transfer::of(insn) {
            Transfer::Branch => {
                self.branch(insn);
                return Ok(Goes::On);
            }
            Transfer::Counted => self.counted(insn, code)?,
            Transfer::Jump => self.jump(insn),
            Transfer::Call => self.call(insn),
            Transfer::IndirectJump => self.indirect_jump(insn)?,
            Transfer::IndirectCall => self.indirect_call(insn, guess(insn))?,
            Transfer::Return => self.ret(insn)?,
            Transfer::Native => self.native(insn, code),
            Transfer::Other => return Err(Unsuitable::Form),
        }
        Ok(Goes::Elsewhere)
    }

    /// Ends each link at a trapping byte.
    fn finish(mut self) -> Result<(), Unsuitable> {
        while self.emitter.len() < self.body + MIN_BYTES {
            self.emitter.raw(&[TRAP]);
        }
        for (link, target) in self.links.iter() {
            self.emitter.land(*link)?;
            self.emitter.op(Recipe::at(*target).then(Then::Miss), &[TRAP]);
        }
        Ok(())
    }
}

/// How far ahead the use of flags is looked for.
const LOOK_AHEAD: usize = 4;

/// Whether the code that follows sets all status flags before anything reads them or could fault.
fn flags_die(ip: u64, rest: &[u8]) -> bool {
    let mut decoder = Decoder::with_ip(64, rest, ip, DecoderOptions::NONE);
    for insn in decoder.iter().take(LOOK_AHEAD) {
        let harmless = is_plain(&insn)
            && (0..insn.op_count()).all(|op| !crate::exec::operand::is_memory(insn.op_kind(op)))
            && !insn.is_stack_instruction()
            && insn.rflags_read() == 0
            && !matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
        if insn.is_invalid() || !harmless {
            return false;
        }
        if writes_all_status(&insn) {
            return true;
        }
    }
    false
}

/// Whether an instruction sets all status flags.
fn writes_all_status(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic(), Add | Sub | Cmp | Neg)
}
