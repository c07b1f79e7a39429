//! The multicall queue: many hypercalls, one transition.
//!
//! Calls are queued in order and made by [`Queue::flush`], when the queue is full, or when an operation of the SDK
//! needs their effect. Neighbouring page-table updates become *one* `mmu_update`, neighbouring extended operations
//! *one* `mmuext_op`; a single call is made without a multicall around it. Page-table updates that have to come
//! before all others (see [`Queue::update_first`]) have a list of their own; TLB invalidations are collected and come
//! last, so that they cover everything before.
//!
//! There is one queue per vCPU. An event handler must not use the queue of the code that it interrupted.

mod capacity;
mod error;
mod pending;
mod stats;
#[cfg(test)]
mod tests;
mod tlb;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use paravane_abi::Errno;
use paravane_abi::domid::DOMID_SELF;
use paravane_abi::hypercall::{MMU_UPDATE, MMUEXT_OP, MULTICALL};
use paravane_abi::mmu::{MMU_COMMAND_MASK, MmuUpdate, MmuextOp};
use paravane_abi::multicall::MulticallEntry;

use crate::hypercall::{Hypercalls, Hypervisor};
use capacity::OWN_CALLS;
pub use capacity::{CALLS, EXTENDED, UPDATES};
pub use error::QueueError;
use pending::Pending;
pub use stats::{BATCH_CLASSES, FlushReason, QueueStats};
use tlb::Tlb;

/// A queued call.
#[derive(Clone, Copy, Debug)]
enum Staged {
    /// `count` updates from `start` on.
    Updates { start: usize, count: usize },
    /// `count` extended operations from `start` on.
    Extended { start: usize, count: usize },
    /// Any other hypercall.
    Other { number: u64, args: [u64; 6] },
}

/// Hypercalls that wait to be made together.
#[derive(Debug)]
pub struct Queue<H> {
    hypervisor: H,
    staged: [Staged; CALLS],
    staged_len: usize,
    /// Ordered updates grow from the front, first updates from the back.
    updates: [MmuUpdate; UPDATES],
    updates_len: usize,
    first_len: usize,
    extended: [MmuextOp; EXTENDED],
    extended_len: usize,
    pending: Pending,
    tlb: Tlb,
    entries: [MulticallEntry; CALLS],
    done: [u32; CALLS],
    epoch: u64,
    stats: QueueStats,
}

/// The boot vCPU's queue.
static BOOT: BootQueue = BootQueue(UnsafeCell::new(Queue::new(Hypervisor)), AtomicBool::new(false));

struct BootQueue(UnsafeCell<Queue<Hypervisor>>, AtomicBool);

// SAFETY: the queue is handed out once, as an exclusive reference.
unsafe impl Sync for BootQueue {}

/// The boot vCPU's queue, for the first caller only.
pub fn take() -> Option<&'static mut Queue<Hypervisor>> {
    if BOOT.1.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the flag lets only one caller ever pass.
    Some(unsafe { &mut *BOOT.0.get() })
}

const NO_UPDATE: MmuUpdate = MmuUpdate { ptr: 0, val: 0 };
const NO_EXTENDED: MmuextOp = MmuextOp { cmd: 0, _pad: 0, arg1: 0, arg2: 0 };
const NO_ENTRY: MulticallEntry = MulticallEntry { op: 0, result: 0, args: [0; 6] };

impl<H: Hypercalls> Queue<H> {
    /// An empty queue: all zeroes, so that one in a `static` takes no room in the image.
    pub const fn new(hypervisor: H) -> Self {
        Self {
            hypervisor,
            staged: [Staged::Updates { start: 0, count: 0 }; CALLS],
            staged_len: 0,
            updates: [NO_UPDATE; UPDATES],
            updates_len: 0,
            first_len: 0,
            extended: [NO_EXTENDED; EXTENDED],
            extended_len: 0,
            pending: Pending::new(),
            tlb: Tlb::new(),
            entries: [NO_ENTRY; CALLS],
            done: [0; CALLS],
            epoch: 0,
            stats: QueueStats::new(),
        }
    }

