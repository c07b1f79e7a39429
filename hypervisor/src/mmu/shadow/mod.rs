//! Shadow page tables: what a bare guest's own tables mean, in machine addresses and at CPL 3.
//!
//! The CPU walks shadow tables, never the guest's. A guest table that a shadow derives from is mapped
//! read-only, so that every store to it traps and the shadow is brought up to date in the same step: the two
//! never disagree, and INVLPG and MOV to CR3 need no resynchronisation. In four rules:
//!
//! 1. A shadow entry exists only where the guest's entry is present and has its accessed bit; a shadow leaf
//!    is writable only where the guest's has its dirty bit and the frame is not a table in use. Whatever is
//!    missing is filled by the page fault that misses it ([`Shadow::fill`]), which sets those bits.
//! 2. A guest frame is a *table in use* from the moment that a shadow table derives from it until the last
//!    one goes: when its last parent entry goes, when its root leaves the cache of address spaces, or when
//!    it is written in a way that tables are not ([`Shadow::store`]).
//! 3. Kernel and user are two views of one address space, with a root each: at virtual CPL 0 everything that
//!    the guest maps is accessible at CPL 3, at virtual CPL 3 only its user pages are.
//! 4. The shadow is a cache. When its frames run out all of it is dropped and filled again.
//!
//! L4 slots 256..=271 of every root are the hypervisor's; a guest cannot use linear addresses there.
//!
//! What may not be done here: changing a shadow entry other than through `Shadow::set_entry`, which keeps
//! the reverse maps and tells the engine; deciding what a fault means to the guest.
//!
//! The idea is that of any shadowing hypervisor; the terms follow Intel SDM vol. 3, 4.5 to 4.10.

mod entry;
mod fill;
mod pool;
mod roots;
mod store;
mod tables;
#[cfg(test)]
mod tests;

use std::ops::Range;

use paravane_abi::{addr, pte};

use crate::host::zeroed::NoMemory;
use crate::machine::memory::{MachineMemory, Maddr, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;

pub use entry::Controls;
pub use fill::{Fill, Lookup, LookupError};
use pool::Pool;
use roots::Roots;

/// Which of an address space's two shadows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// What virtual CPL 0 sees: all that is mapped.
    #[default]
    Kernel,
    /// What virtual CPL 3 sees: user pages only.
    User,
}

const RESERVED_FIRST: u64 = addr::RESERVED_L4_FIRST as u64;
const RESERVED_COUNT: usize = addr::RESERVED_L4_LAST - addr::RESERVED_L4_FIRST + 1;

fn is_reserved_slot(slot: u64) -> bool {
    (RESERVED_FIRST..RESERVED_FIRST + RESERVED_COUNT as u64).contains(&slot)
}

/// The entry of a table of `level` that translates `va`.
fn slot(va: u64, level: u8) -> u64 {
    addr::table_index(va, level.into()) as u64
}

/// How many shadow frames serve a guest of `guest_frames` well: enough for two views of all its memory, and
/// some address spaces besides. A guest that needs more still runs, with refills.
pub const fn frames_for(guest_frames: u64) -> u64 {
    512 + guest_frames / 64
}

/// The shadow of everything that one bare guest maps.
#[derive(Debug)]
pub struct Shadow {
    pool: Pool,
    roots: Roots,
    controls: Controls,
    /// The guest's L4 frame in use.
    space: u64,
    reserved: [u64; RESERVED_COUNT],
}

/// The guest's CR3 names no frame of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CR3 {0:#x} is not the address of a frame of the guest's memory; load one that is")]
pub struct BadRoot(pub u64);

/// No shadow can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoShadow {
    /// It was given too few frames to work in.
    #[error("{0} frames are too few for shadow page tables; give them at least {min}", min = Shadow::MIN_FRAMES)]
    TooFewFrames(u64),
    /// The host has no memory for its book.
    #[error(transparent)]
    Memory(#[from] NoMemory),
}

impl Shadow {
    /// The least number of frames that a shadow can work with: one way from a root down to a page, and room
    /// for a page-crossing access besides.
    pub const MIN_FRAMES: u64 = 16;

    /// An empty shadow in the hypervisor's frames `frames`, all zero, for a guest of `guest_frames`.
    ///
    /// `reserved` are the engine's entries for the hypervisor's L4 slots. Nothing is built yet: the first
    /// [`Shadow::activate`] does.
    pub fn new(
        frames: Range<u64>,
        guest_frames: u64,
        reserved: [u64; RESERVED_COUNT],
    ) -> Result<Self, NoShadow> {
        let count = frames.end.saturating_sub(frames.start);
        if count < Self::MIN_FRAMES {
            return Err(NoShadow::TooFewFrames(count));
        }
        let pool = Pool::new(frames, guest_frames)?;
        Ok(Self { pool, roots: Roots::default(), controls: Controls::default(), space: 0, reserved })
    }

    /// Makes the address space of `cr3`, seen by `view`, the one that the CPU walks.
    ///
    /// `controls` are the guest's CR0.WP and EFER.NXE: a change of them invalidates all that was derived.
    pub fn activate(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        cr3: u64,
        view: View,
        controls: Controls,
    ) -> Result<(), BadRoot> {
        let pfn = pte::mfn(cr3);
        if mem.pfn_to_mfn(pfn).is_none() {
            return Err(BadRoot(cr3));
        }
        if self.controls != controls {
            self.drop_all(mem, log);
            self.controls = controls;
        }
        self.space = pfn;
        self.enter_root(mem, log, space, view);
        Ok(())
    }

    /// Forgets every shadow table, without taking them apart entry by entry; the next [`Shadow::activate`]
    /// starts anew.
    fn drop_all(&mut self, mem: &MachineMemory, log: &mut TableLog) {
        for frame in self.pool.touched_frames() {
            // Ours, so that it is there.
            let _ = mem.zero_frame(Mfn(frame));
        }
        self.pool.reset();
        self.roots = Roots::default();
        log.invalidate_all();
    }

    /// How many shadow tables are in use.
    pub fn tables(&self) -> usize {
        self.pool.in_use()
    }

    /// Whether the guest frame `pfn` is a table in use, and so write-protected.
    pub fn is_table(&self, pfn: u64) -> bool {
        self.pool.is_table(pfn)
    }

    fn slot_addr(&self, table: u32, slot: u64) -> Maddr {
        Maddr(self.pool.mfn(table).maddr().0 | (slot & 511) << 3)
    }

    /// The machine frame of the root in use, if one is.
    pub fn root(&self) -> Option<Mfn> {
        self.roots.current().map(|table| self.pool.mfn(table))
    }
}
