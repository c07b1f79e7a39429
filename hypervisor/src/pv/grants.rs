//! Grants: what the domain lets be used, and what of it is in use.
//!
//! The guest writes the entries of its grant table (version 1) into frames that it shares with the hypervisor,
//! and may change them at any time. So an entry is read once, as one word, and changed by compare-exchange;
//! what it said when its first use began holds until the last one ends, whatever it says by then. Here are the
//! entries and the counts of their uses; page tables and frames are `mmu::direct`'s, the calls
//! `hypercall::grant`'s. There is one domain, so only its own grants to itself can be used.
//!
//! Source: public/grant_table.h. All is empty, and no frame is touched, until the guest's first grant call.

use std::ops::Range;

use paravane_abi::grant::*;
use serde::{Deserialize, Serialize};
use zerocopy::transmute;

use super::domain::DOMID;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::direct::{DirectPaging, Granted};
use crate::pv::state::{BadDomain, at_most};

/// Entries in a frame of the table.
pub const ENTRIES_PER_FRAME: u64 = PAGE_SIZE / size_of::<GrantEntryV1>() as u64;
/// Mappings that there can be at a time.
pub const MAX_MAPPINGS: usize = 1 << 15;
/// How often a change of an entry is tried while the guest changes it too: Xen's number.
const ATTEMPTS: u32 = 5;
/// Uses of one kind that one entry can have: Xen's number.
const MAX_USES: u8 = 128;

/// A grant that cannot be used as asked, with the `GNTST_*` that says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grant cannot be used so: its status is {0}")]
pub struct Unusable(pub i16);

impl From<BadMachineAddress> for Unusable {
    /// The table's frames exist: this can only be a bug of the hypervisor.
    fn from(_: BadMachineAddress) -> Self {
        Self(GNTST_GENERAL_ERROR)
    }
}

/// How a grant is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// By the processor.
    pub host: bool,
    /// By devices; it counts, although no device uses it.
    pub device: bool,
    /// For reading only.
    pub readonly: bool,
}

/// The uses of one entry.
#[derive(Clone, Copy, Debug, Default)]
struct Active {
    /// By the processor: for writing, for reading.
    host: [u8; 2],
    /// The same by devices.
    device: [u8; 2],
    /// The frame, while there are uses.
    frame: Mfn,
}

impl Active {
    fn used(&self) -> bool {
        (self.host, self.device) != ([0; 2], [0; 2])
    }
    fn written(&self) -> bool {
        self.host[0] != 0 || self.device[0] != 0
    }
    /// The counters that `how` concerns.
    fn counters(&mut self, how: Use) -> impl Iterator<Item = &mut u8> {
        let ([host_write, host_read], [device_write, device_read]) = (&mut self.host, &mut self.device);
        let (host, device) = if how.readonly { (host_read, device_read) } else { (host_write, device_write) };
        [how.host.then_some(host), how.device.then_some(device)].into_iter().flatten()
    }
}

/// A grant that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Its entry.
    pub entry: GrantRef,
    /// How it is still used.
    pub how: Use,
    /// Whether it was mapped by the machine address of a page-table entry, not by a linear address.
    pub by_entry: bool,
}

/// A domain's grant table, and its mappings of grants.
#[derive(Debug)]
pub struct Grants {
    /// The frames that the table can have.
    frames: Range<u64>,
    /// How many it has; none before [`Grants::open`].
    count: u64,
    /// By entry, as far as any was ever used.
    active: Vec<Active>,
    /// By handle.
    mappings: Vec<Option<Mapping>>,
    free: Vec<GrantHandle>,
}

/// What is saved of them: the table itself is memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantsState {
    frames: u64,
    /// By handle, each with its frame.
    #[serde(deserialize_with = "at_most::<MAX_MAPPINGS, _, _>")]
    mappings: Vec<Option<(Mapping, u64)>>,
}

