//! Address spaces: the x86-64 page tables of this kernel, four levels, 4 KiB pages (SDM vol. 3, 4.5).
//!
//! The same code drives both machines. What differs is behind [`Mmu`], and the difference is one rule: a
//! table that the processor may walk is *live*, and a live table is changed by [`Mmu::write`] only, which a
//! paravirtual machine queues and a bare one performs on the spot. So nothing here reads an entry back
//! between writing it and the next [`Mmu::flush`]. Tables that are not live yet are ordinary memory.
#![forbid(unsafe_code)]

use super::frames::{Frame, FrameAllocator, PAGE_SIZE};

mod span;
#[cfg(test)]
pub(crate) mod tests;

use span::index;
pub use span::{ENTRIES, Span};

/// Bytes that one L4 slot spans.
pub const SLOT_SIZE: u64 = 1 << 39;
/// L4 slots that each address space has to itself. Slot 0 is the kernel's and the same in all of them; the upper half
/// is not used by this kernel (on a paravirtual machine, part of it belongs to the hypervisor).
const PRIVATE_SLOTS: core::ops::Range<usize> = 1..ENTRIES / 2;
const KERNEL_SLOT: usize = 0;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
// Set from the start: this kernel never reads them, and the processor or the hypervisor then need not set them.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
const TABLE: u64 = PRESENT | WRITABLE | ACCESSED;

/// The accesses that a page permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and execute.
    ReadOnly,
    /// Read, write and execute.
    ReadWrite,
    /// The same, for user programs too. What leads to the page must have been made for such a page.
    User,
    /// A user program may read, and do what is said.
    Program {
        /// Whether it may write.
        write: bool,
        /// Whether it may execute what is there.
        execute: bool,
    },
}

impl Access {
    const fn bits(self) -> u64 {
        match self {
            Self::ReadOnly => PRESENT | ACCESSED,
            Self::ReadWrite => PRESENT | WRITABLE | ACCESSED | DIRTY,
            Self::User => PRESENT | WRITABLE | USER | ACCESSED | DIRTY,
            Self::Program { write, execute } => {
                let written = if write { WRITABLE | DIRTY } else { 0 };
                PRESENT | USER | ACCESSED | written | if execute { 0 } else { NO_EXECUTE }
            }
        }
    }

    /// By what the kernel may do: a hypervisor may let it run as a user program.
    const fn of(entry: u64) -> Self {
        if entry & WRITABLE == 0 { Self::ReadOnly } else { Self::ReadWrite }
    }
}

/// Which cached translations must be gone once a flush is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// None: entries only went from absent to present, which a processor does not cache (SDM vol. 3, 4.10.4.3).
    Nothing,
    /// The one of the page at this address.
    Page(u64),
    /// All.
    Everything,
}

/// The page-table primitives of a machine, from which this module builds address spaces.
pub trait Mmu {
    /// Whether the processor runs programs in address spaces that have the kernel in them, out of their reach.
    const KERNEL_WITH_PROGRAMS: bool;
    /// The names of what the machine counts about its own work; empty if it counts nothing.
    const COUNTERS: &'static [&'static str] = &[];
    /// Those counts since the start, in the same order.
    fn counters(&mut self) -> [u64; MAX_COUNTERS] {
        [0; MAX_COUNTERS]
    }
    /// The entry that refers to `frame`, with the given flag bits.
    fn entry(&self, frame: Frame, bits: u64) -> u64;
    /// The frame that a present entry refers to.
    fn frame(&self, entry: u64) -> Frame;
    /// Reads an entry of any table.
    fn read(&self, table: Frame, index: usize) -> u64;
    /// Zeroes a frame that is to become a table.
    fn clear(&mut self, table: Frame);
    /// Writes an entry of a table that is not live.
    fn fill(&mut self, table: Frame, index: usize, entry: u64);
    /// Writes an entry of a live table; in effect, at the latest, when the next [`flush`](Self::flush) returns.
    fn write(&mut self, table: Frame, index: usize, entry: u64);
    /// Makes a frame a table that may become live: from now on it is changed by [`write`](Self::write) only.
    fn adopt(&mut self, table: Frame);
    /// Makes a table that is no longer live an ordinary frame again.
    fn release(&mut self, table: Frame);
    /// Declares `root` the L4 of an address space whose tables have all been adopted.
    fn pin(&mut self, root: Frame);
    /// Undoes [`pin`](Self::pin).
    fn unpin(&mut self, root: Frame);
    /// Brings everything since the last flush into effect, in order, and drops `stale` translations.
    fn flush(&mut self, stale: Stale);
    /// Makes the processor use `root`, once everything before is in effect.
    fn switch(&mut self, root: Frame);
}

