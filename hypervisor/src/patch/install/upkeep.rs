//! What becomes of patches when the guest writes to its code, maps the pages of stubs, single-steps, or executes its
//! code in a way that patches cannot serve.

use super::super::kernel::Kernel;
use super::super::record::{Frame, Installed, Site};
use super::{IDLE_STORES, Patcher};
use crate::machine::memory::PAGE_SIZE;
use crate::x86::walk::Access;

impl Patcher {
    /// Takes the patches of a frame back, and makes no more there.
    fn close(&mut self, k: &mut Kernel<'_>, pfn: u64) {
        let Some(mfn) = k.memory.pfn_to_mfn(pfn) else { return };
        let range = mfn.maddr().0..mfn.maddr().0 + PAGE_SIZE;
        self.undo(k, |site| site.is_made_from(&range));
        k.shadow.unprotect_code(pfn);
        match self.code.iter_mut().find(|frame| frame.pfn == pfn) {
            Some(frame) => frame.closed = true,
            None => self.code.push(Frame { pfn, stores: 0, closed: true }),
        }
    }

    /// The code at `rip` is executed in a way that patches cannot serve, such as by a user program, or at another
    /// linear address: it has no patches any more. Returns whether it had some.
    pub fn withdraw(&mut self, k: &mut Kernel<'_>, rip: u64) -> bool {
        let Some(pfn) = k.code_at(rip).and_then(|maddr| k.memory.mfn_to_pfn(maddr.mfn())) else {
            return false;
        };
        let had = k.shadow.is_code(pfn) && !self.is_closed(pfn);
        if had {
            self.close(k, pfn);
        }
        had
    }

    /// The address of the jump that leads to `stub`, for an instruction fetch there by who cannot see it.
    pub fn jump_to(&self, stub: u64) -> Option<u64> {
        self.sites.iter().flat_map(|s| &s.jumps).find(|j| j.patch.stub == stub).map(|j| j.patch.at)
    }

    /// The address of a jump that leads to `target` where its frame is mapped: at another address than the patch was
    /// made for.
    pub fn strayed(&self, k: &Kernel<'_>, target: u64) -> Option<u64> {
        // Frames are mapped at multiples of a page. Nearly all faults are none of this.
        if !self.stubs_at.may_have(target) {
            return None;
        }
        let may_lead = |j: &&Installed| (target ^ j.patch.stub).is_multiple_of(PAGE_SIZE);
        self.sites.iter().flat_map(|s| &s.jumps).filter(may_lead).find_map(|j| {
            let at = target.wrapping_sub(j.patch.stub).wrapping_add(j.patch.at);
            (at != j.patch.at && k.code_at(at) == Some(j.maddr)).then_some(at)
        })
    }

    /// Brings patches up to date with what the guest has done to its code and its address space. To be called before
    /// the kernel is entered.
    pub fn refresh(&mut self, k: &mut Kernel<'_>) {
        self.follow_writes(k);
        self.follow_devices(k);
        if !k.cpu.user {
            self.prepare_handlers(k);
        }
        if std::mem::take(&mut self.grown) {
            self.show_stubs(k);
        }
        if k.shadow.overlay_collides(k.memory) {
            // Stubs are in the guest's way. All of them go; no address of them is anywhere in the guest.
            self.undo(k, |_| true);
            self.moves += 1;
            (self.arena, self.env) = (None, None);
            self.points.clear();
            self.sorted = 0;
            self.tried.clear();
            k.shadow.set_overlay(k.memory, k.log, &[]);
        }
        if std::mem::take(&mut self.changed) {
            self.hide();
        }
    }

    /// Has the shadow show the pages of stubs that it does not know yet.
    fn show_stubs(&mut self, k: &mut Kernel<'_>) {
        let Some(arena) = &self.arena else { return };
        merge(&mut self.points, self.sorted, |point| point.at);
        self.sorted = self.points.len();
        for page in arena.overlay() {
            if !k.shadow.overlay().contains(&page) {
                k.shadow.replace_overlay_page(k.memory, k.log, page);
                // At once, rather than by a fault each.
                let access = Access { write: page.writable, user: false, fetch: page.executable };
                k.shadow.fill_overlay(k.memory, k.log, k.space, page.va, access);
            }
        }
    }

