//! Changing single entries: `mmu_update`, `update_va_mapping`, and stores that trapped.

use paravane_abi::mmu::{
    MMU_MACHPHYS_UPDATE, MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD,
    UVMF_FLUSHTYPE_MASK, UVMF_INVLPG, UVMF_LOCAL, UVMF_TLB_FLUSH,
};
use paravane_abi::{Errno, addr, pte};

use super::entry;
use super::frame::{FrameType, Level};
use super::obstacle::Obstacle;
use super::state::{DirectPaging, Pass, Stop};
use super::table::is_guest_slot;
use crate::machine::memory::{MachineMemory, Maddr, Mfn};
use crate::mmu::log::{PteWrite, TableLog};
use crate::mmu::space::{Flush, VcpuSpace};
use crate::x86::walk;
use crate::x86::walk::MachineTables;

/// The number of retries of a store because a CPU set accessed or dirty bits meanwhile.
const STORE_ATTEMPTS: u32 = 8;

impl DirectPaging {
    /// One entry of `mmu_update`, for the calling domain's own tables and frames.
    pub fn mmu_update_one(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        ptr: u64,
        val: u64,
    ) -> Result<(), Stop> {
        let at = Maddr(ptr & !7);
        match ptr & 7 {
            MMU_NORMAL_PT_UPDATE | MMU_PT_UPDATE_NO_TRANSLATE => {
                self.pass(memory, log).update(at, val, false)
            }
            MMU_PT_UPDATE_PRESERVE_AD => self.pass(memory, log).update(at, val, true),
            MMU_MACHPHYS_UPDATE => self.machphys_update(memory, at.mfn(), val),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// `update_va_mapping` in the address space that the CPU uses, with the flush that `flags` asks for.
    ///
    /// A flush of other vCPUs (UVMF_ALL, or a pointer to a bitmap: UVMF_MULTI) has the caller wait until every one is
    /// current ([`TableLog::take_wanted`]); the bitmap is not read here.
    pub fn update_va_mapping(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        va: u64,
        val: u64,
        flags: u64,
    ) -> Result<(), Stop> {
        let found = walk::find_entry(memory, &MachineTables, space.root().maddr().0, va, 1);
        let Ok(found) = found else {
            return Err(self.pass(memory, log).because(Obstacle::NoEntry { va }, Errno::EINVAL.into()));
        };
        let at = found.entry;
        self.pass(memory, log).operation(None, |pass| pass.update_l1(at, val))?;
        match flags & UVMF_FLUSHTYPE_MASK {
            UVMF_TLB_FLUSH => space.flush(Flush::All),
            UVMF_INVLPG => space.flush(Flush::Page(va)),
            _ => return Ok(()),
        }
        if flags & !UVMF_FLUSHTYPE_MASK != UVMF_LOCAL {
            log.want(log.position());
        }
        Ok(())
    }

    /// A store of `size` bytes to `at` that trapped because the page is mapped read-only.
    ///
    /// Done as an update if it goes to an L1 table and is naturally aligned; the low bytes of `value` count.
    /// On any refusal the guest gets the page fault that brought it here.
    pub fn emulate_pte_store(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        at: Maddr,
        value: u64,
        size: u8,
    ) -> Result<(), Stop> {
        let mask = match size {
            1 | 2 | 4 => (1u64 << (size * 8)) - 1,
            8 => u64::MAX,
            _ => return Err(Errno::EINVAL.into()),
        };
        if !at.0.is_multiple_of(u64::from(size)) {
            return Err(Errno::EINVAL.into());
        }
        let entry = Maddr(at.0 & !7);
        let shift = (at.0 & 7) * 8;
        // The guest must own the entry's table before it is read: `update_l1` checks this again, and more.
        self.frames.guest(entry.mfn()).ok_or(Errno::EINVAL)?;
        let old = memory.load_u64(entry)?;
        let new = old & !(mask << shift) | (value & mask) << shift;
        self.pass(memory, log).operation(None, |pass| pass.update_l1(entry, new))
    }

    fn machphys_update(&mut self, memory: &MachineMemory, mfn: Mfn, pfn: u64) -> Result<(), Stop> {
        self.frames.guest(mfn).ok_or(Errno::EINVAL)?;
        self.set_m2p(memory, mfn, pfn)
    }

    /// Stores `mfn`'s entry of the machine-to-physical table.
    pub(super) fn set_m2p(&self, memory: &MachineMemory, mfn: Mfn, pfn: u64) -> Result<(), Stop> {
        let at = Maddr(Mfn(self.m2p.start).maddr().0.saturating_add(mfn.0.saturating_mul(8)));
        if !self.m2p.contains(&at.mfn().0) {
            return Err(Errno::EINVAL.into());
        }
        Ok(memory.store_u64(at, pfn)?)
    }
}

impl Pass<'_> {
    fn update(&mut self, at: Maddr, val: u64, keep_ad: bool) -> Result<(), Stop> {
        self.operation(self.child(at, val), |pass| {
            match pass.frames.guest(at.mfn()).and_then(|f| f.held_as()) {
                Some(FrameType::Table(level)) => pass.update_entry(at, level, val, keep_ad),
                _ => pass.update_plain(at, val),
            }
        })
    }

    /// Within an operation: stores `val` at `at`, which must be in an L1 table.
    pub(super) fn update_l1(&mut self, at: Maddr, val: u64) -> Result<(), Stop> {
        match self.frames.guest(at.mfn()).and_then(|f| f.held_as()) {
            Some(FrameType::Table(Level::L1)) => self.update_entry(at, Level::L1, val, false),
            _ => Err(self.because(Obstacle::NoTable { mfn: at.mfn() }, Errno::EINVAL.into())),
        }
    }

    /// The table that storing `val` at `at` would link, so that its validation can be taken up again.
    fn child(&self, at: Maddr, val: u64) -> Option<(Mfn, Level)> {
        let FrameType::Table(level) = self.frames.guest(at.mfn())?.kind() else { return None };
        level.below().filter(|_| pte::is_present(val)).map(|below| (entry::target(val), below))
    }

    /// A frame that is not a table yet, or no longer, is memory that the guest may write, and so this may too. Other
    /// frames cannot be held as such.
    fn update_plain(&mut self, at: Maddr, val: u64) -> Result<(), Stop> {
        self.hold(at.mfn(), FrameType::Writable, Errno::EINVAL)?;
        let stored = self.memory.store_u64(at, val);
        self.frames.release(at.mfn());
        Ok(stored?)
    }

    fn update_entry(&mut self, at: Maddr, level: Level, val: u64, keep_ad: bool) -> Result<(), Stop> {
        let index = usize::try_from(at.offset() / 8).map_err(|_| Errno::EINVAL)?;
        if !is_guest_slot(level, index) {
            return Err(Errno::EINVAL.into());
        }
        let old = self.memory.load_u64(at)?;
        if !pte::is_present(val) {
            self.store(at, level, old, val, keep_ad)?;
            self.unlink(old, level);
            Ok(())
        } else if entry::has_forbidden_bits(val, level) {
            Err(self.because(Obstacle::Bits { entry: val }, Errno::EINVAL.into()))
        } else if entry::same_reference(old, val) {
            self.store(at, level, old, entry::adjust(val, level), keep_ad)
        } else {
            self.replace(at, level, old, val, keep_ad)
        }
    }

    /// The new reference is taken before the old one is dropped, so that a table that both need is never taken down.
    fn replace(&mut self, at: Maddr, level: Level, old: u64, val: u64, keep_ad: bool) -> Result<(), Stop> {
        match level.below() {
            None => self.map_page(val)?,
            Some(below) => self.get_table(entry::target(val), below)?,
        }
        let stored = self.store(at, level, old, entry::adjust(val, level), keep_ad);
        self.unlink(if stored.is_ok() { old } else { val }, level);
        stored
    }

    /// Replaces `old` at `at`, and logs it. A CPU may set accessed and dirty bits until the last moment.
    fn store(&mut self, at: Maddr, level: Level, old: u64, new: u64, keep_ad: bool) -> Result<(), Stop> {
        const AD: u64 = pte::ACCESSED | pte::DIRTY;
        let mut seen = old;
        for _ in 0..STORE_ATTEMPTS {
            let new = if keep_ad { new | seen & AD } else { new };
            match self.memory.compare_exchange_u64(at, seen, new)? {
                Ok(_) => {
                    let level = level.number();
                    self.log.wrote(PteWrite { entry: at, old: seen, new, level });
                    return Ok(());
                }
                Err(actual) if (actual ^ old) & !AD == 0 => seen = actual,
                Err(_) => break,
            }
        }
        Err(Errno::EBUSY.into())
    }
}

/// Whether a guest may name `va` in a flush or as a descriptor table: not in the hypervisor's range.
pub(super) fn is_guest_address(va: u64) -> bool {
    addr::is_canonical(va) && !addr::is_hypervisor(va)
}
