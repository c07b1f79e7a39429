//! The memory of a process: areas, and the pages that are there. Pages come when they are touched, and are copied when
//! one of those who share them writes.
#![forbid(unsafe_code)]

use super::abi::Errno;
use super::areas::{Area, Areas, Rights, START, ZEROES, pages};
use crate::memory::Memory;
use crate::memory::contents::Contents;
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::paging::{Access, AddressSpace, MapError, Mmu, Span, Stale};

/// Frames that processes other than the first must leave to the kernel and to the first.
pub const RESERVE: u64 = 128;

/// Why a page is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process may not do that.
    NotPermitted,
    /// There is no memory left.
    OutOfMemory,
}

impl From<Fault> for Errno {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotPermitted => Self::Fault,
            Fault::OutOfMemory => Self::NoMem,
        }
    }
}

impl From<MapError> for Fault {
    fn from(_: MapError) -> Self {
        Self::OutOfMemory
    }
}

/// An access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// The memory of a process.
#[derive(Debug)]
pub struct Space {
    tables: AddressSpace,
    areas: Areas,
    /// The break: where the heap begins, and ends.
    heap: (u64, u64),
    /// Whether it may use the reserve.
    privileged: bool,
}

const HEAP: Rights = Rights { read: true, write: true, execute: false };

impl Space {
    /// An empty space.
    ///
    /// # Errors
    /// When there is no frame for its root.
    pub fn new<M: Mmu>(memory: &mut Memory<M>, privileged: bool) -> Result<Self, Fault> {
        let Memory { mmu, frames, space, .. } = memory;
        let tables = AddressSpace::for_program(mmu, frames, space)?;
        Ok(Self { tables, areas: Areas::default(), heap: (START, START), privileged })
    }

    /// The frame of its L4 table, which the processor may use after the next flush.
    pub fn make_live<M: Mmu>(&mut self, memory: &mut Memory<M>) -> Frame {
        self.tables.make_live(&mut memory.mmu);
        self.tables.root()
    }

    /// Adds an area.
    ///
    /// # Errors
    /// When something is there.
    pub fn add(&mut self, area: Area) -> Result<(), Errno> {
        self.areas.insert(area)
    }

    /// Sets where the heap begins.
    pub fn set_heap(&mut self, start: u64) {
        self.heap = (start, start);
    }

    /// Makes the heap end at `end`, or tells where it ends.
    pub fn set_break<M: Mmu>(&mut self, memory: &mut Memory<M>, end: u64) -> u64 {
        let (start, old) = self.heap;
        let page = |at: u64| at.next_multiple_of(PAGE_SIZE);
        let moved = match end {
            _ if end < start || end > super::areas::END => false,
            _ if page(end) > page(old) => self.areas.extend(page(old), page(end), HEAP).is_ok(),
            _ if page(end) < page(old) => self.unmap(memory, page(end), page(old) - page(end)).is_ok(),
            _ => true,
        };
        if moved {
            self.heap.1 = end;
        }
        self.heap.1
    }

    /// Maps zeroes, at `hint` if that is free.
    ///
    /// # Errors
    /// When there is no room.
    pub fn map(&mut self, hint: u64, len: u64, rights: Rights) -> Result<u64, Errno> {
        let start = self.areas.find(hint, len).ok_or(Errno::NoMem)?;
        let (start, end) = pages(start, len).ok_or(Errno::Inval)?;
        self.areas.insert(Area { start, end, rights, backing: ZEROES, grows: false })?;
        Ok(start)
    }

    /// Unmaps what is in a range, if anything is.
    ///
    /// # Errors
    /// When the range is not one of pages of a program.
    pub fn unmap<M: Mmu>(&mut self, memory: &mut Memory<M>, start: u64, len: u64) -> Result<(), Errno> {
        let (start, end) = pages(start, len).ok_or(Errno::Inval)?;
        self.areas.remove(start, end)?;
        let Memory { mmu, frames, shares, .. } = memory;
        let mut gone = false;
        // Frames are used again only after the flush: until then the program's processor may know them.
        for va in self.touched(mmu, start, end) {
            if let Some(frame) = self.tables.unmap(mmu, va) {
                gone = true;
                if shares.give_up(frame) {
                    free(frames, frame);
                }
            }
        }
        if gone {
            mmu.flush(Stale::Everything);
        }
        Ok(())
    }

