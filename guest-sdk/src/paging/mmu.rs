//! A vCPU's access to page tables, one entry at a time.

use paravane_abi::addr::PT_ENTRIES;
use paravane_abi::mmu::{
    MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_PRESERVE_AD, MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L1_TABLE,
    MMUEXT_UNPIN_TABLE, MmuUpdate, MmuextOp,
};
use paravane_abi::{addr, pte};

use super::error::PagingError;
use crate::hypercall::{Hypercalls, Hypervisor};
use crate::memory::{Memory, Mfn, Pfn};
use crate::queue::{FlushReason, Queue};

/// The most tables that can be loose at a time; another one flushes the queue.
const LOOSE: usize = 128;

/// Flags of an entry that refers to a table.
pub(super) const TABLE: u64 = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED;

/// A vCPU's access to page tables.
#[derive(Debug)]
pub struct Mmu<'q, H = Hypervisor> {
    queue: &'q mut Queue<H>,
    pub(super) memory: Memory,
    /// The root of an address space that has the direct map.
    pub(super) kernel_root: Pfn,
    loose: [Pfn; LOOSE],
    loose_len: usize,
    loose_epoch: u64,
}

impl<'q, H: Hypercalls> Mmu<'q, H> {
    /// Access through `queue` to the tables in `memory`.
    ///
    /// # Safety
    /// `kernel_root` is the L4 table of an address space in use, whose direct map is that of `memory`.
    pub unsafe fn new(queue: &'q mut Queue<H>, memory: Memory, kernel_root: Pfn) -> Self {
        Self { queue, memory, kernel_root, loose: [Pfn(0); LOOSE], loose_len: 0, loose_epoch: 0 }
    }

    /// The domain's memory.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// The queue, for calls that should go with the updates.
    pub fn queue(&mut self) -> &mut Queue<H> {
        self.queue
    }

    /// Makes all queued changes.
    ///
    /// # Errors
    /// The first update that the hypervisor refused.
    pub fn flush(&mut self) -> Result<(), PagingError> {
        Ok(self.queue.flush()?)
    }

    /// An entry of a table, with its queued change if there is one.
    pub fn read(&self, table: Pfn, index: usize) -> u64 {
        let queued = self.maddr(table, index).ok().and_then(|maddr| self.queue.pending(maddr));
        queued.unwrap_or_else(|| self.memory.load(table, index))
    }

    /// Changes an entry: a plain store while the table is loose, an update otherwise.
    ///
    /// # Errors
    /// When the queue was full and an update before this one was refused.
    ///
    /// # Safety
    /// `table` is a page table. Memory that running code uses must stay mapped as that code expects.
    pub unsafe fn write(&mut self, table: Pfn, index: usize, entry: u64) -> Result<(), PagingError> {
        // SAFETY: the caller's promise.
        unsafe { self.write_as(table, index, entry, MMU_NORMAL_PT_UPDATE) }
    }

    /// As [`Mmu::write`], but keeps accessed and dirty bits that the processor sets meanwhile.
    ///
    /// # Errors
    /// As for [`Mmu::write`].
    ///
    /// # Safety
    /// As for [`Mmu::write`].
    pub unsafe fn write_preserving(
        &mut self,
        table: Pfn,
        index: usize,
        entry: u64,
    ) -> Result<(), PagingError> {
        // SAFETY: the caller's promise.
        unsafe { self.write_as(table, index, entry, MMU_PT_UPDATE_PRESERVE_AD) }
    }

    /// Stores an entry into a table that the hypervisor does not know of yet.
    ///
    /// # Safety
    /// Nothing else uses `table`, and it is mapped writable.
    pub unsafe fn fill(&mut self, table: Pfn, index: usize, entry: u64) {
        self.memory.store(table, index, entry);
    }

    /// Fills a frame with zeroes.
    ///
    /// # Safety
    /// As for [`Mmu::fill`].
    pub unsafe fn clear(&mut self, frame: Pfn) {
        self.memory.zero(frame);
    }

    /// Takes the direct map's write access to a frame away, before anything else that is queued.
    ///
    /// # Errors
    /// As for [`Mmu::write`], or when the frame is not in the direct map.
    ///
    /// # Safety
    /// Nothing stores to the frame through the direct map once the queue is flushed.
    pub unsafe fn make_read_only(&mut self, frame: Pfn) -> Result<(), PagingError> {
        let (table, index) = self.direct_entry(frame)?;
        let update = MmuUpdate {
            ptr: self.maddr(table, index)? | MMU_NORMAL_PT_UPDATE,
            val: self.memory.load(table, index) & !pte::RW,
        };
        // SAFETY: the caller's promise.
        Ok(unsafe { self.queue.update_first(update) }?)
    }

    /// Gives the direct map write access to a frame again.
    ///
    /// # Errors
    /// As for [`Mmu::make_read_only`].
    ///
    /// # Safety
    /// When the queue is flushed, the frame is no longer a page table.
    pub unsafe fn make_writable(&mut self, frame: Pfn) -> Result<(), PagingError> {
        let (table, index) = self.direct_entry(frame)?;
        let entry = self.read(table, index) | pte::RW;
        // SAFETY: the direct map has write access to every frame that is not a table.
        unsafe { self.write(table, index, entry) }
    }