    /// Takes back what was made from code that a device has written over since. Only frames in which a device was ever
    /// given a buffer are looked at.
    fn follow_devices(&mut self, k: &mut Kernel<'_>) {
        let foreign = k.memory.foreign_writes();
        if std::mem::replace(&mut self.foreign, foreign) == foreign {
            return;
        }
        let suspended = self.suspended;
        for n in 0..self.code.len() {
            let Some(pfn) = self.code.get(n).map(|frame| frame.pfn) else { break };
            let Some(mfn) = k.memory.pfn_to_mfn(pfn).filter(|_| k.memory.is_lent(pfn)) else { continue };
            let (memory, range) = (k.memory, mfn.maddr().0..mfn.maddr().0 + PAGE_SIZE);
            // While the kernel steps, its code is in memory and not what is held against it.
            let damaged = |site: &Site| suspended || site.jumps.iter().any(|jump| jump.is_damaged(memory));
            let sites = self.sites.len();
            self.undo(k, |site| site.is_made_from(&range) && damaged(site));
            if self.sites.len() != sites && !self.sites.iter().any(|site| site.is_made_from(&range)) {
                k.shadow.unprotect_code(pfn);
            }
        }
    }

    fn follow_writes(&mut self, k: &mut Kernel<'_>) {
        let mut writes = [None; 16];
        let mut places = writes.iter_mut();
        let more = k.shadow.take_code_writes(|write| {
            if let Some(place) = places.next() {
                *place = Some(write);
            }
        });
        if more {
            self.undo(k, |_| true);
        }
        for write in writes.into_iter().flatten() {
            let Some(mfn) = k.memory.pfn_to_mfn(write.pfn) else { continue };
            let from = mfn.maddr().0 + write.offset;
            let range = from..from + write.len;
            let before = self.sites.len();
            self.undo(k, |site| site.is_made_from(&range));
            let Some(frame) = self.code.iter_mut().find(|frame| frame.pfn == write.pfn) else { continue };
            frame.stores = if self.sites.len() == before { frame.stores + 1 } else { 0 };
            let frame_range = mfn.maddr().0..mfn.maddr().0 + PAGE_SIZE;
            if frame.stores >= IDLE_STORES {
                self.close(k, write.pfn);
            } else if !self.sites.iter().any(|site| site.is_made_from(&frame_range)) {
                k.shadow.unprotect_code(write.pfn);
            }
        }
    }

    /// Takes all jumps out of the code while the kernel single-steps, and puts them back after that.
    pub fn suspend(&mut self, k: &mut Kernel<'_>, suspend: bool) {
        if self.suspended == suspend {
            return;
        }
        self.suspended = suspend;
        for jump in self.sites.iter().flat_map(|site| &site.jumps) {
            // As when they were installed: the frame is there.
            let _ = if suspend {
                k.shadow.restore_code(k.memory, jump.maddr, jump.patch.bytes.len())
            } else {
                k.shadow.replace_code(k.memory, jump.maddr, &jump.patch.bytes)
            };
        }
    }

    /// Whether all code is as the guest wrote it.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }
}

/// Puts what follows the first `sorted` in order, and all of it in its place among them. A new stub is in one piece, so
/// that this is a move of memory for each, and no search through all.
fn merge<T, K: Ord>(all: &mut [T], mut sorted: usize, key: impl Fn(&T) -> K) {
    all.get_mut(sorted..).unwrap_or_default().sort_unstable_by_key(&key);
    while let Some((before, rest)) = all.split_at_checked(sorted)
        && let Some(first) = rest.first().map(&key)
    {
        let place = before.partition_point(|one| key(one) <= first);
        let Some(next) = before.get(place).map(&key) else { break };
        let n = rest.partition_point(|one| key(one) < next);
        if let Some(part) = all.get_mut(place..sorted + n) {
            part.rotate_right(n);
        }
        sorted += n;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merging_is_sorting(mut all in prop::collection::vec(any::<u8>(), 0..64), sorted in 0usize..64) {
            let sorted = sorted.min(all.len());
            all[..sorted].sort_unstable();
            let mut expected = all.clone();
            expected.sort_unstable();
            super::merge(&mut all, sorted, |one| *one);
            prop_assert_eq!(all, expected);
        }
    }
}