    /// Changes what is permitted in a range.
    ///
    /// # Errors
    /// When the range is not one of pages, or has holes.
    pub fn protect<M: Mmu>(
        &mut self,
        memory: &mut Memory<M>,
        start: u64,
        len: u64,
        rights: Rights,
    ) -> Result<(), Errno> {
        let (start, end) = pages(start, len).ok_or(Errno::Inval)?;
        self.areas.protect(start, end, rights)?;
        let Memory { mmu, frames, shares, .. } = memory;
        let mut changed = false;
        for va in self.touched(mmu, start, end) {
            let Some((frame, _)) = self.tables.translate(mmu, va) else { continue };
            changed = true;
            if rights.read {
                // A shared page stays as it is until it is written to.
                let write = rights.write && !shares.is_shared(frame);
                self.tables.protect(mmu, va, Access::Program { write, execute: rights.execute });
            } else if self.tables.unmap(mmu, va).is_some() {
                // Without any right there is no page. What was in it is lost, which under Linux it would not be.
                if shares.give_up(frame) {
                    free(frames, frame);
                }
            }
        }
        if changed {
            mmu.flush(Stale::Everything);
        }
        Ok(())
    }

    /// The pages of a range that have a table: all others cannot be mapped.
    fn touched<M: Mmu>(&self, mmu: &M, start: u64, end: u64) -> impl Iterator<Item = u64> + use<M> {
        const TABLE: u64 = 512 * PAGE_SIZE;
        let first = start & !(TABLE - 1);
        let spans = (first..end).step_by(TABLE as usize);
        let there: alloc::vec::Vec<u64> =
            spans.filter(|span| self.tables.slot(mmu, *span).is_some()).collect();
        there
            .into_iter()
            .flat_map(move |span| (span.max(start)..(span + TABLE).min(end)).step_by(PAGE_SIZE as usize))
    }

    /// Makes a page that was touched be there.
    ///
    /// # Errors
    /// When the access is not permitted, or memory has run out.
    pub fn fault<M: Mmu + Contents>(
        &mut self,
        memory: &mut Memory<M>,
        va: u64,
        what: Use,
    ) -> Result<(), Fault> {
        let area = self.areas.reach(va).filter(|area| match what {
            Use::Read => area.rights.read,
            Use::Write => area.rights.read && area.rights.write,
            Use::Execute => area.rights.execute,
        });
        let Some(area) = area else { return Err(Fault::NotPermitted) };
        let page = va & !(PAGE_SIZE - 1);
        let execute = area.rights.execute;
        match self.tables.translate(&memory.mmu, page) {
            None => {
                let frame = self.take(memory)?;
                fill(&mut memory.mmu, frame, page, &area);
                self.place(memory, page, frame, Access::Program { write: area.rights.write, execute })
            }
            Some((frame, _)) if what == Use::Write && memory.shares.is_shared(frame) => {
                let copy = self.take(memory)?;
                memory.mmu.copy_frame(frame, copy);
                self.place(memory, page, copy, Access::Program { write: true, execute })?;
                memory.shares.give_up(frame);
                memory.mmu.flush(Stale::Page(page));
                Ok(())
            }
            Some(_) => {
                let write = what == Use::Write;
                if write {
                    self.tables.protect(&mut memory.mmu, page, Access::Program { write, execute });
                }
                memory.mmu.flush(Stale::Page(page));
                Ok(())
            }
        }
    }

    fn place<M: Mmu>(
        &mut self,
        memory: &mut Memory<M>,
        page: u64,
        frame: Frame,
        access: Access,
    ) -> Result<(), Fault> {
        let Memory { mmu, frames, .. } = memory;
        let placed = self.tables.map_run(mmu, frames, Span::pages(page, 1), frame, access);
        placed.inspect_err(|_| free(frames, frame))?;
        Ok(())
    }

    fn take<M: Mmu>(&self, memory: &mut Memory<M>) -> Result<Frame, Fault> {
        if !self.privileged && memory.frames.free_frames() <= RESERVE {
            return Err(Fault::OutOfMemory);
        }
        memory.frames.allocate().ok_or(Fault::OutOfMemory)
    }

