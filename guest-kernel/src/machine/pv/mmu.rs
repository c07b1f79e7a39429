//! Page tables that the hypervisor checks: every change of a live table waits in the SDK's queue until a flush makes
//! all of them in one call.

use paravane_guest::abi::mmu::MmuextOp;
use paravane_guest::abi::pte;
use paravane_guest::memory::{Mfn, Pfn};
use paravane_guest::paging::{self, PagingError};
use paravane_guest::queue::FlushReason;

use crate::memory::contents::{Contents, direct};
use crate::memory::frames::Frame;
use crate::memory::paging::{MAX_COUNTERS, Mmu, Stale};

/// The SDK's page-table primitives, for pseudo-physical frames.
///
/// A refusal by the hypervisor is a bug in this kernel, and ends it.
pub struct PvMmu(paging::Mmu<'static>);

impl PvMmu {
    /// Wraps the SDK's primitives.
    pub const fn new(mmu: paging::Mmu<'static>) -> Self {
        Self(mmu)
    }

    /// Queues an extended operation that concerns user mode only.
    pub fn extended(&mut self, op: MmuextOp) {
        // SAFETY: the kernel's own tables stay as they are.
        done(unsafe { self.0.queue().extended(op) }.map_err(PagingError::from));
    }

    /// The domain's memory.
    pub fn memory(&self) -> paravane_guest::memory::Memory {
        self.0.memory()
    }
}

const fn pfn(frame: Frame) -> Pfn {
    Pfn(frame.0)
}

#[track_caller]
fn done<T>(outcome: Result<T, PagingError>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

impl Contents for PvMmu {
    fn copy_out(&self, frame: Frame, offset: usize, into: &mut [u8]) {
        direct::copy_out(frame, offset, into);
    }

    fn copy_in(&mut self, frame: Frame, offset: usize, from: &[u8]) {
        direct::copy_in(frame, offset, from);
    }

    fn copy_frame(&mut self, from: Frame, to: Frame) {
        direct::copy_frame(from, to);
    }

    fn zero(&mut self, frame: Frame) {
        direct::zero(frame);
    }
}

impl Mmu for PvMmu {
    const KERNEL_WITH_PROGRAMS: bool = false;
    /// How often the queue was flushed, by reason.
    const COUNTERS: &'static [&'static str] = &["flush-explicit", "flush-full", "flush-order"];

    fn counters(&mut self) -> [u64; MAX_COUNTERS] {
        let flushes = &self.0.queue().stats().flushes;
        [FlushReason::Explicit, FlushReason::Overflow, FlushReason::Order]
            .map(|reason| flushes[reason as usize])
    }

    fn entry(&self, frame: Frame, bits: u64) -> u64 {
        done(self.0.mfn(pfn(frame))).maddr() | bits
    }

    fn frame(&self, entry: u64) -> Frame {
        match self.0.memory().pfn(Mfn(pte::mfn(entry))) {
            Some(Pfn(number)) => Frame(number),
            None => panic!("the entry {entry:#x} leads out of this domain's memory"),
        }
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        self.0.read(pfn(table), index)
    }

    fn clear(&mut self, table: Frame) {
        // SAFETY: `paging` has just allocated the frame.
        unsafe { self.0.clear(pfn(table)) };
    }

    fn fill(&mut self, table: Frame, index: usize, entry: u64) {
        // SAFETY: `paging` fills a table only before it is adopted.
        unsafe { self.0.fill(pfn(table), index, entry) };
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        // SAFETY: the table is one of `paging`; its callers answer for what it maps.
        done(unsafe { self.0.write(pfn(table), index, entry) });
    }

    fn adopt(&mut self, table: Frame) {
        // SAFETY: `paging` does not fill an adopted table.
        done(unsafe { self.0.make_read_only(pfn(table)) });
    }

    fn release(&mut self, table: Frame) {
        // SAFETY: `paging` releases tables only after their root was unpinned.
        done(unsafe { self.0.make_writable(pfn(table)) });
    }

    fn pin(&mut self, root: Frame) {
        // SAFETY: `paging` has adopted all tables below the root.
        done(unsafe { self.0.pin(pfn(root), 4) });
    }

    fn unpin(&mut self, root: Frame) {
        // SAFETY: `paging` unpins only address spaces that are not in use.
        done(unsafe { self.0.unpin(pfn(root)) });
    }

    fn flush(&mut self, stale: Stale) {
        match stale {
            Stale::Nothing => {}
            Stale::Page(va) => self.0.queue().invalidate(va),
            Stale::Everything => self.0.queue().invalidate_all(),
        }
        done(self.0.flush());
    }

    fn switch(&mut self, root: Frame) {
        // SAFETY: every address space shares the kernel's part.
        done(unsafe { self.0.switch(pfn(root)) });
    }
}
