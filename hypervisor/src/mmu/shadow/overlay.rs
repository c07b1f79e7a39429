//! Pages of ours among the guest's: code that runs in a kernel's place, and what it shares with the monitor.
//!
//! They are present in the kernel's view only, at linear addresses where the guest's tables map nothing, and only for
//! the CPU: what the hypervisor accesses in the guest's stead goes by the guest's tables alone. Where the guest does
//! map such a page, its own page wins, and the overlay has to move ([`Shadow::overlay_collides`]).
//!
//! A shadow entry of the overlay has the bit [`OURS`]. Where the guest has no table on the way, a table of ours is in
//! its place ([`Source::Overlay`]); otherwise the entry lies in a table that derives from the guest's, and is dropped
//! and filled again as any other. A guest that uses one table at two linear addresses sees an overlay page at both.
//!
//! Code here may not decide where the overlay lies, nor what is in it.

use paravane_abi::pte;

use super::entry;
use super::fill::{Changes, Fill};
use super::pool::Source;
use super::slots::slot;
use super::state::Shadow;
use super::view::View;
use crate::machine::memory::{MachineMemory, Maddr, Mfn, PAGE_SHIFT};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::walk::{Access, PseudoPhysicalTables, WalkFault, walk};

/// In a shadow entry: it is of the overlay, and not derived from a guest's. The processor ignores the bit.
pub(super) const OURS: u64 = pte::AVAIL0;

/// A page of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayPage {
    /// Linear address of its first byte.
    pub va: u64,
    /// The frame that is there.
    pub mfn: Mfn,
    /// Whether the guest may store to it. The process engine allows that only for frames that the layout says are
    /// shared, and for the guest's own.
    pub writable: bool,
    /// Whether the guest may execute it.
    pub executable: bool,
}

/// What an access to a page of the overlay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayFill {
    /// The shadow now allows the access.
    Filled,
    /// It already did: the CPU had a stale translation, and the engine was asked to flush it.
    Spurious,
    /// The page is none of the overlay's, or does not allow the access: the fault is the guest's.
    NotOurs,
    /// The guest maps this page itself: the overlay must move, and then the access is to be tried again.
    Collides,
}

/// The pages, and what is known about the guest's use of their addresses.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// In order of addresses.
    pages: Vec<OverlayPage>,
    /// For each level, which slots of a table lead to some page: a bit each.
    slots: [[u64; 8]; 4],
    /// The guest may have mapped one of the pages since the last check.
    suspect: bool,
    /// An address where the guest's tables leave no room for the rights that a page needs.
    unusable: bool,
}

impl Overlay {
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
    /// Notes that the shadow of another address space is in use.
    pub(super) fn suspect(&mut self) {
        self.suspect = !self.pages.is_empty();
    }
    /// Notes that an entry of the kernel's view changed to `new`.
    pub(super) fn note(&mut self, level: u8, slot: u64, new: u64) {
        let leads = usize::from(level).checked_sub(1).and_then(|l| self.slots.get(l)).is_some_and(|bits| {
            bits.get((slot >> 6) as usize).is_some_and(|word| word >> (slot & 63) & 1 != 0)
        });
        self.suspect |= leads && new & OURS == 0;
    }
    fn page(&self, va: u64) -> Option<OverlayPage> {
        let number = va >> PAGE_SHIFT;
        let place = self.pages.binary_search_by_key(&number, |page| page.va >> PAGE_SHIFT).ok()?;
        self.pages.get(place).copied()
    }
    fn replace(&mut self, page: OverlayPage) {
        match self.pages.binary_search_by_key(&page.va, |page| page.va) {
            Ok(place) => {
                if let Some(old) = self.pages.get_mut(place) {
                    *old = page;
                }
            }
            Err(place) => {
                self.pages.insert(place, page);
                self.lead_to(page.va);
                self.suspect = true;
            }
        }
    }

    /// Notes which slots lead to a page.
    fn lead_to(&mut self, va: u64) {
        for (bits, level) in self.slots.iter_mut().zip(1u8..) {
            let slot = slot(va, level);
            if let Some(word) = bits.get_mut((slot >> 6) as usize) {
                *word |= 1 << (slot & 63);
            }
        }
    }

    fn set(&mut self, pages: &[OverlayPage]) {
        self.pages.clear();
        self.pages.extend_from_slice(pages);
        self.pages.sort_unstable_by_key(|page| page.va);
        self.slots = [[0; 8]; 4];
        for page in pages {
            self.lead_to(page.va);
        }
        self.unusable = false;
        self.suspect = !pages.is_empty();
    }
}

/// The shadow entry of a page of the overlay.
fn leaf(page: OverlayPage) -> u64 {
    let no_execute = if page.executable { 0 } else { pte::NX };
    let writable = if page.writable { pte::RW } else { 0 };
    entry::BASE | OURS | page.mfn.0 << PAGE_SHIFT | writable | no_execute
}

impl Shadow {
    /// Makes `pages` the overlay, in place of what it was. Pages that stay as they are, stay mapped.
    pub fn set_overlay(&mut self, mem: &MachineMemory, log: &mut TableLog, pages: &[OverlayPage]) {
        let old = std::mem::take(&mut self.overlay.pages);
        for page in old.iter().filter(|page| !pages.contains(page)) {
            self.unmap_overlay(mem, log, page.va);
        }
        self.overlay.pages = old;
        self.overlay.set(pages);
    }

    /// Has the overlay show `page` at its address, in place of what it has there, if anything.
    pub fn replace_overlay_page(&mut self, mem: &MachineMemory, log: &mut TableLog, page: OverlayPage) {
        self.unmap_overlay(mem, log, page.va);
        self.overlay.replace(page);
    }

