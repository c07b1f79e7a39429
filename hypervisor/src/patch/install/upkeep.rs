//! What becomes of patches when the guest writes to its code, maps the pages of stubs, single-steps, or executes its
//! code in a way that patches cannot serve.

use super::super::kernel::Kernel;
use super::super::record::Frame;
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
        self.sites.iter().flat_map(|s| &s.jumps).find_map(|j| {
            let at = target.wrapping_sub(j.patch.stub).wrapping_add(j.patch.at);
            (at != j.patch.at && k.code_at(at) == Some(j.maddr)).then_some(at)
        })
    }

    /// Brings patches up to date with what the guest has done to its code and its address space. To be called before
    /// the kernel is entered.
    pub fn refresh(&mut self, k: &mut Kernel<'_>) {
        self.follow_writes(k);
        if std::mem::take(&mut self.grown)
            && let Some(arena) = &self.arena
        {
            self.points.sort_unstable_by_key(|point| point.at);
            k.shadow.set_overlay(k.memory, k.log, &arena.overlay());
            // All of them at once, rather than by a fault each.
            for page in arena.overlay() {
                let access = Access { write: page.writable, user: false, fetch: page.executable };
                k.shadow.fill_overlay(k.memory, k.log, k.space, page.va, access);
            }
        }
        if k.shadow.overlay_collides(k.memory) {
            // Stubs are in the guest's way. All of them go; no address of them is anywhere in the guest.
            self.undo(k, |_| true);
            self.moves += 1;
            (self.arena, self.env) = (None, None);
            self.points.clear();
            self.tried.clear();
            k.shadow.set_overlay(k.memory, k.log, &[]);
        }
        if std::mem::take(&mut self.changed) {
            self.hide();
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
