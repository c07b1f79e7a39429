//! ELF executables (the gABI's chapters "Object Files" and "Program Loading", and the psABI for x86-64): statically
//! linked, at fixed addresses or position-independent.
//!
//! A position-independent program relocates itself, as under Linux; the loader only chooses where it is.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::Range;

use paravane_abi::addr::{PAGE_OFFSET_MASK, PAGE_SIZE};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Program headers that a file may have.
const MAX_HEADERS: usize = 64;
const ET_EXEC: u64 = 2;
const ET_DYN: u64 = 3;
const EM_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const PT_INTERP: u64 = 3;
const PF_X: u64 = 1;
const PF_W: u64 = 2;
/// The end of the addresses that a program may have.
const USER_END: u64 = 1 << 47;

/// Why a file is not a program that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ElfError {
    /// It is not an ELF executable for x86-64.
    NotAProgram,
    /// It is cut off, or its headers contradict one another.
    Broken,
    /// It wants a dynamic linker.
    Dynamic,
    /// A segment is writable and executable.
    WritableCode,
    /// Segments are not in ascending order, or share a page.
    Overlap,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAProgram => "this is not an ELF executable for x86-64",
            Self::Broken => "the ELF file is cut off or contradicts itself",
            Self::Dynamic => "the program is linked dynamically; link it with -static",
            Self::WritableCode => "a segment of the program is both writable and executable",
            Self::Overlap => "two segments of the program share a page; link it with -z separate-code",
        })
    }
}

impl core::error::Error for ElfError {}

/// An executable file, checked.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'f> {
    file: &'f [u8],
    headers: &'f [u8],
    /// Its first instruction, before it is moved.
    pub entry: u64,
    /// Whether it can be moved.
    pub position_independent: bool,
    /// The address of its program headers, before it is moved; 0 if no segment has them.
    pub headers_address: u64,
}

/// A part of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'f> {
    /// Its first address, before the program is moved.
    pub address: u64,
    /// Its size in memory; what `bytes` does not cover is zero.
    pub size: u64,
    /// Its first bytes.
    pub bytes: &'f [u8],
    /// Whether the program may write to it.
    pub writable: bool,
    /// Whether it is code.
    pub executable: bool,
}

impl Segment<'_> {
    /// The pages that it touches.
    pub const fn pages(&self) -> Range<u64> {
        self.address & !PAGE_OFFSET_MASK..(self.address + self.size + PAGE_OFFSET_MASK) & !PAGE_OFFSET_MASK
    }

    /// The bytes of the file that belong into the page at `page`, and where in it.
    pub fn part(&self, page: u64) -> (usize, &[u8]) {
        let skip = page.saturating_sub(self.address) as usize;
        let offset = self.address.saturating_sub(page).min(PAGE_SIZE) as usize;
        let rest = self.bytes.get(skip..).unwrap_or_default();
        (offset, &rest[..rest.len().min(PAGE_SIZE as usize - offset)])
    }
}

/// The little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl<'f> Elf<'f> {
    /// Checks a file: afterwards all its segments lie in the lower half, in ascending order, each in pages of its own,
    /// and in the file.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn parse(file: &'f [u8]) -> Result<Self, ElfError> {
        let head = file.get(..HEADER).ok_or(ElfError::NotAProgram)?;
        let field = |at, size| number(head, at, size).ok_or(ElfError::Broken);
        let kind = field(16, 2)?;
        let ours = head.starts_with(b"\x7fELF\x02\x01\x01") && field(18, 2)? == EM_X86_64;
        if !ours || !matches!(kind, ET_EXEC | ET_DYN) {
            return Err(ElfError::NotAProgram);
        }
        let (start, count) =
            (usize::try_from(field(32, 8)?).map_err(|_| ElfError::Broken)?, field(56, 2)? as usize);
        if field(54, 2)? as usize != PROGRAM_HEADER || count > MAX_HEADERS {
            return Err(ElfError::Broken);
        }
        let end = start.checked_add(count * PROGRAM_HEADER).ok_or(ElfError::Broken)?;
        let headers = file.get(start..end).ok_or(ElfError::Broken)?;
        let mut elf = Self {
            file,
            headers,
            entry: field(24, 8)?,
            position_independent: kind == ET_DYN,
            headers_address: 0,
        };
        elf.check(start as u64)?;
        Ok(elf)
    }

    fn check(&mut self, headers_offset: u64) -> Result<(), ElfError> {
        let mut end = 0;
        let mut has_entry = false;
        for header in self.headers.chunks_exact(PROGRAM_HEADER) {
            match number(header, 0, 4) {
                Some(PT_INTERP) => return Err(ElfError::Dynamic),
                Some(PT_LOAD) => {}
                _ => continue,
            }
            let segment = self.segment(header).ok_or(ElfError::Broken)?;
            if segment.size == 0 {
                continue;
            }
            if segment.writable && segment.executable {
                return Err(ElfError::WritableCode);
            }
            let pages = segment.pages();
            if pages.start < end {
                return Err(ElfError::Overlap);
            }
            end = pages.end;
            let offset = number(header, 8, 8).ok_or(ElfError::Broken)?;
            if let Some(within) = headers_offset.checked_sub(offset)
                && within + self.headers.len() as u64 <= segment.bytes.len() as u64
            {
                self.headers_address = segment.address + within;
            }
            let code = segment.address..segment.address + segment.size;
            has_entry |= segment.executable && code.contains(&self.entry);
        }
        if has_entry { Ok(()) } else { Err(ElfError::Broken) }
    }

    /// The segment that a program header describes; `None` if it leaves the file or the lower half.
    fn segment(&self, header: &[u8]) -> Option<Segment<'f>> {
        let field = |at| number(header, at, 8);
        let flags = number(header, 4, 4)?;
        let (offset, address, in_file, size) = (field(8)?, field(16)?, field(32)?, field(40)?);
        let end = address.checked_add(size).filter(|end| *end <= USER_END)?;
        let file_end = usize::try_from(offset.checked_add(in_file)?).ok()?;
        let bytes = self.file.get(usize::try_from(offset).ok()?..file_end)?;
        let fits = in_file <= size && end <= USER_END - PAGE_SIZE;
        fits.then_some(Segment {
            address,
            size,
            bytes,
            writable: flags & PF_W != 0,
            executable: flags & PF_X != 0,
        })
    }

    /// The program's segments, in ascending order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'f>> + use<'f> {
        let elf = *self;
        let loaded = |header: &&[u8]| number(header, 0, 4) == Some(PT_LOAD);
        let all = self.headers.chunks_exact(PROGRAM_HEADER).filter(loaded);
        all.filter_map(move |header| elf.segment(header)).filter(|segment| segment.size != 0)
    }

    /// How many program headers there are: AT_PHNUM of a program's auxiliary vector.
    pub const fn header_count(&self) -> usize {
        self.headers.len() / PROGRAM_HEADER
    }

    /// The pages from its first to its last, before it is moved.
    pub fn pages(&self) -> Range<u64> {
        let start = self.segments().next().map_or(0, |segment| segment.pages().start);
        start..self.segments().last().map_or(start, |segment| segment.pages().end)
    }
}