/// The most counters that a machine can have.
pub const MAX_COUNTERS: usize = 3;

/// Why a page could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame is left for a page table.
    OutOfFrames,
    /// No table leads to this address: see [`AddressSpace::reserve`].
    NoTable(u64),
}

/// What a range of pages is mapped to.
#[derive(Clone, Copy)]
enum Leaves {
    /// Nothing: only the tables are made.
    Untouched,
    /// Neighbouring frames from this one on.
    Run(Frame, Access),
}

/// One tree of page tables.
#[derive(Debug)]
pub struct AddressSpace {
    root: Frame,
    live: bool,
}

impl AddressSpace {
    /// The address space that the kernel was started in.
    pub const fn adopt_boot(root: Frame) -> Self {
        Self { root, live: true }
    }

    /// A new address space that shares the kernel's slot with `kernel` and is empty otherwise. It is not live: what is
    /// mapped before the first [`activate`](Self::activate) costs plain stores only.
    ///
    /// # Errors
    /// When there is no frame for its root.
    pub fn new(mmu: &mut impl Mmu, frames: &mut FrameAllocator<'_>, kernel: &Self) -> Result<Self, MapError> {
        let root = new_table(mmu, frames)?;
        mmu.fill(root, KERNEL_SLOT, mmu.read(kernel.root, KERNEL_SLOT));
        Ok(Self { root, live: false })
    }

    /// A new, empty address space for a program. It is not live.
    ///
    /// # Errors
    /// When there is no frame for its root.
    pub fn for_program<M: Mmu>(
        mmu: &mut M,
        frames: &mut FrameAllocator<'_>,
        kernel: &Self,
    ) -> Result<Self, MapError> {
        if M::KERNEL_WITH_PROGRAMS {
            return Self::new(mmu, frames, kernel);
        }
        Ok(Self { root: new_table(mmu, frames)?, live: false })
    }

    /// The L4's frame.
    pub const fn root(&self) -> Frame {
        self.root
    }

    /// Maps the pages of `span` to neighbouring frames from `first` on, making tables as needed.
    ///
    /// Missing tables are filled before they are linked, so a big range costs a live space one write for each
    /// new table only. In effect after the next flush.
    ///
    /// # Errors
    /// When tables run out; part of the range may be mapped then.
    pub fn map_run(
        &mut self,
        mmu: &mut impl Mmu,
        frames: &mut FrameAllocator<'_>,
        span: Span,
        first: Frame,
        access: Access,
    ) -> Result<(), MapError> {
        self.build(mmu, frames, self.root, 4, self.live, span, Leaves::Run(first, access))
    }

    /// Makes every table that the pages of `span` need, and maps nothing.
    ///
    /// # Errors
    /// When tables run out.
    pub fn reserve(
        &mut self,
        mmu: &mut impl Mmu,
        frames: &mut FrameAllocator<'_>,
        span: Span,
    ) -> Result<(), MapError> {
        self.build(mmu, frames, self.root, 4, self.live, span, Leaves::Untouched)
    }

    /// Maps one page to which tables lead already. In effect after the next flush.
    ///
    /// # Errors
    /// When no table leads there.
    pub fn map(&mut self, mmu: &mut impl Mmu, va: u64, frame: Frame, access: Access) -> Result<(), MapError> {
        let (table, index) = self.slot(mmu, va).ok_or(MapError::NoTable(va))?;
        let entry = mmu.entry(frame, access.bits());
        self.store(mmu, table, index, entry);
        Ok(())
    }

    /// Changes the accesses that a mapped page permits; false when it is not mapped.
    pub fn protect(&mut self, mmu: &mut impl Mmu, va: u64, access: Access) -> bool {
        let Some((table, index)) = self.slot(mmu, va) else { return false };
        let entry = mmu.read(table, index);
        if entry & PRESENT == 0 {
            return false;
        }
        self.store(mmu, table, index, entry & !(WRITABLE | NO_EXECUTE) | access.bits());
        true
    }