    /// Makes the hypervisor validate a table of `level` (1 to 4) and all below it, and keep them validated.
    ///
    /// # Errors
    /// As for [`Mmu::write`].
    ///
    /// # Safety
    /// The tables are read-only when the queue is flushed, and stay so until they are unpinned.
    pub unsafe fn pin(&mut self, table: Pfn, level: u8) -> Result<(), PagingError> {
        let cmd = MMUEXT_PIN_L1_TABLE + u32::from(level.clamp(1, 4)) - 1;
        // SAFETY: the caller's promise.
        unsafe { self.extended(cmd, table) }
    }

    /// Undoes [`Mmu::pin`].
    ///
    /// # Errors
    /// As for [`Mmu::write`].
    ///
    /// # Safety
    /// No vCPU uses the table.
    pub unsafe fn unpin(&mut self, table: Pfn) -> Result<(), PagingError> {
        // SAFETY: the caller's promise.
        unsafe { self.extended(MMUEXT_UNPIN_TABLE, table) }
    }

    /// Makes the vCPU use the tables under `root`, after all queued changes.
    ///
    /// # Errors
    /// The first update that the hypervisor refused.
    ///
    /// # Safety
    /// Memory that running code uses is mapped there as in the current space.
    pub unsafe fn switch(&mut self, root: Pfn) -> Result<(), PagingError> {
        // SAFETY: the caller's promise.
        unsafe { self.extended(MMUEXT_NEW_BASEPTR, root) }?;
        Ok(self.queue.flush_for(FlushReason::Order)?)
    }

    /// The machine frame of one of the domain's own.
    ///
    /// # Errors
    /// When the domain has no such frame.
    pub fn mfn(&self, frame: Pfn) -> Result<Mfn, PagingError> {
        self.memory.mfn(frame).ok_or(PagingError::NoSuchFrame(frame))
    }

    unsafe fn extended(&mut self, cmd: u32, frame: Pfn) -> Result<(), PagingError> {
        let op = MmuextOp { cmd, arg1: self.mfn(frame)?.0, ..MmuextOp::default() };
        // SAFETY: the caller's promise.
        Ok(unsafe { self.queue.extended(op) }?)
    }

    unsafe fn write_as(
        &mut self,
        table: Pfn,
        index: usize,
        val: u64,
        command: u64,
    ) -> Result<(), PagingError> {
        if self.is_loose(table) {
            self.memory.store(table, index, val);
            return Ok(());
        }
        let ptr = self.maddr(table, index)? | command;
        // SAFETY: the caller's promise.
        Ok(unsafe { self.queue.update(MmuUpdate { ptr, val }) }?)
    }

    /// Makes room for `tables` frames to become loose tables and be linked without a flush in between.
    pub(super) fn reserve(&mut self, tables: usize) -> Result<(), PagingError> {
        // Each needs a first update and one that links it.
        if self.loose_tables().len() + tables > LOOSE || self.queue.room() < 2 * tables {
            self.queue.flush_for(FlushReason::Overflow)?;
        }
        Ok(())
    }

    /// Makes an empty table of a frame; it is loose until the next flush, and must be linked before that.
    /// Only after [`Mmu::reserve`].
    pub(super) fn adopt(&mut self, frame: Pfn) -> Result<(), PagingError> {
        self.memory.zero(frame);
        // SAFETY: the frame is the caller's (contract of `FrameSource`); this module stores to it only while it is
        // loose.
        unsafe { self.make_read_only(frame) }?;
        let count = self.loose_tables().len();
        self.loose[count] = frame;
        self.loose_len = count + 1;
        self.loose_epoch = self.queue.epoch();
        Ok(())
    }

    fn loose_tables(&self) -> &[Pfn] {
        if self.loose_epoch == self.queue.epoch() { &self.loose[..self.loose_len] } else { &[] }
    }

    /// Searches from the newest: a table is filled right after it was made.
    fn is_loose(&self, table: Pfn) -> bool {
        self.loose_tables().iter().rev().any(|loose| *loose == table)
    }

    /// The machine address of an entry.
    fn maddr(&self, table: Pfn, index: usize) -> Result<u64, PagingError> {
        Ok(self.mfn(table)?.maddr() + (index % PT_ENTRIES) as u64 * 8)
    }

    /// The L1 entry that maps a frame in the direct map.
    fn direct_entry(&self, frame: Pfn) -> Result<(Pfn, usize), PagingError> {
        let va = self.memory.va(frame);
        self.leaf(self.kernel_root, va).ok_or(PagingError::NotMapped(va))
    }

    /// The L1 table and index for an address, if there is a table for it.
    pub(super) fn leaf(&self, root: Pfn, va: u64) -> Option<(Pfn, usize)> {
        let mut table = root;
        for level in [4, 3, 2] {
            table = self.next(self.read(table, addr::table_index(va, level)))?;
        }
        Some((table, addr::table_index(va, 1)))
    }

    /// The table that an entry refers to; `None` for a large page.
    pub(super) fn next(&self, entry: u64) -> Option<Pfn> {
        let is_table = pte::is_present(entry) && entry & pte::PSE == 0;
        if is_table { self.memory.pfn(Mfn(pte::mfn(entry))) } else { None }
    }
}