    /// A copy that shares all pages with it.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn fork<M: Mmu>(&mut self, memory: &mut Memory<M>) -> Result<Self, Fault> {
        let Memory { mmu, frames, space, shares, .. } = memory;
        // What the first process starts needs some memory to run in, too.
        let reserve = if self.privileged { RESERVE } else { 2 * RESERVE };
        if frames.free_frames() < self.tables.table_count(mmu) + reserve {
            return Err(Fault::OutOfMemory);
        }
        let tables = self.tables.fork(mmu, frames, space, &mut |frame| shares.share(frame))?;
        mmu.flush(Stale::Everything);
        Ok(Self { tables, areas: self.areas.clone(), heap: self.heap, privileged: false })
    }

    /// Frees everything. No processor uses it.
    pub fn destroy<M: Mmu>(self, memory: &mut Memory<M>) {
        let Memory { mmu, frames, shares, .. } = memory;
        // Nothing takes a frame before the tables, too, are gone.
        self.tables.each_page(mmu, &mut |frame| {
            if shares.give_up(frame) {
                free(frames, frame);
            }
        });
        self.tables.destroy(mmu, frames);
    }

    /// Copies from the process's memory: whatever the address is, nothing is read but what the process could read.
    ///
    /// # Errors
    /// When it could not.
    pub fn copy_from<M: Mmu + Contents>(
        &mut self,
        memory: &mut Memory<M>,
        va: u64,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        self.each_part(memory, va, into.len(), Use::Read, |mmu, frame, offset, part| {
            mmu.copy_out(frame, offset, &mut into[part]);
        })
    }

    /// Copies to the process's memory, where it may write itself.
    ///
    /// # Errors
    /// When it may not.
    pub fn copy_to<M: Mmu + Contents>(
        &mut self,
        memory: &mut Memory<M>,
        va: u64,
        from: &[u8],
    ) -> Result<(), Fault> {
        self.each_part(memory, va, from.len(), Use::Write, |mmu, frame, offset, part| {
            mmu.copy_in(frame, offset, &from[part]);
        })
    }

    fn each_part<M: Mmu + Contents>(
        &mut self,
        memory: &mut Memory<M>,
        va: u64,
        len: usize,
        what: Use,
        mut f: impl FnMut(&mut M, Frame, usize, core::ops::Range<usize>),
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let at = va.checked_add(done as u64).ok_or(Fault::NotPermitted)?;
            let (offset, rest) = ((at % PAGE_SIZE) as usize, len - done);
            let frame = self.page_for(memory, at, what)?;
            let count = rest.min(PAGE_SIZE as usize - offset);
            f(&mut memory.mmu, frame, offset, done..done + count);
            done += count;
        }
        Ok(())
    }

    /// The frame of a page, for an access that the process may make.
    fn page_for<M: Mmu + Contents>(
        &mut self,
        memory: &mut Memory<M>,
        va: u64,
        what: Use,
    ) -> Result<Frame, Fault> {
        let there = |space: &Self, memory: &Memory<M>| {
            let found = space.tables.translate(&memory.mmu, va & !(PAGE_SIZE - 1));
            let enough = |access| what != Use::Write || access == Access::ReadWrite;
            found.filter(|(_, access)| enough(*access)).map(|(frame, _)| frame)
        };
        if self.areas.reach(va).is_none() {
            return Err(Fault::NotPermitted);
        }
        if let Some(frame) = there(self, memory) {
            return Ok(frame);
        }
        self.fault(memory, va, what)?;
        // What was mapped is in effect, and can be read, after a flush.
        memory.mmu.flush(Stale::Nothing);
        there(self, memory).ok_or(Fault::NotPermitted)
    }
}

/// Fills a new frame with what the page has at first.
fn fill<M: Contents>(mmu: &mut M, frame: Frame, page: u64, area: &Area) {
    let bytes = area.backing.bytes;
    let skip = page.saturating_sub(area.backing.at).min(bytes.len() as u64) as usize;
    let offset = area.backing.at.saturating_sub(page).min(PAGE_SIZE) as usize;
    let rest = &bytes[skip..];
    let part = &rest[..rest.len().min(PAGE_SIZE as usize - offset)];
    if part.len() < PAGE_SIZE as usize {
        mmu.zero(frame);
    }
    mmu.copy_in(frame, offset, part);
}

fn free(frames: &mut crate::memory::frames::FrameAllocator<'_>, frame: Frame) {
    if let Err(error) = frames.free(frame) {
        panic!("a process's frame was freed twice: {error:?}");
    }
}
