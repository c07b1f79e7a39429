//! Walks the guest's tables, and adds missing entries to the shadow.
//!
//! What may not be done here: deciding whether the guest must see a fault; the lookup's result says that.

use paravane_abi::pte;

use super::entry;
use super::pool::Source;
use super::slots::slot;
use super::state::Shadow;
use super::view::View;
use crate::machine::memory::{MachineMemory, PAGE_SHIFT};
use crate::mmu::guest::{GuestTables, Lookup, LookupError};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Flush, VcpuSpace};
use crate::x86::walk::Access;

/// The result of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The shadow now allows the access.
    Filled,
    /// The shadow already allowed it: the CPU had a stale translation, and the engine was asked to flush it.
    Spurious,
}

impl Shadow {
    /// Walks the guest's tables for `access`, setting accessed and dirty bits if it is allowed.
    ///
    /// Nothing in the shadow derives more from a clear bit than from a set one: no entry of it goes stale by this.
    pub fn lookup(&self, mem: &MachineMemory, va: u64, access: Access) -> Result<Lookup, LookupError> {
        GuestTables { root: self.space << PAGE_SHIFT, controls: self.controls }.lookup(mem, va, access)
    }

    /// Gives the shadow in use the entries that `found` at `va` needs.
    ///
    /// `found` must be a lookup of memory ([`Lookup::maddr`]), with the rights of the view in use. A store to
    /// a table in use must be emulated instead ([`Shadow::store`]): its leaf stays read-only here.
    pub fn fill(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        va: u64,
        found: &Lookup,
    ) -> Fill {
        let Some(root) = self.roots.current() else { return Fill::Spurious };
        let view = self.pool.table(root).view;
        if let Some(changes) = self.try_fill(mem, log, root, va, found) {
            return changes.conclude(space, va);
        }
        self.drop_all(mem, log);
        self.enter_root(mem, log, space, view);
        let Some(root) = self.roots.current() else { return Fill::Spurious };
        // An empty pool has enough frames for one page (`Shadow::MIN_FRAMES`).
        self.try_fill(mem, log, root, va, found).map_or(Fill::Spurious, |changes| changes.conclude(space, va))
    }

    /// [`Shadow::fill`]; `None` when the pool ran out of frames half-way.
    fn try_fill(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        root: u32,
        va: u64,
        found: &Lookup,
    ) -> Option<Changes> {
        let (view, leaf_level) = (self.pool.table(root).view, found.translation.level);
        let mut changes = Changes::default();
        let mut table = root;
        for level in [4u8, 3, 2] {
            let slot = slot(va, level);
            let source = source_below(found, level);
            let old = self.load(mem, table, slot);
            let child = self.child_for(mem, log, old, source, level - 1, view)?;
            let frame = self.pool.mfn(child);
            let guest = found.entry(level);
            let new = match level {
                l if l > leaf_level => entry::table(guest, frame, view, self.controls),
                l if l == leaf_level => entry::split(guest, frame, view, self.controls),
                _ => entry::split_table(frame),
            };
            changes.note(old, new);
            self.set_entry(mem, log, table, slot, new);
            table = child;
        }
        let frame = found.maddr()?.mfn();
        let protected = mem.mfn_to_pfn(frame).is_none_or(|pfn| self.is_protected(pfn));
        let new = match leaf_level {
            1 => entry::leaf(found.entry(1), frame, protected, view, self.controls),
            _ => entry::split_leaf(frame, protected),
        };
        changes.note(self.load(mem, table, slot(va, 1)), new);
        self.set_entry(mem, log, table, slot(va, 1), new);
        Some(changes)
    }

    /// The table of `level` that shadows `source`: the one that `old` refers to, one that exists, or a new one.
    pub(super) fn child_for(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        old: u64,
        source: Source,
        level: u8,
        view: View,
    ) -> Option<u32> {
        let fits = |&child: &u32| self.pool.table(child).source == source;
        let child = self.child(old).filter(fits);
        match source {
            Source::Guest(pfn) => {
                self.pool.reset_stores(pfn);
                let known = child.or_else(|| self.pool.find(pfn, level, view));
                known.or_else(|| self.derive(mem, log, pfn, level, view))
            }
            Source::Split(_) | Source::Overlay => child.or_else(|| self.pool.take(source, level, view)),
        }
    }
}

/// What the table below `level` on the way to `found` shadows.
fn source_below(found: &Lookup, level: u8) -> Source {
    if level > found.translation.level {
        return Source::Guest(pte::mfn(found.entry(level)));
    }
    let pages = 1u64 << (9 * u32::from(level).saturating_sub(1));
    Source::Split((found.physical() >> 12) & !(pages - 1))
}

/// Whether entries changed, and whether some that were present did.
#[derive(Default)]
pub(super) struct Changes {
    any: bool,
    present: bool,
}

impl Changes {
    pub(super) fn note(&mut self, old: u64, new: u64) {
        self.any |= old != new;
        self.present |= old != new && old & pte::PRESENT != 0;
    }
    pub(super) fn conclude(self, space: &mut VcpuSpace, va: u64) -> Fill {
        if self.present || !self.any {
            space.flush(Flush::Page(va));
        }
        if self.any { Fill::Filled } else { Fill::Spurious }
    }
}