impl GrantsState {
    /// Shares the frames of the table, which can have `frames`, with the guest.
    ///
    /// # Errors
    /// When there are more.
    pub fn share(&self, frames: &Range<u64>, mmu: &mut DirectPaging) -> Result<(), BadDomain> {
        let end = frames.start.checked_add(self.frames).filter(|end| *end <= frames.end);
        (frames.start..end.ok_or(BadDomain::Frame("of the grant table"))?)
            .for_each(|mfn| mmu.share(Mfn(mfn)));
        Ok(())
    }
}

impl Grants {
    /// What is to be saved.
    pub fn state(&self) -> GrantsState {
        let with_frame = |m: Mapping| (m, self.used_frame(m.entry).unwrap_or_default().0);
        let mappings = self.mappings.iter().map(|mapping| mapping.map(with_frame)).collect();
        GrantsState { frames: self.count, mappings }
    }

    /// Has these mappings, in a table that has had none. Returns those that are held for devices, which no page table
    /// stands for. `None` if no guest could have come to have them.
    pub fn restore(&mut self, state: &GrantsState, mmu: &DirectPaging) -> Option<Vec<Granted>> {
        if state.frames > self.limit() || state.mappings.len() > MAX_MAPPINGS {
            return None;
        }
        self.count = state.frames;
        let mut held = Vec::new();
        for (handle, mapping) in (0..).zip(&state.mappings) {
            self.mappings.push(mapping.map(|(mapping, _)| mapping));
            let Some((Mapping { entry, how, .. }, frame)) = *mapping else {
                self.free.push(handle);
                continue;
            };
            self.entry_at(entry).ok()?;
            let active = self.active(entry).ok()?;
            let same_frame = !active.used() || active.frame == Mfn(frame);
            let full = active.counters(how).any(|n| *n >= MAX_USES);
            if !how.host && !how.device || !same_frame || full || !mmu.is_domains(Mfn(frame)) {
                return None;
            }
            active.frame = Mfn(frame);
            active.counters(how).for_each(|n| *n += 1);
            if how.device {
                held.push(Granted { frame: Mfn(frame), writable: !how.readonly });
            }
        }
        Some(held)
    }

    /// A table that can have `frames`, and has none yet.
    pub fn new(frames: Range<u64>) -> Self {
        Self { frames, count: 0, active: Vec::new(), mappings: Vec::new(), free: Vec::new() }
    }

    /// Frames that the table can have.
    pub fn limit(&self) -> u64 {
        self.frames.end - self.frames.start
    }
    /// Frames that it has.
    pub fn count(&self) -> u64 {
        self.count
    }
    /// Frame `n` of the table, if it has so many.
    pub fn frame(&self, n: u64) -> Option<Mfn> {
        (n < self.count).then(|| Mfn(self.frames.start + n))
    }