    /// The overlay, in order of addresses.
    pub fn overlay(&self) -> &[OverlayPage] {
        &self.overlay.pages
    }

    /// Whether the guest maps a page of the overlay itself in the address space in use, or leaves no room for one: the
    /// overlay must then move before the guest is entered.
    ///
    /// To be asked before each entry; it costs nothing while nothing changed that could matter. What the guest maps
    /// but has not touched yet may go unnoticed until [`Shadow::fill_overlay`] finds it: until then nothing is mapped
    /// there.
    pub fn overlay_collides(&mut self, mem: &MachineMemory) -> bool {
        if !std::mem::take(&mut self.overlay.suspect) {
            return self.overlay.unusable;
        }
        let pages = &self.overlay.pages;
        let (mut at, mut collides) = (0, false);
        while let Some(page) = pages.get(at).filter(|_| !collides) {
            match walk(mem, &PseudoPhysicalTables, self.space << PAGE_SHIFT, page.va) {
                Err(WalkFault::NotPresent { level } | WalkFault::NoTable { level }) => {
                    // Nothing that this entry spans is mapped.
                    let span = 1u64 << (PAGE_SHIFT + 9 * (u32::from(level).clamp(1, 4) - 1));
                    let end = (page.va & !(span - 1)).saturating_add(span);
                    let rest = pages.get(at..).unwrap_or_default();
                    at += rest.partition_point(|page| page.va < end).max(1);
                }
                _ => collides = true,
            }
        }
        self.overlay.suspect = collides;
        collides || self.overlay.unusable
    }

    /// Handles a fault of the CPU at `va` in the kernel's view, if a page of the overlay is there.
    pub fn fill_overlay(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        va: u64,
        access: Access,
    ) -> OverlayFill {
        let Some(page) = self.overlay.page(va) else { return OverlayFill::NotOurs };
        let current = self.roots.current().map(|root| self.pool.table(root).view);
        if current != Some(View::Kernel) {
            return OverlayFill::NotOurs;
        }
        match walk(mem, &PseudoPhysicalTables, self.space << PAGE_SHIFT, va) {
            Err(WalkFault::NotPresent { .. } | WalkFault::NoTable { .. }) => {}
            _ => {
                self.overlay.suspect = true;
                return OverlayFill::Collides;
            }
        }
        if access.write && !page.writable || access.fetch && !page.executable {
            return OverlayFill::NotOurs;
        }
        // An empty pool has enough frames for one page (`Shadow::MIN_FRAMES`).
        let filled = self.try_fill_overlay(mem, log, page).or_else(|| {
            self.drop_all(mem, log);
            self.enter_root(mem, log, space, View::Kernel);
            self.try_fill_overlay(mem, log, page)
        });
        match filled.map(|changes| changes.conclude(space, va)) {
            _ if self.overlay.unusable => OverlayFill::Collides,
            Some(Fill::Filled) => OverlayFill::Filled,
            Some(Fill::Spurious) | None => OverlayFill::Spurious,
        }
    }

    /// Gives the root in use an entry for `page`; `None` when the pool ran out of frames half-way.
    fn try_fill_overlay(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        page: OverlayPage,
    ) -> Option<Changes> {
        let mut table = self.roots.current()?;
        let mut changes = Changes::default();
        for level in [4u8, 3, 2] {
            let slot = slot(page.va, level);
            let old = self.load(mem, table, slot);
            let guest = self.guest_table_below(mem, table, slot);
            let source = guest.map_or(Source::Overlay, |entry| Source::Guest(pte::mfn(entry)));
            let child = self.child_for(mem, log, old, source, level - 1, View::Kernel)?;
            let frame = self.pool.mfn(child);
            let new = match guest {
                Some(guest) => entry::table(guest, frame, View::Kernel, self.controls),
                None => entry::split_table(frame) | OURS,
            };
            self.overlay.unusable |=
                page.writable && new & pte::RW == 0 || page.executable && new & pte::NX != 0;
            changes.note(old, new);
            self.set_entry(mem, log, table, slot, new);
            table = child;
        }
        let (slot, new) = (slot(page.va, 1), leaf(page));
        changes.note(self.load(mem, table, slot), new);
        self.set_entry(mem, log, table, slot, new);
        Some(changes)
    }

    /// The guest's entry in `slot` of the table that `table` shadows, if it leads on: then a table that derives from
    /// the guest's must follow, so that its stores there are seen.
    fn guest_table_below(&self, mem: &MachineMemory, table: u32, slot: u64) -> Option<u64> {
        let Source::Guest(pfn) = self.pool.table(table).source else { return None };
        let at = Maddr(mem.pfn_to_mfn(pfn)?.maddr().0 | slot << 3);
        let entry = mem.load_u64(at).ok().filter(|entry| entry & pte::PRESENT != 0)?;
        mem.pfn_to_mfn(pte::mfn(entry))?;
        // As a CPU does that walks on. The entry was just read from there, so that it is there to be written.
        let _ = mem.fetch_or_u64(at, pte::ACCESSED);
        Some(entry | pte::ACCESSED)
    }

    /// Removes the entry of the overlay at `va` from every address space that is kept.
    fn unmap_overlay(&mut self, mem: &MachineMemory, log: &mut TableLog, va: u64) {
        for root in self.roots.kept().into_iter().flatten() {
            if self.pool.table(root).view != View::Kernel {
                continue;
            }
            let on_the_way = [4u8, 3, 2]
                .into_iter()
                .try_fold(root, |table, level| self.child(self.load(mem, table, slot(va, level))));
            let Some(table) = on_the_way else { continue };
            if self.load(mem, table, slot(va, 1)) & OURS != 0 {
                self.set_entry(mem, log, table, slot(va, 1), 0);
                log.flush_all();
            }
        }
    }
}
