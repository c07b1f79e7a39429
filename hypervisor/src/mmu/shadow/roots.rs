//! The cache of address spaces: which L4 shadows are kept, and which one the CPU walks.
//!
//! MOV to CR3 between address spaces that are kept costs the trap alone. The least recently used one goes
//! when the cache is full.

use super::slots::RESERVED_FIRST;
use super::state::Shadow;
use super::view::View;
use crate::machine::memory::MachineMemory;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;

/// How many L4 shadows are kept; an address space with user programs takes two.
const KEPT: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Root {
    table: u32,
    last_used: u64,
}

/// The L4 shadows that are kept.
#[derive(Debug, Default)]
pub(super) struct Roots {
    kept: [Option<Root>; KEPT],
    current: Option<u32>,
    /// Counts uses, to tell which is the oldest.
    uses: u64,
}

impl Roots {
    /// The L4 shadows that are kept.
    pub(super) fn kept(&self) -> [Option<u32>; KEPT] {
        self.kept.map(|root| root.map(|root| root.table))
    }
    pub(super) fn current(&self) -> Option<u32> {
        self.current
    }
    fn touch(&mut self, table: u32) {
        self.uses += 1;
        let uses = self.uses;
        if let Some(root) = self.kept.iter_mut().flatten().find(|root| root.table == table) {
            root.last_used = uses;
        }
        self.current = Some(table);
    }
    /// Makes room for one more; returns the table that must go for it.
    fn make_room(&mut self) -> Option<u32> {
        if self.kept.iter().any(Option::is_none) {
            return None;
        }
        let oldest = self.kept.iter_mut().min_by_key(|root| root.map_or(0, |root| root.last_used))?;
        oldest.take().map(|root| root.table)
    }
    fn keep(&mut self, table: u32) {
        if let Some(place) = self.kept.iter_mut().find(|place| place.is_none()) {
            *place = Some(Root { table, last_used: self.uses });
        }
    }
    pub(super) fn forget(&mut self, table: u32) {
        for place in &mut self.kept {
            if place.is_some_and(|root| root.table == table) {
                *place = None;
            }
        }
    }
}

impl Shadow {
    /// Makes the L4 shadow of the address space in use for `view` the CPU's, building it if it is not kept.
    pub(super) fn enter_root(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        view: View,
    ) {
        let kept = self.pool.find(self.space, 4, view);
        // A pool that was just emptied has a frame (`Shadow::MIN_FRAMES`), so that this does not fail.
        let Some(root) = kept.or_else(|| self.new_root(mem, log, view)) else { return };
        self.roots.touch(root);
        space.set_root(self.pool.mfn(root));
        space.set_user_mode(view == View::User);
    }

    fn new_root(&mut self, mem: &MachineMemory, log: &mut TableLog, view: View) -> Option<u32> {
        let pfn = self.space;
        if let Some(oldest) = self.roots.make_room() {
            self.free_table(mem, log, oldest);
        }
        let root = match self.derive(mem, log, pfn, 4, view) {
            Some(root) => root,
            None => {
                self.drop_all(mem, log);
                self.derive(mem, log, pfn, 4, view)?
            }
        };
        self.roots.keep(root);
        for (slot, new) in (RESERVED_FIRST..).zip(self.reserved) {
            self.set_entry(mem, log, root, slot, new);
        }
        Some(root)
    }
}
