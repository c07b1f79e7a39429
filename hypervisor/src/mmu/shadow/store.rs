//! Stores into guest memory that the hypervisor makes on the guest's behalf, and their effect on the shadow.
//!
//! Every such store goes through [`Shadow::store`], whether it is an emulated instruction or a pushed frame:
//! if it hits a table in use, the shadow entries that derive from it follow at once.

use paravane_abi::pte;

use super::code::CodeWrite;
use super::entry;
use super::overlay::OURS;
use super::pool::{Source, Table};
use super::slots::is_reserved_slot;
use super::state::Shadow;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};
use crate::mmu::log::TableLog;

/// Trapped stores to a table that changed nothing that it maps, with no fill through it in between, after which
/// it is no longer taken for one.
///
/// Two for each entry: a kernel may write a whole table before it uses it, or clear one that it will use again;
/// one that goes on has made the frame into something else. Dropping a shadow is always correct.
const IDLE_STORES: u16 = 1024;
/// The weight of a store that is not a whole, aligned entry: tables are rarely written like this.
const ODD_STORE: u16 = 128;

impl Shadow {
    /// Stores `bytes` at the guest memory `at`, within one frame; returns whether that is a table in use.
    pub fn store(
        &mut self,
        mem: &MachineMemory,
        log: &mut TableLog,
        at: Maddr,
        bytes: &[u8],
    ) -> Result<bool, BadMachineAddress> {
        let outside = BadMachineAddress { addr: at.0, len: bytes.len() };
        let pfn = mem.mfn_to_pfn(at.mfn()).ok_or(outside)?;
        let end = at.offset() + bytes.len() as u64;
        if end > crate::machine::memory::PAGE_SIZE {
            return Err(outside);
        }
        let code = self.code.contains(pfn) && !bytes.is_empty();
        if code {
            self.code.put_back(mem, at, bytes.len())?;
            self.code.note(CodeWrite { pfn, offset: at.offset(), len: bytes.len() as u64 });
        }
        match <[u8; 8]>::try_from(bytes) {
            // A CPU's store of an entry is one store: another CPU's walk never sees half of it.
            Ok(word) if at.0.is_multiple_of(8) => mem.store_u64(at, u64::from_le_bytes(word))?,
            _ => mem.write(at, bytes)?,
        }
        if !self.pool.is_table(pfn) || bytes.is_empty() {
            return Ok(false);
        }
        let mut used = false;
        for slot in at.offset() / 8..end.div_ceil(8) {
            used |= self.follow(mem, log, pfn, slot);
        }
        let whole = bytes.len() == 8 && at.0.is_multiple_of(8);
        self.account(mem, log, pfn, used, if whole { 1 } else { ODD_STORE });
        Ok(true)
    }

    /// Brings the shadow up to date after a store that the guest made itself, without a trap, to entry `slot` of its
    /// table `pfn`; returns whether that is a table in use. For a log of such stores: any order and any number is
    /// right, because what counts is what the entry holds now.
    pub fn drain(&mut self, mem: &MachineMemory, log: &mut TableLog, pfn: u64, slot: u64) -> bool {
        if !self.pool.is_table(pfn) {
            return false;
        }
        let used = self.follow(mem, log, pfn, slot & 511);
        self.account(mem, log, pfn, used, 1);
        true
    }

    /// Notices a frame that is written in a way that tables are not.
    fn account(&mut self, mem: &MachineMemory, log: &mut TableLog, pfn: u64, used: bool, weight: u16) {
        if used {
            self.pool.reset_stores(pfn);
        } else if self.pool.count_stores(pfn, weight) >= IDLE_STORES {
            self.unshadow(mem, log, pfn);
        }
    }

    /// Drops the shadows of the frame at `at`, so that the guest may write it with any instruction; returns
    /// whether it may now, which it may not if it is the L4 table in use.
    pub fn release(&mut self, mem: &MachineMemory, log: &mut TableLog, at: Maddr) -> bool {
        let Some(pfn) = mem.mfn_to_pfn(at.mfn()) else { return false };
        self.unshadow(mem, log, pfn);
        !self.pool.is_table(pfn)
    }

    /// Brings every shadow entry that derives from entry `slot` of the guest's table `pfn` up to date; returns
    /// whether one changed.
    fn follow(&mut self, mem: &MachineMemory, log: &mut TableLog, pfn: u64, slot: u64) -> bool {
        let Some(frame) = mem.pfn_to_mfn(pfn) else { return false };
        let mut changed = false;
        let guest = mem.load_u64(Maddr(frame.maddr().0 | (slot & 511) << 3)).unwrap_or(0);
        for table in self.pool.derived(pfn).into_iter().flatten() {
            if self.still_derives(table, pfn) {
                let (old, new) = (self.load(mem, table, slot), self.derived_entry(mem, table, slot, guest));
                changed |= old != new;
                self.set_entry(mem, log, table, slot, new);
            }
        }
        changed
    }

    /// What entry `slot` of `table` must be, now that the guest's is `guest`.
    ///
    /// It is never less strict than the guest's, and is filled at once if that takes no new table.
    fn derived_entry(&self, mem: &MachineMemory, table: u32, slot: u64, guest: u64) -> u64 {
        let Table { level, view, .. } = *self.pool.table(table);
        let old = self.load(mem, table, slot);
        if level == 4 && is_reserved_slot(slot) {
            return old;
        }
        if !entry::usable(guest, view, self.controls) {
            // A page of ours stays until the guest maps something there.
            return if guest & pte::PRESENT == 0 && old & OURS != 0 { old } else { 0 };
        }
        let number = pte::mfn(guest);
        if level == 1 {
            let Some(frame) = mem.pfn_to_mfn(number) else { return 0 };
            return entry::leaf(guest, frame, self.is_protected(number), view, self.controls);
        }
        let Some(child) = self.child(old) else { return 0 };
        let frame = self.pool.mfn(child);
        match self.pool.table(child).source {
            Source::Guest(pfn) if pfn == number && guest & pte::PSE == 0 => {
                entry::table(guest, frame, view, self.controls)
            }
            Source::Split(pfn) if pfn == number && guest & pte::PSE != 0 => {
                entry::split(guest, frame, view, self.controls)
            }
            _ => 0,
        }
    }
}
