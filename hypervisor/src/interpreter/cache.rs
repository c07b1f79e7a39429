//! The decode cache: operations by guest-physical page.
//!
//! A page of code has one chunk, which stays when CR3 is loaded: it belongs to the frame, not to an address space. A
//! store into bytes that were decoded drops the chunk's operations ([`CodeMap`](super::code_map::CodeMap)); whether a
//! device wrote there is looked up when a chunk is entered after a device has written anywhere.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::core::Core;
use super::lower::lower;
use super::op::{NOWHERE, Op, crossing, end_of_block};
use super::outside::Machine;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::x86::decode::MAX_LENGTH;
use crate::x86::exception::Exception;

const PAGE: usize = PAGE_SIZE as usize;
/// Operations of a block at most.
const BLOCK: usize = 32;
/// When there are so many chunks or operations, everything is dropped.
const MAX_CHUNKS: usize = 1024;
const MAX_OPS: usize = 1 << 18;

/// What was decoded of one page.
pub(super) struct Chunk<X> {
    /// The frame's first byte.
    frame: Maddr,
    /// The linear address at which it was decoded: targets of branches depend on it.
    pub va: u64,
    pub ops: Vec<Op<X>>,
    /// By operation, for those that have to be executed in their general form.
    pub insns: Vec<Instruction>,
    /// By offset, the operation's place and 1; 0 for none.
    starts: Box<[u16; PAGE]>,
    /// The bytes that were decoded.
    source: Box<[u8; PAGE]>,
    /// How often devices had written when the bytes were last compared.
    seen: u64,
}

/// All chunks.
pub(super) struct Cache<X> {
    pub chunks: Vec<Chunk<X>>,
    /// Instructions decoded so far.
    pub decoded: u64,
}

impl<X: Machine> Cache<X> {
    pub fn new() -> Self {
        Self { chunks: Vec::new(), decoded: 0 }
    }

    /// The chunk and the place in it of the instruction at RIP, which is decoded if it was not.
    ///
    /// # Errors
    /// The exception that fetching it raises.
    pub fn locate(&mut self, core: &mut Core<X>) -> Result<(u32, usize), Exception> {
        let (rip, user) = (core.rip, core.cpu.user);
        let chunk = match core.reach.fetches.find(rip, user) {
            Some(chunk) => chunk,
            None => self.chunk_at(core, rip)?,
        };
        let seen = core.reach.machine.foreign_writes();
        let Some(found) = self.chunks.get_mut(chunk as usize) else { return Err(Exception::undefined()) };
        if found.seen != seen {
            found.seen = seen;
            if found.differs(core) {
                self.drop_code(core, chunk);
            }
        }
        let offset = (rip % PAGE_SIZE) as usize;
        let Some(found) = self.chunks.get_mut(chunk as usize) else { return Err(Exception::undefined()) };
        core.page = found.va;
        if let Some(at) = found.start(offset) {
            return Ok((chunk, at));
        }
        let at = found.ops.len();
        self.decoded += found.decode_block(core, chunk, offset);
        Ok((chunk, at))
    }

    /// The chunk of the page of `rip`, made or made anew.
    fn chunk_at(&mut self, core: &mut Core<X>, rip: u64) -> Result<u32, Exception> {
        let user = core.cpu.user;
        let at = core.reach.fetch_place(rip, user)?;
        let va = rip & !(PAGE_SIZE - 1);
        let total: usize = self.chunks.iter().map(|chunk| chunk.ops.len()).sum();
        if self.chunks.len() >= MAX_CHUNKS || total > MAX_OPS {
            self.drop_all(core);
        }
        let number = match core.reach.code.chunk(at) {
            Some(number) => number,
            None => {
                let number = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
                let seen = core.reach.machine.foreign_writes();
                self.chunks.push(Chunk::new(Maddr(at.0 & !(PAGE_SIZE - 1)), va, seen));
                core.reach.code.assign(at, number);
                // Stores to this page must be noticed from now on.
                core.reach.tlb.flush_writes();
                number
            }
        };
        if self.chunks.get(number as usize).is_some_and(|chunk| chunk.va != va) {
            self.drop_code(core, number);
            if let Some(chunk) = self.chunks.get_mut(number as usize) {
                chunk.va = va;
            }
            // The other linear page must not lead here any more.
            core.reach.fetches.clear();
        }
        core.reach.fetches.enter(rip, user, number);
        Ok(number)
    }