    /// Gives the table its first frame, with the entries that a domain builder writes: domain 0 may use these
    /// frames. Does nothing the second time.
    pub fn open(
        &mut self,
        memory: &MachineMemory,
        mmu: &mut DirectPaging,
        reserved: impl Iterator<Item = (GrantRef, Mfn)>,
    ) -> Result<(), Unusable> {
        if self.count != 0 {
            return Ok(());
        }
        self.grow(mmu, 1);
        for (r, mfn) in reserved {
            let frame = u32::try_from(mfn.0).map_err(|_| Unusable(GNTST_ADDRESS_TOO_BIG))?;
            let entry = GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: 0, frame };
            memory.write_obj(self.entry_at(r)?, &entry)?;
        }
        Ok(())
    }

    /// Gives the table `count` frames, or as many as it can have; it never shrinks.
    pub fn grow(&mut self, mmu: &mut DirectPaging, count: u64) {
        let count = count.min(self.limit());
        for n in self.count..count {
            mmu.share(Mfn(self.frames.start + n));
        }
        self.count = self.count.max(count);
    }

    /// Begins a use of a grant to the domain itself: counts it, marks the entry, and says which frame it is.
    ///
    /// A `mapping` is refused for a part of a page. Ends with [`Grants::release`].
    pub fn acquire(
        &mut self,
        memory: &MachineMemory,
        mmu: &DirectPaging,
        r: GrantRef,
        how: Use,
        mapping: bool,
    ) -> Result<Mfn, Unusable> {
        let at = self.entry_at(r)?;
        let active = self.active(r)?;
        let before = *active;
        if active.counters(how).any(|n| *n >= MAX_USES) {
            return Err(Unusable(GNTST_GENERAL_ERROR));
        }
        if !before.used() || !how.readonly && !before.written() {
            let entry = mark(memory, at, how.readonly, (!before.used()).then_some(mapping))?;
            if !before.used() {
                active.frame = Mfn(entry.frame.into());
                if !mmu.is_domains(active.frame) {
                    unmark(memory, at, before)?;
                    return Err(Unusable(GNTST_BAD_PAGE));
                }
            }
        }
        active.counters(how).for_each(|n| *n += 1);
        Ok(active.frame)
    }

    /// Ends a use.
    pub fn release(&mut self, memory: &MachineMemory, r: GrantRef, how: Use) -> Result<(), Unusable> {
        let at = self.entry_at(r)?;
        let active = self.active(r)?;
        for n in active.counters(how) {
            debug_assert!(*n > 0, "unbalanced release of grant {r}");
            *n = n.saturating_sub(1);
        }
        unmark(memory, at, *active)
    }

    /// The frame of an entry that is in use.
    pub fn used_frame(&self, r: GrantRef) -> Option<Mfn> {
        let active = self.active.get(usize::try_from(r).ok()?)?;
        active.used().then_some(active.frame)
    }

    /// Whether another mapping can be recorded.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.mappings.len() < MAX_MAPPINGS
    }
    /// Records a mapping; its handle, unless there are too many.
    pub fn insert(&mut self, mapping: Mapping) -> Option<GrantHandle> {
        let handle = match self.free.pop() {
            Some(handle) => handle,
            None if self.mappings.len() < MAX_MAPPINGS => {
                self.mappings.push(None);
                GrantHandle::try_from(self.mappings.len() - 1).ok()?
            }
            None => return None,
        };
        *self.mappings.get_mut(usize::try_from(handle).ok()?)? = Some(mapping);
        Some(handle)
    }
    /// The mapping of a handle.
    pub fn mapping(&self, handle: GrantHandle) -> Option<Mapping> {
        self.mappings.get(usize::try_from(handle).ok()?).copied().flatten()
    }
    /// Notes how the mapping of a handle is used now; one that is not used any more is forgotten.
    pub fn update(&mut self, handle: GrantHandle, how: Use) {
        let Some(slot) = usize::try_from(handle).ok().and_then(|n| self.mappings.get_mut(n)) else { return };
        let Some(mapping) = slot else { return };
        mapping.how = how;
        if !how.host && !how.device {
            *slot = None;
            self.free.push(handle);
        }
    }

    /// Exchanges two entries, neither of which may be in use.
    pub fn swap(&mut self, memory: &MachineMemory, a: GrantRef, b: GrantRef) -> Result<(), Unusable> {
        let (at_a, at_b) = (self.entry_at(a)?, self.entry_at(b)?);
        if a != b && [a, b].iter().any(|r| self.used_frame(*r).is_some()) {
            return Err(Unusable(GNTST_EAGAIN));
        }
        let (entry_a, entry_b) = (memory.load_u64(at_a)?, memory.load_u64(at_b)?);
        memory.store_u64(at_a, entry_b)?;
        Ok(memory.store_u64(at_b, entry_a)?)
    }

    /// Commits an entry that accepts a frame from the domain itself: no other will come by it.
    pub fn commit_transfer(&self, memory: &MachineMemory, r: GrantRef) -> Result<(), Unusable> {
        change(memory, self.entry_at(r)?, |entry| {
            let accepts = entry.flags == GTF_ACCEPT_TRANSFER && entry.domid == DOMID;
            accepts.then_some(GrantEntryV1 { flags: entry.flags | GTF_TRANSFER_COMMITTED, ..entry })
        })
        .map(|_| ())
    }
    /// Says in a committed entry which frame came.
    pub fn complete_transfer(&self, memory: &MachineMemory, r: GrantRef, frame: u32) -> Result<(), Unusable> {
        let flags = GTF_ACCEPT_TRANSFER | GTF_TRANSFER_COMMITTED | GTF_TRANSFER_COMPLETED;
        let entry = GrantEntryV1 { flags, domid: DOMID, frame };
        Ok(memory.store_u64(self.entry_at(r)?, transmute!(entry))?)
    }

    fn entry_at(&self, r: GrantRef) -> Result<Maddr, Unusable> {
        let r = u64::from(r);
        let Mfn(frame) = self.frame(r / ENTRIES_PER_FRAME).ok_or(Unusable(GNTST_BAD_GNTREF))?;
        Ok(Maddr(Mfn(frame).maddr().0 + r % ENTRIES_PER_FRAME * size_of::<GrantEntryV1>() as u64))
    }

    /// The uses of an entry that the table has.
    fn active(&mut self, r: GrantRef) -> Result<&mut Active, Unusable> {
        let index = usize::try_from(r).map_err(|_| Unusable(GNTST_BAD_GNTREF))?;
        if index >= self.active.len() {
            let frames = u64::from(r) / ENTRIES_PER_FRAME + 1;
            let len = usize::try_from(frames * ENTRIES_PER_FRAME).map_err(|_| Unusable(GNTST_NO_SPACE))?;
            self.active.resize(len, Active::default());
        }
        self.active.get_mut(index).ok_or(Unusable(GNTST_BAD_GNTREF))
    }
}

