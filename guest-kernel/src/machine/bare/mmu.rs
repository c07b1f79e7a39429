//! Page tables that are plain memory.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::contents::{Contents, direct};
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::layout::direct_map;
use crate::memory::paging::{Mmu, Stale};

/// The frame of the L4 in use, as we last set it.
static ROOT: AtomicU64 = AtomicU64::new(0);

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The processor's page tables. The kernel may write every table directly, so several of the primitives do nothing.
pub struct BareMmu(());

impl BareMmu {
    /// The primitives of a machine whose L4 table is `root`.
    pub fn new(root: Frame) -> Self {
        ROOT.store(root.0, Ordering::Relaxed);
        Self(())
    }
}

fn slot(table: Frame, index: usize) -> *mut u64 {
    (direct_map(table) as *mut u64).wrapping_add(index)
}

impl Contents for BareMmu {
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

impl Mmu for BareMmu {
    const KERNEL_WITH_PROGRAMS: bool = true;
    fn entry(&self, frame: Frame, bits: u64) -> u64 {
        frame.0 << 12 | bits
    }

    fn frame(&self, entry: u64) -> Frame {
        Frame((entry & ADDRESS) >> 12)
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        // SAFETY: tables are frames of memory, all of which the direct map maps; `index` is below 512.
        unsafe { slot(table, index).read_volatile() }
    }

    fn clear(&mut self, table: Frame) {
        // SAFETY: `paging` has just allocated the frame.
        unsafe { (direct_map(table) as *mut u8).write_bytes(0, PAGE_SIZE as usize) };
    }

    fn fill(&mut self, table: Frame, index: usize, entry: u64) {
        self.write(table, index, entry);
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        // SAFETY: as in `read`; the callers of `paging` answer for what the entry maps.
        unsafe { slot(table, index).write_volatile(entry) };
    }

    fn adopt(&mut self, _: Frame) {}
    fn release(&mut self, _: Frame) {}
    fn pin(&mut self, _: Frame) {}
    fn unpin(&mut self, _: Frame) {}

    fn flush(&mut self, stale: Stale) {
        match stale {
            Stale::Nothing => {}
            // SAFETY: drops a cached translation.
            Stale::Page(va) => unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) },
            Stale::Everything => self.switch(Frame(ROOT.load(Ordering::Relaxed))),
        }
    }

    fn switch(&mut self, root: Frame) {
        ROOT.store(root.0, Ordering::Relaxed);
        // SAFETY: every address space shares the kernel's part.
        unsafe { asm!("mov cr3, {}", in(reg) root.0 << 12, options(nostack, preserves_flags)) };
    }
}

/// The frame of the L4 in use, read from CR3.
pub fn read_root() -> Frame {
    let cr3: u64;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    Frame((cr3 & ADDRESS) >> 12)
}

/// The frame of the L4 in use, as we last set it.
pub fn expected_root() -> Frame {
    Frame(ROOT.load(Ordering::Relaxed))
}
