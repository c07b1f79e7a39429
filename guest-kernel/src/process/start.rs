//! The start of a program: its areas, and what it finds on its stack (the psABI for x86-64, 3.4.1).
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use paravane_guest::user::elf::Elf;

use super::abi::Errno;
use super::areas::{Area, Backing, END, Rights, START, ZEROES};
use crate::memory::frames::PAGE_SIZE;

/// Bytes of arguments that a program may be given.
pub const ARGUMENT_BYTES: usize = 8 << 10;
/// Arguments that a program may be given.
pub const ARGUMENTS: usize = 64;
/// Where a position-independent program is put.
const MOVED: u64 = START + (4 << 20);
/// Pages that a stack begins with.
const STACK_PAGES: u64 = 4;
/// A page above the stack stays free.
const STACK_TOP: u64 = END - PAGE_SIZE;

/// `AT_*` of the auxiliary vector.
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_ENTRY: u64 = 9;

/// How a program starts.
#[derive(Debug)]
pub struct Start {
    /// Its areas, the stack's included.
    pub areas: Vec<Area>,
    /// Where its heap begins.
    pub heap: u64,
    /// Its first instruction.
    pub entry: u64,
    /// Its first stack pointer.
    pub stack: u64,
    /// What is there.
    pub contents: Vec<u8>,
}

/// Prepares a program for its arguments.
///
/// # Errors
/// When it cannot be loaded where programs are, or the arguments are too long.
pub fn prepare(file: &'static [u8], arguments: &[Vec<u8>]) -> Result<Start, Errno> {
    let elf = Elf::parse(file).map_err(|_| Errno::NoExec)?;
    let by = if elf.position_independent { MOVED } else { 0 };
    let mut areas = Vec::new();
    for segment in elf.segments() {
        let pages = segment.pages();
        let rights = Rights { read: true, write: segment.writable, execute: segment.executable };
        let (start, end) = (pages.start + by, pages.end + by);
        if start < START || end > STACK_TOP - super::areas::STACK_MAX {
            return Err(Errno::NoExec);
        }
        let backing = Backing { bytes: segment.bytes, at: segment.address + by };
        areas.push(Area { start, end, rights, backing, grows: false });
    }
    let heap = areas.last().map_or(START, |area| area.end);
    let rights = Rights { read: true, write: true, execute: false };
    let start = STACK_TOP - STACK_PAGES * PAGE_SIZE;
    areas.push(Area { start, end: STACK_TOP, rights, backing: ZEROES, grows: true });
    let auxiliary = [
        [AT_PHDR, if elf.headers_address == 0 { 0 } else { elf.headers_address + by }],
        [AT_PHENT, 56],
        [AT_PHNUM, elf.header_count() as u64],
        [AT_PAGESZ, PAGE_SIZE],
        [AT_ENTRY, elf.entry + by],
        [0, 0],
    ];
    let (stack, contents) = stack(arguments, &auxiliary)?;
    Ok(Start { areas, heap, entry: elf.entry + by, stack, contents })
}

/// The first stack pointer, and what is there: the arguments' addresses, an empty environment, the auxiliary vector,
/// and the arguments.
fn stack(arguments: &[Vec<u8>], auxiliary: &[[u64; 2]]) -> Result<(u64, Vec<u8>), Errno> {
    let text: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
    if text > ARGUMENT_BYTES || arguments.len() > ARGUMENTS {
        return Err(Errno::TooBig);
    }
    let words = 1 + arguments.len() + 1 + 1 + auxiliary.len() * 2;
    let bottom = (STACK_TOP - (words * 8 + text) as u64) & !15;
    let mut at = bottom + words as u64 * 8;
    let mut all = Vec::from([arguments.len() as u64]);
    for argument in arguments {
        all.push(at);
        at += argument.len() as u64 + 1;
    }
    all.extend([0, 0]);
    all.extend(auxiliary.iter().flatten());
    let mut contents = Vec::with_capacity(words * 8 + text);
    all.iter().for_each(|word| contents.extend(word.to_le_bytes()));
    arguments.iter().for_each(|argument| {
        contents.extend(argument);
        contents.push(0);
    });
    Ok((bottom, contents))
}
