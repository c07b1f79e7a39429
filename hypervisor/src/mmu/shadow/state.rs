//! The shadow of one bare guest: made, switched to an address space, dropped.

use std::ops::Range;

use paravane_abi::pte;

use super::code::Code;
use super::overlay::Overlay;
use super::pool::Pool;
use super::roots::Roots;
use super::slots::RESERVED_COUNT;
use super::view::View;
use crate::host::zeroed::NoMemory;
use crate::machine::memory::{MachineMemory, Maddr, Mfn};
use crate::mmu::guest::Controls;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;

/// The recommended number of shadow frames for a guest of `guest_frames`: enough for two views of all its memory, and
/// some more address spaces. A guest that needs more still runs, with refills.
pub const fn frames_for(guest_frames: u64) -> u64 {
    512 + guest_frames / 64
}

/// The shadow of everything that one bare guest maps.
#[derive(Debug)]
pub struct Shadow {
    pub(super) pool: Pool,
    pub(super) roots: Roots,
    pub(super) controls: Controls,
    /// The guest's L4 frame in use.
    pub(super) space: u64,
    pub(super) reserved: [u64; RESERVED_COUNT],
    pub(super) code: Code,
    pub(super) overlay: Overlay,
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
    /// The host has no memory for the shadow's bookkeeping.
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
        Ok(Self {
            pool,
            roots: Roots::default(),
            controls: Controls::default(),
            space: 0,
            reserved,
            code: Code::default(),
            overlay: Overlay::default(),
        })
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
        if self.space != pfn {
            self.overlay.suspect();
        }
        self.space = pfn;
        self.enter_root(mem, log, space, view);
        Ok(())
    }

    /// Forgets every shadow table, without taking them apart entry by entry; the next [`Shadow::activate`]
    /// starts anew.
    pub(super) fn drop_all(&mut self, mem: &MachineMemory, log: &mut TableLog) {
        for frame in self.pool.touched_frames() {
            // This frame is one of the shadow's own, so it exists.
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

    pub(super) fn slot_addr(&self, table: u32, slot: u64) -> Maddr {
        Maddr(self.pool.mfn(table).maddr().0 | (slot & 511) << 3)
    }

    /// The machine frame of the root in use, if one is.
    pub fn root(&self) -> Option<Mfn> {
        self.roots.current().map(|table| self.pool.mfn(table))
    }
}