    /// Queues a page-table update: `ptr` is the entry's machine address and the command.
    ///
    /// # Errors
    /// When the queue was full and a call before this one failed.
    ///
    /// # Safety
    /// Once made, the update must leave all memory that running code uses mapped as that code expects.
    pub unsafe fn update(&mut self, update: MmuUpdate) -> Result<(), QueueError> {
        if self.updates_full() || self.calls_full(matches!(self.top(), Some(Staged::Updates { .. }))) {
            self.flush_for(FlushReason::Overflow)?;
        }
        let start = self.updates_len;
        self.updates[start] = update;
        self.updates_len += 1;
        self.pending.insert(&self.updates, start);
        match self.top_mut() {
            Some(Staged::Updates { count, .. }) => *count += 1,
            _ => self.push(Staged::Updates { start, count: 1 }),
        }
        Ok(())
    }

    /// Queues a page-table update that is made before everything else in the queue: the loss of write access
    /// to a frame that a later update of the queue makes a page table.
    ///
    /// # Errors
    /// When the queue was full and a call before this one failed.
    ///
    /// # Safety
    /// As for [`Queue::update`].
    pub unsafe fn update_first(&mut self, update: MmuUpdate) -> Result<(), QueueError> {
        if self.updates_full() {
            self.flush_for(FlushReason::Overflow)?;
        }
        self.first_len += 1;
        let slot = UPDATES - self.first_len;
        self.updates[slot] = update;
        self.pending.insert(&self.updates, slot);
        Ok(())
    }

    /// Queues an extended MMU operation.
    ///
    /// # Errors
    /// When the queue was full and a call before this one failed.
    ///
    /// # Safety
    /// As for [`Queue::update`].
    pub unsafe fn extended(&mut self, op: MmuextOp) -> Result<(), QueueError> {
        let full = self.extended_len + Tlb::MAX_OPS >= EXTENDED;
        if full || self.calls_full(matches!(self.top(), Some(Staged::Extended { .. }))) {
            self.flush_for(FlushReason::Overflow)?;
        }
        self.push_extended(op);
        Ok(())
    }

    /// Queues any other hypercall.
    ///
    /// # Errors
    /// When the queue was full and a call before this one failed.
    ///
    /// # Safety
    /// As for [`Hypercalls::call`]; what the arguments point to must stay valid until the next flush.
    pub unsafe fn call(&mut self, number: u64, args: [u64; 6]) -> Result<(), QueueError> {
        if self.calls_full(false) {
            self.flush_for(FlushReason::Overflow)?;
        }
        self.push(Staged::Other { number, args });
        Ok(())
    }

    /// Asks that the translation of the page at `va` be forgotten at the end of the next flush.
    pub fn invalidate(&mut self, va: u64) {
        self.tlb.page(va);
    }

    /// Asks that all translations be forgotten at the end of the next flush.
    pub fn invalidate_all(&mut self) {
        self.tlb.all();
    }

    /// The last value queued for the page-table entry at a machine address.
    pub fn pending(&self, maddr: u64) -> Option<u64> {
        self.pending.find(&self.updates, maddr & !MMU_COMMAND_MASK)
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.staged_len == 0 && self.first_len == 0 && self.tlb.is_empty()
    }

    /// How many page-table updates can be queued before the queue is full.
    pub fn room(&self) -> usize {
        if self.calls_full(false) { 0 } else { UPDATES - self.updates_len - self.first_len }
    }

    /// The number of flushes so far: calls that were queued in an earlier epoch have been made.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the queue has done so far.
    pub fn stats(&self) -> &QueueStats {
        &self.stats
    }

    /// The hypervisor, for calls that are not queued. Queued calls come after those made here.
    pub fn hypervisor(&mut self) -> &mut H {
        &mut self.hypervisor
    }

    /// Makes all queued calls.
    ///
    /// # Errors
    /// The first call that failed; those after it were made.
    pub fn flush(&mut self) -> Result<(), QueueError> {
        self.flush_for(FlushReason::Explicit)
    }

    /// As [`Queue::flush`], counted in the statistics under `reason`.
    ///
    /// # Errors
    /// As for [`Queue::flush`].
    pub fn flush_for(&mut self, reason: FlushReason) -> Result<(), QueueError> {
        if self.is_empty() {
            return Ok(());
        }
        while let Some(op) = self.tlb.take() {
            self.push_extended(op);
        }
        let calls = self.prepare();
        let operations = self.updates_len + self.first_len + self.extended_len + self.others();
        self.stats.count(reason, calls, operations);
        let outcome = self.make(calls);
        self.reset();
        outcome
    }