    /// Unmaps a page and returns the frame that was there.
    pub fn unmap(&mut self, mmu: &mut impl Mmu, va: u64) -> Option<Frame> {
        let (table, index) = self.slot(mmu, va)?;
        let entry = mmu.read(table, index);
        if entry & PRESENT == 0 {
            return None;
        }
        self.store(mmu, table, index, 0);
        Some(mmu.frame(entry))
    }

    /// The frame that a page is mapped to and the accesses that it permits, according to the tables.
    pub fn translate(&self, mmu: &impl Mmu, va: u64) -> Option<(Frame, Access)> {
        let (table, index) = self.slot(mmu, va)?;
        let entry = mmu.read(table, index);
        (entry & PRESENT != 0).then(|| (mmu.frame(entry), Access::of(entry)))
    }

    /// Makes the processor able to use this address space, from the next flush on.
    pub fn make_live(&mut self, mmu: &mut impl Mmu) {
        if !self.live {
            each_private_table(mmu, self.root, &mut |mmu, table| mmu.adopt(table));
            mmu.pin(self.root);
            self.live = true;
        }
    }

    /// Makes the processor use this address space. From the first time on it is live.
    pub fn activate(&mut self, mmu: &mut impl Mmu) {
        self.make_live(mmu);
        mmu.switch(self.root);
        mmu.flush(Stale::Nothing);
    }

    /// Frees the tables of an address space that is not in use. The frames that it maps are not freed.
    pub fn destroy(self, mmu: &mut impl Mmu, frames: &mut FrameAllocator<'_>) {
        if self.live {
            mmu.unpin(self.root);
            each_private_table(mmu, self.root, &mut |mmu, table| mmu.release(table));
            mmu.flush(Stale::Nothing);
        }
        each_private_table(mmu, self.root, &mut |_, table| free_table(frames, table));
    }

    /// How many tables are its own.
    pub fn table_count(&self, mmu: &mut impl Mmu) -> u64 {
        let mut count = 0;
        each_private_table(mmu, self.root, &mut |_, _| count += 1);
        count
    }

    /// Calls `f` with the frame of each of its own pages.
    pub fn each_page<M: Mmu>(&self, mmu: &mut M, f: &mut impl FnMut(Frame)) {
        each_child(mmu, self.root, 4, PRIVATE_SLOTS, &mut |mmu: &mut M, table, level| {
            if level == 1 {
                let entries = (0..ENTRIES).map(|index| mmu.read(table, index)).filter(|e| e & PRESENT != 0);
                entries.for_each(|entry| f(mmu.frame(entry)));
            }
        });
    }

    /// A copy that shares all its own pages, none of which is writable in either afterwards; `f` is told each one's
    /// frame. The copy is not live. In effect, for this one, after a flush of everything.
    ///
    /// # Errors
    /// When tables run out; less than [`table_count`](Self::table_count) frames were free then, and nothing happened.
    pub fn fork<M: Mmu>(
        &self,
        mmu: &mut M,
        frames: &mut FrameAllocator<'_>,
        kernel: &Self,
        f: &mut impl FnMut(Frame),
    ) -> Result<Self, MapError> {
        if frames.free_frames() < self.table_count(mmu) {
            return Err(MapError::OutOfFrames);
        }
        let copy = Self::for_program(mmu, frames, kernel)?;
        self.fork_table(mmu, frames, (self.root, copy.root), 4, f)?;
        Ok(copy)
    }

    fn fork_table<M: Mmu>(
        &self,
        mmu: &mut M,
        frames: &mut FrameAllocator<'_>,
        (from, to): (Frame, Frame),
        level: u8,
        f: &mut impl FnMut(Frame),
    ) -> Result<(), MapError> {
        for index in if level == 4 { PRIVATE_SLOTS } else { 0..ENTRIES } {
            let entry = mmu.read(from, index);
            if entry & PRESENT == 0 {
                continue;
            }
            if level > 1 {
                let table = new_table(mmu, frames)?;
                self.fork_table(mmu, frames, (mmu.frame(entry), table), level - 1, f)?;
                mmu.fill(to, index, mmu.entry(table, TABLE | USER));
                continue;
            }
            if entry & WRITABLE != 0 {
                self.store(mmu, from, index, entry & !WRITABLE);
            }
            mmu.fill(to, index, entry & !WRITABLE);
            f(mmu.frame(entry));
        }
        Ok(())
    }

