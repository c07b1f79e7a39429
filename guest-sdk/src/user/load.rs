//! Loading a program into a space.
#![forbid(unsafe_code)]

use core::fmt;

use super::elf::Elf;
use super::space::UserSpace;
use crate::hypercall::Hypercalls;
use crate::paging::{FrameSource, Mmu, PageFlags, PagingError};

/// A program that was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its first instruction.
    pub entry: u64,
    /// The address after its last page.
    pub end: u64,
    /// Its program headers, for AT_PHDR of its auxiliary vector; 0 if they are not in memory.
    pub headers: u64,
}

/// Why a program could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// It cannot be moved by `0`: it is not position-independent, or would leave the lower half or its pages.
    Move(u64),
    /// A page could not be mapped.
    Paging(PagingError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Move(by) => write!(f, "the program cannot be moved by {by:#x}"),
            Self::Paging(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

impl From<PagingError> for LoadError {
    fn from(error: PagingError) -> Self {
        Self::Paging(error)
    }
}

/// Loads a program into pages of its own, `by` bytes after the addresses in the file (0 unless it is
/// position-independent). Only code is executable, and code is not writable.
///
/// # Errors
/// When it cannot be there, or frames run out; what was loaded before stays in the space.
pub fn load<H: Hypercalls>(
    elf: &Elf<'_>,
    space: &UserSpace,
    mmu: &mut Mmu<'_, H>,
    frames: &mut impl FrameSource,
    by: u64,
) -> Result<Program, LoadError> {
    let pages = elf.pages();
    let end = pages.end.checked_add(by).filter(|end| *end < 1 << 47);
    let movable = by == 0 || elf.position_independent && by.is_multiple_of(4096);
    let end = end.filter(|_| movable).ok_or(LoadError::Move(by))?;
    for segment in elf.segments() {
        let mut flags = PageFlags::empty();
        flags.set(PageFlags::WRITE, segment.writable);
        flags.set(PageFlags::NO_EXECUTE, !segment.executable);
        for page in segment.pages().step_by(4096) {
            let frame = space.map_new(mmu, frames, page + by, flags)?;
            let (offset, bytes) = segment.part(page);
            mmu.memory().copy_in(frame, offset, bytes);
        }
    }
    let headers = if elf.headers_address == 0 { 0 } else { elf.headers_address + by };
    Ok(Program { entry: elf.entry.wrapping_add(by), end, headers })
}