    /// Turns what is staged into multicall entries; returns how many.
    fn prepare(&mut self) -> usize {
        let first = self.first_calls();
        if first > 0 {
            self.prepare_one(0, Staged::Updates { start: UPDATES - self.first_len, count: self.first_len });
        }
        for i in 0..self.staged_len {
            self.prepare_one(first + i, self.staged[i]);
        }
        first + self.staged_len
    }

    fn prepare_one(&mut self, slot: usize, staged: Staged) {
        self.done[slot] = 0;
        let done = (&raw mut self.done[slot]).addr() as u64;
        let list = |first: u64, count: usize| [first, count as u64, done, u64::from(DOMID_SELF), 0, 0];
        let (op, args) = match staged {
            Staged::Updates { start, count } => {
                (MMU_UPDATE, list((&raw const self.updates[start]).addr() as u64, count))
            }
            Staged::Extended { start, count } => {
                (MMUEXT_OP, list((&raw const self.extended[start]).addr() as u64, count))
            }
            Staged::Other { number, args } => (number, args),
        };
        self.entries[slot] = MulticallEntry { op, result: 0, args };
    }

    /// Makes the prepared calls: alone if there is one, by a multicall otherwise.
    fn make(&mut self, calls: usize) -> Result<(), QueueError> {
        if let [only] = &mut self.entries[..calls] {
            // SAFETY: the caller that queued the call made the promise of `Hypercalls::call`; the lists are the
            // queue's.
            only.result = unsafe { self.hypervisor.call(only.op, only.args) }.cast_unsigned();
        } else {
            let args = [self.entries.as_mut_ptr().addr() as u64, calls as u64, 0, 0, 0, 0];
            // SAFETY: as above, for each entry; the entries are the queue's.
            let result = unsafe { self.hypervisor.call(MULTICALL, args) };
            if let Err(errno) = Errno::from_result(result) {
                return Err(QueueError { number: MULTICALL, errno, done: 0, update: None });
            }
        }
        (0..calls).try_for_each(|slot| self.check(slot))
    }

    fn check(&self, slot: usize) -> Result<(), QueueError> {
        // SAFETY: both are in `self`; the hypervisor wrote them, which the compiler does not know.
        let (entry, done) = unsafe {
            ((&raw const self.entries[slot]).read_volatile(), (&raw const self.done[slot]).read_volatile())
        };
        match Errno::from_rax(entry.result) {
            Ok(_) => Ok(()),
            Err(errno) => {
                let update = self.updates_of(slot).get(done as usize).copied();
                Err(QueueError { number: entry.op, errno, done, update })
            }
        }
    }

    /// The updates that prepared call `slot` makes; none if it is another kind of call.
    fn updates_of(&self, slot: usize) -> &[MmuUpdate] {
        match slot.checked_sub(self.first_calls()).map(|i| self.staged[i]) {
            None => &self.updates[UPDATES - self.first_len..],
            Some(Staged::Updates { start, count }) => &self.updates[start..start + count],
            Some(_) => &[],
        }
    }

    fn reset(&mut self) {
        let used = (0..self.updates_len).chain(UPDATES - self.first_len..UPDATES);
        self.pending.clear(&self.updates, used);
        self.staged_len = 0;
        self.updates_len = 0;
        self.first_len = 0;
        self.extended_len = 0;
        self.epoch += 1;
    }

    /// How many calls the first updates take: one for all of them.
    fn first_calls(&self) -> usize {
        usize::from(self.first_len > 0)
    }

    fn others(&self) -> usize {
        self.staged[..self.staged_len].iter().filter(|s| matches!(s, Staged::Other { .. })).count()
    }

    fn top(&self) -> Option<&Staged> {
        self.staged[..self.staged_len].last()
    }

    fn top_mut(&mut self) -> Option<&mut Staged> {
        self.staged[..self.staged_len].last_mut()
    }

    fn push(&mut self, staged: Staged) {
        self.staged[self.staged_len] = staged;
        self.staged_len += 1;
    }

    fn push_extended(&mut self, op: MmuextOp) {
        let start = self.extended_len;
        self.extended[start] = op;
        self.extended_len += 1;
        match self.top_mut() {
            Some(Staged::Extended { count, .. }) => *count += 1,
            _ => self.push(Staged::Extended { start, count: 1 }),
        }
    }

    fn updates_full(&self) -> bool {
        self.updates_len + self.first_len == UPDATES
    }

    /// Whether there is no room for another call; a call that joins the last one needs none.
    fn calls_full(&self, joins: bool) -> bool {
        !joins && self.staged_len + OWN_CALLS >= CALLS
    }
}