/// Marks an entry as read, and as written unless `readonly`. Its first use must be one that it allows:
/// `first` says whether that is a mapping.
fn mark(
    memory: &MachineMemory,
    at: Maddr,
    readonly: bool,
    first: Option<bool>,
) -> Result<GrantEntryV1, Unusable> {
    change(memory, at, |entry| {
        let looked_at = if first == Some(true) { GTF_TYPE_MASK | GTF_SUB_PAGE } else { GTF_TYPE_MASK };
        let granted = entry.flags & looked_at == GTF_PERMIT_ACCESS && entry.domid == DOMID;
        let writable = entry.flags & GTF_READONLY == 0;
        let allowed = (granted || first.is_none()) && (writable || readonly);
        let marks = if readonly { GTF_READING } else { GTF_READING | GTF_WRITING };
        allowed.then_some(GrantEntryV1 { flags: entry.flags | marks, ..entry })
    })
}

/// Takes back the marks of uses that are over, `active` being those that are not.
fn unmark(memory: &MachineMemory, at: Maddr, active: Active) -> Result<(), Unusable> {
    let over = match (active.used(), active.written()) {
        (false, _) => GTF_READING | GTF_WRITING,
        (true, false) => GTF_WRITING,
        (true, true) => return Ok(()),
    };
    // The flags are an entry's low half word.
    memory.fetch_and_not_u64(at, u64::from(over))?;
    Ok(())
}

/// Changes an entry as one word; what it was. A change to nothing is refused, and so is an entry that the guest
/// never leaves alone.
fn change(
    memory: &MachineMemory,
    at: Maddr,
    to: impl Fn(GrantEntryV1) -> Option<GrantEntryV1>,
) -> Result<GrantEntryV1, Unusable> {
    let mut seen = memory.load_u64(at)?;
    for _ in 0..ATTEMPTS {
        let entry: GrantEntryV1 = transmute!(seen);
        let changed = to(entry).ok_or(Unusable(GNTST_GENERAL_ERROR))?;
        match memory.compare_exchange_u64(at, seen, transmute!(changed))? {
            Ok(_) => return Ok(entry),
            Err(actual) => seen = actual,
        }
    }
    Err(Unusable(GNTST_GENERAL_ERROR))
}
