//! References through entries: validates a frame that becomes a table, and takes down one that is no longer used.
//!
//! Depth is bounded by the levels. Length is bounded by a budget: what does not fit stays on a list of [`work`], each
//! frame on one at most, as a table that one type reference still holds in place. What is kept are tables validated for
//! an operation that is to be issued again; `dropping` are tables that nobody uses any more, to be taken down. All are
//! empty when nothing is unfinished, which is always but for guests with huge address spaces.
//!
//! [`work`]: super::work

use paravane_abi::{Errno, addr, pte};

use super::entry;
use super::frame::{FrameType, Level, Owner};
use super::obstacle::Obstacle;
use super::state::{Pass, Stop};
use super::work::{Others, Top};
use crate::machine::memory::{Mfn, PAGE_SHIFT};

/// Whether the guest may use slot `index` of a table of `level`.
pub(super) fn is_guest_slot(level: Level, index: usize) -> bool {
    level != Level::L4 || !(addr::RESERVED_L4_FIRST..=addr::RESERVED_L4_LAST).contains(&index)
}

impl Pass<'_> {
    /// Makes one operation, which validates the table `top` and what is below it, if any.
    ///
    /// What another operation keeps unfinished is no reason to refuse this one
    /// ([`Work::refused`](super::work::Work::refused)).
    pub(super) fn operation<T>(
        &mut self,
        top: Option<Top>,
        mut op: impl FnMut(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        self.work.budget = self.work.limit;
        self.drain()?;
        let mut result = self.attempt(top, &mut op);
        if matches!(result, Err(Stop::Refused(_))) {
            match self.work.refused() {
                Others::Nothing => {}
                Others::Unfinished => result = Err(Stop::Restart),
                Others::GivenUp => {
                    self.work.obstacle = None;
                    result = self.drain().and_then(|()| self.attempt(top, &mut op));
                }
            }
        }
        // What remains is finished by the operations after this one.
        let _ = self.drain();
        result
    }
    fn attempt<T>(
        &mut self,
        top: Option<Top>,
        mut op: impl FnMut(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        if let Some(top) = top {
            self.work.resume(top);
        }
        let result = op(self);
        match (&result, top) {
            (Err(Stop::Restart), Some(top)) => self.work.suspend(top),
            _ => self.work.give_up_own(),
        }
        result
    }
    /// Takes a table reference. It is on behalf of the operation itself (a pin, a root, an entry being written), or of
    /// an entry that is validated.
    pub(super) fn get_table(&mut self, mfn: Mfn, level: Level) -> Result<(), Stop> {
        if !self.hold(mfn, FrameType::Table(level), Errno::EINVAL)? {
            return Ok(());
        }
        let validated = if self.work.spend() { self.promote(mfn, level) } else { Err(Stop::Restart) };
        match validated {
            Ok(()) => self.frames.set_validated(mfn, true),
            // No CPU used it as a table.
            Err(_) => self.frames.release(mfn),
        }
        validated
    }
    /// Drops a table reference; the last one has the table taken down.
    pub(super) fn put_table(&mut self, mfn: Mfn) {
        let Some(frame) = self.frames.get(mfn) else { return };
        if frame.type_refs() > 1 {
            self.release(mfn);
        } else {
            self.frames.set_parked(mfn, true);
            self.work.dropping.push(mfn);
        }
    }
    /// Takes a reference to what a present entry of a table of `level` refers to. Returns the entry to store.
    fn link(&mut self, entry: u64, level: Level) -> Result<u64, Stop> {
        if entry::has_forbidden_bits(entry, level) {
            return Err(self.because(Obstacle::Bits { entry }, Errno::EINVAL.into()));
        }
        match level.below() {
            None => self.map_page(entry)?,
            Some(below) => self.get_table(entry::target(entry), below)?,
        }
        Ok(entry::adjust(entry, level))
    }
    /// Drops the reference to what an entry of a table of `level` refers to.
    pub(super) fn unlink(&mut self, entry: u64, level: Level) {
        let mfn = entry::target(entry);
        if !pte::is_present(entry) {
            return;
        }
        if level != Level::L1 {
            self.put_table(mfn);
        } else if entry & pte::RW != 0 && self.frames.guest(mfn).is_some() {
            self.release(mfn);
        } else {
            self.put(mfn);
        }
    }

    /// Takes a reference to the frame that a present L1 entry maps.
    pub(super) fn map_page(&mut self, entry: u64) -> Result<(), Stop> {
        let mfn = entry::target(entry);
        let writable = entry & pte::RW != 0;
        let taken = match self.frames.get(mfn).map(|f| f.owner()) {
            // Where there is no memory there could be devices, which this guest has no right to. The highest
            // frame is what "no such frame" looks like in an entry: a mistake, not an attempt.
            None if mfn.0 == pte::ADDR_MASK >> PAGE_SHIFT => {
                return Err(self.in_use(mfn, FrameType::None, Errno::EINVAL.into()));
            }
            None => return Err(self.in_use(mfn, FrameType::None, Errno::EPERM.into())),
            Some(Owner::Guest) if writable => {
                return self.hold(mfn, FrameType::Writable, Errno::EBUSY).map(drop);
            }
            Some(Owner::Guest | Owner::Shared) => self.frames.take(mfn),
            Some(Owner::ReadOnly) if !writable => self.frames.take(mfn),
            Some(Owner::ReadOnly | Owner::Hypervisor) => None,
        };
        taken.ok_or_else(|| self.in_use(mfn, FrameType::None, Stop::Refused(Errno::EBUSY)))
    }

    /// Validates a frame's contents as a table of `level`, and takes references to what its entries refer to.
    ///
    /// No CPU walks it yet, so the stores need not be logged.
    fn promote(&mut self, mfn: Mfn, level: Level) -> Result<(), Stop> {
        let mut table: [u64; addr::PT_ENTRIES] = self.memory.read_obj(mfn.maddr())?;
        let mut changed = level == Level::L4 || self.distrusts;
        for index in 0..table.len() {
            let asked = table[index];
            if !is_guest_slot(level, index) || !pte::is_present(asked) {
                continue;
            }
            match self.link(asked, level) {
                Ok(stored) => {
                    changed |= stored != asked;
                    table[index] = stored;
                }
                Err(stop) => {
                    self.back_out(&table[..index], level, stop);
                    return Err(stop);
                }
            }
        }
        if level == Level::L4 {
            table[addr::RESERVED_L4_FIRST..=addr::RESERVED_L4_LAST].copy_from_slice(self.reserved_l4);
        }
        if changed {
            self.memory.write_obj(mfn.maddr(), &table)?;
        }
        Ok(())
    }

    /// Undoes the first part of a validation, but keeps the tables that it finished if it will be restarted.
    fn back_out(&mut self, done: &[u64], level: Level, stop: Stop) {
        for (index, &entry) in done.iter().enumerate() {
            if !is_guest_slot(level, index) || !pte::is_present(entry) {
                continue;
            }
            let mfn = entry::target(entry);
            if stop != Stop::Restart || level == Level::L1 {
                self.unlink(entry, level);
            } else if self.frames.get(mfn).is_some_and(|f| f.parked()) {
                self.frames.release(mfn);
            } else {
                self.frames.set_parked(mfn, true);
                self.work.kept.push(mfn);
            }
        }
    }

    /// Drops the references of the `dropping` list.
    fn drain(&mut self) -> Result<(), Stop> {
        while let Some(&mfn) = self.work.dropping.last() {
            let last = self.frames.get(mfn).is_some_and(|f| f.type_refs() == 1);
            if last && !self.work.spend() {
                return Err(Stop::Restart);
            }
            self.work.dropping.pop();
            self.frames.set_parked(mfn, false);
            self.release(mfn);
            if last {
                self.demote(mfn);
            }
        }
        Ok(())
    }

    /// Drops the references to what the entries of a former table refer to.
    fn demote(&mut self, mfn: Mfn) {
        let Some(FrameType::Table(level)) = self.frames.get(mfn).map(|f| f.kind()) else { return };
        self.frames.set_was_table(mfn, true);
        let Ok(table) = self.memory.read_obj::<[u64; addr::PT_ENTRIES]>(mfn.maddr()) else { return };
        for (index, &entry) in table.iter().enumerate() {
            if is_guest_slot(level, index) {
                self.unlink(entry, level);
            }
        }
    }
}