    /// The table and index of the entry that maps `va`, if tables lead there.
    pub fn slot(&self, mmu: &impl Mmu, va: u64) -> Option<(Frame, usize)> {
        let mut table = self.root;
        for level in (2..=4).rev() {
            let entry = mmu.read(table, index(va, level));
            if entry & PRESENT == 0 {
                return None;
            }
            table = mmu.frame(entry);
        }
        Some((table, index(va, 1)))
    }

    fn store(&self, mmu: &mut impl Mmu, table: Frame, index: usize, entry: u64) {
        if self.live { mmu.write(table, index, entry) } else { mmu.fill(table, index, entry) }
    }

    /// Fills the part of `table` that `span` covers. Visits every entry once, so that it never reads an entry whose
    /// write is queued.
    #[allow(clippy::too_many_arguments)]
    fn build(
        &self,
        mmu: &mut impl Mmu,
        frames: &mut FrameAllocator<'_>,
        table: Frame,
        level: u8,
        live: bool,
        span: Span,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        for (index, part) in span.split(level) {
            let leaves = leaves.skip(part.start - span.start);
            let old = if level == 1 { 0 } else { mmu.read(table, index) };
            if old & PRESENT != 0 {
                self.build(mmu, frames, mmu.frame(old), level - 1, live, part, leaves)?;
                continue;
            }
            let new = match leaves {
                Leaves::Run(frame, access) if level == 1 => mmu.entry(frame, access.bits()),
                Leaves::Untouched if level == 1 => continue,
                _ => self.new_subtree(mmu, frames, level - 1, live, part, leaves)?,
            };
            if live { mmu.write(table, index, new) } else { mmu.fill(table, index, new) }
        }
        Ok(())
    }

    /// Makes a table with everything below it, complete before it is linked; returns the entry that links it.
    fn new_subtree(
        &self,
        mmu: &mut impl Mmu,
        frames: &mut FrameAllocator<'_>,
        level: u8,
        parent_live: bool,
        span: Span,
        leaves: Leaves,
    ) -> Result<u64, MapError> {
        let table = new_table(mmu, frames)?;
        if let Err(error) = self.build(mmu, frames, table, level, false, span, leaves) {
            each_table(mmu, table, level, &mut |_, table, _| free_table(frames, table));
            return Err(error);
        }
        if parent_live {
            each_table(mmu, table, level, &mut |mmu, table, _| mmu.adopt(table));
        }
        Ok(mmu.entry(table, TABLE | leaves.table_bits()))
    }
}

impl Leaves {
    /// What the entries that lead to them have in addition.
    const fn table_bits(self) -> u64 {
        if matches!(self, Self::Run(_, Access::User | Access::Program { .. })) { USER } else { 0 }
    }

    /// The leaves that remain after `bytes` of them.
    fn skip(self, bytes: u64) -> Self {
        match self {
            Self::Untouched => Self::Untouched,
            Self::Run(first, access) => Self::Run(Frame(first.0 + bytes / PAGE_SIZE), access),
        }
    }
}

fn new_table(mmu: &mut impl Mmu, frames: &mut FrameAllocator<'_>) -> Result<Frame, MapError> {
    let table = frames.allocate().ok_or(MapError::OutOfFrames)?;
    mmu.clear(table);
    Ok(table)
}

fn free_table(frames: &mut FrameAllocator<'_>, table: Frame) {
    if let Err(error) = frames.free(table) {
        panic!("a page table was freed twice: {error:?}");
    }
}

/// Calls `f` for a table of `level` and all tables below it, those first, each with its level.
fn each_table<M: Mmu>(mmu: &mut M, table: Frame, level: u8, f: &mut impl FnMut(&mut M, Frame, u8)) {
    if level > 1 {
        each_child(mmu, table, level, 0..ENTRIES, f);
    }
    f(mmu, table, level);
}

/// Calls `f` for the tables of an address space that are its own, the root last.
fn each_private_table<M: Mmu>(mmu: &mut M, root: Frame, f: &mut impl FnMut(&mut M, Frame)) {
    each_child(mmu, root, 4, PRIVATE_SLOTS, &mut |mmu: &mut M, table, _| f(mmu, table));
    f(mmu, root);
}

fn each_child<M: Mmu>(
    mmu: &mut M,
    table: Frame,
    level: u8,
    slots: core::ops::Range<usize>,
    f: &mut impl FnMut(&mut M, Frame, u8),
) {
    for index in slots {
        let entry = mmu.read(table, index);
        if entry & PRESENT != 0 {
            let child = mmu.frame(entry);
            each_table(mmu, child, level - 1, f);
        }
    }
}