    /// Forgets what was decoded of a page.
    pub fn drop_code(&mut self, core: &mut Core<X>, number: u32) {
        core.reach.code.clear(number);
        if let Some(chunk) = self.chunks.get_mut(number as usize) {
            chunk.ops.clear();
            chunk.insns.clear();
            *chunk.starts = [0; PAGE];
        }
    }

    fn drop_all(&mut self, core: &mut Core<X>) {
        for chunk in self.chunks.drain(..) {
            core.reach.code.release(chunk.frame);
        }
        core.reach.fetches.clear();
    }
}

impl<X: Machine> Chunk<X> {
    fn new(frame: Maddr, va: u64, seen: u64) -> Self {
        let (starts, source) = (Box::new([0; PAGE]), Box::new([0; PAGE]));
        Self { frame, va, ops: Vec::new(), insns: Vec::new(), starts, source, seen }
    }

    /// The place of the instruction at this offset.
    #[inline]
    pub fn start(&self, offset: usize) -> Option<usize> {
        usize::from(*self.starts.get(offset)?).checked_sub(1)
    }

    /// Whether a decoded byte is not what memory holds.
    fn differs(&self, core: &Core<X>) -> bool {
        let mut now = [0; PAGE];
        let _ = core.reach.words.memory().read(self.frame, &mut now);
        self.ops.iter().any(|op| {
            let bytes = usize::from(op.offset)..usize::from(op.offset) + usize::from(op.length);
            self.source.get(bytes.clone()) != now.get(bytes)
        })
    }

    /// Decodes from `offset` to the next branch; returns how many instructions that was.
    fn decode_block(&mut self, core: &mut Core<X>, number: u32, offset: usize) -> u64 {
        let (mut at, mut count) = (offset, 0);
        while at < PAGE && count < BLOCK {
            if let Some(place) = self.start(at).filter(|_| count > 0) {
                self.end_block(at, u16::try_from(place).unwrap_or(NOWHERE));
                return count as u64;
            }
            let place = u16::try_from(self.ops.len() + 1).unwrap_or(0);
            if let Some(start) = self.starts.get_mut(at) {
                *start = place;
            }
            count += 1;
            let Some(insn) = self.decode(core, number, at) else {
                self.push(at, 0, crossing, Instruction::default());
                return count as u64;
            };
            let op = lower::<X>(&insn, at);
            let ends = insn.is_invalid() || ends_block(&insn);
            let length = usize::from(op.length);
            self.ops.push(op);
            self.insns.push(insn);
            at += length;
            if ends {
                return count as u64;
            }
        }
        self.end_block(at, NOWHERE);
        count as u64
    }

    /// The instruction at an offset; `None` if it does not end in this page.
    fn decode(&mut self, core: &mut Core<X>, number: u32, offset: usize) -> Option<Instruction> {
        let in_page = (PAGE - offset).min(MAX_LENGTH);
        let bytes = self.source.get_mut(offset..offset + in_page)?;
        let from = Maddr(self.frame.0 + offset as u64);
        // The frame is memory, because it was translated to.
        let _ = core.reach.words.memory().read(from, bytes);
        let ip = self.va.wrapping_add(offset as u64);
        let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
        let insn = decoder.decode();
        if insn.is_invalid() && in_page < MAX_LENGTH {
            return None;
        }
        let length = if insn.is_invalid() { MAX_LENGTH } else { insn.len() };
        core.reach.code.cover(number, offset as u64, length);
        Some(insn)
    }

    fn end_block(&mut self, offset: usize, link: u16) {
        self.push(offset, 0, end_of_block, Instruction::default());
        if let Some(op) = self.ops.last_mut() {
            op.link = link;
        }
    }

    fn push(&mut self, offset: usize, length: u8, run: super::op::Handler<X>, insn: Instruction) {
        self.ops.push(Op { run, ..Op::plain(offset, length) });
        self.insns.push(insn);
    }

    /// Has the branch at `from` lead to `to`, which is in this page.
    pub fn link(&mut self, from: usize, to: usize) {
        if let (Some(op), Ok(to)) = (self.ops.get_mut(from), u16::try_from(to)) {
            op.link = to;
        }
    }
}

/// Whether what follows an instruction may not be code.
fn ends_block(insn: &Instruction) -> bool {
    use iced_x86::FlowControl::*;
    matches!(insn.flow_control(), UnconditionalBranch | IndirectBranch | Return | Interrupt | Exception)
        && insn.mnemonic() != iced_x86::Mnemonic::Syscall
}
