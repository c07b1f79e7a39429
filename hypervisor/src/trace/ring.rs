//! Batches of exits on their way from a vCPU's thread to the writer's: a ring of buffers that are made once.
//!
//! One thread gives, one takes. The two counters say whose a slot is, so that its lock is never contended: it is there
//! because safe Rust wants one. Giving a batch swaps two pointers and two integers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many exits a batch has at most.
pub(super) const BATCH: usize = 4096;
/// How many batches may wait for the writer.
const SLOTS: u64 = 16;

/// Exits, one after the other.
#[derive(Debug)]
pub(super) struct Batch {
    /// The exits. Its capacity never changes.
    pub exits: Vec<super::Exit>,
    /// How many more there were after these, for which there was no room.
    pub lost: u64,
}

impl Batch {
    /// An empty one with all the memory that it will need.
    pub fn new() -> Self {
        Self { exits: Vec::with_capacity(BATCH), lost: 0 }
    }

    pub fn is_full(&self) -> bool {
        self.exits.len() >= BATCH
    }

    fn is_empty(&self) -> bool {
        self.exits.is_empty() && self.lost == 0
    }
}

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    slots: Vec<Mutex<Batch>>,
    /// How many batches were given.
    given: AtomicU64,
    /// How many of them were taken.
    taken: AtomicU64,
    /// No more will be given.
    closed: AtomicBool,
}

impl Ring {
    pub fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::new(Batch::new())).collect();
        Self { slots, given: AtomicU64::new(0), taken: AtomicU64::new(0), closed: AtomicBool::new(false) }
    }

    fn slot(&self, number: u64) -> Option<&Mutex<Batch>> {
        self.slots.get(usize::try_from(number % SLOTS).ok()?)
    }

    /// Exchanges `batch` for an empty one; `false` if all slots are still with the taker, and `batch` as it was.
    pub fn give(&self, batch: &mut Batch) -> bool {
        let given = self.given.load(Ordering::Relaxed);
        if given.wrapping_sub(self.taken.load(Ordering::Acquire)) >= SLOTS {
            return false;
        }
        let Some(Ok(mut slot)) = self.slot(given).map(Mutex::try_lock) else { return false };
        std::mem::swap(&mut *slot, batch);
        drop(slot);
        self.given.store(given.wrapping_add(1), Ordering::Release);
        true
    }

    /// No more will be given than there is.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Hands the next batch to `take`, if there is one, and empties it.
    pub fn take(&self, take: impl FnOnce(&Batch)) -> Taken {
        // In this order: what was given before the ring was closed is seen.
        let closed = self.closed.load(Ordering::Acquire);
        let taken = self.taken.load(Ordering::Relaxed);
        if taken == self.given.load(Ordering::Acquire) {
            return if closed { Taken::Closed } else { Taken::Nothing };
        }
        if let Some(slot) = self.slot(taken) {
            let mut batch = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if !batch.is_empty() {
                take(&batch);
            }
            batch.exits.clear();
            batch.lost = 0;
        }
        self.taken.store(taken.wrapping_add(1), Ordering::Release);
        Taken::Batch
    }
}

/// What there was to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A batch.
    Batch,
    /// Nothing as yet.
    Nothing,
    /// Nothing, and nothing will come.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Exit;

    fn exit(left: u64) -> Exit {
        Exit { vcpu: 0, left, worked: 0, waited: 0, place: 0, cause: 0, mark: None }
    }

    #[test]
    fn a_full_ring_refuses_and_keeps_the_batch() {
        let ring = Ring::new();
        let mut batch = Batch::new();
        for number in 0..SLOTS {
            batch.exits.push(exit(number));
            assert!(ring.give(&mut batch) && batch.is_empty() && batch.exits.capacity() >= BATCH);
        }
        batch.exits.push(exit(99));
        assert!(!ring.give(&mut batch));
        assert_eq!(batch.exits, [exit(99)]);
        assert_eq!(ring.take(|batch| assert_eq!(batch.exits, [exit(0)])), Taken::Batch);
        assert!(ring.give(&mut batch));
        ring.close();
        let mut seen = Vec::new();
        while ring.take(|batch| seen.extend(batch.exits.iter().map(|exit| exit.left))) == Taken::Batch {}
        assert_eq!(seen, (1..SLOTS).chain([99]).collect::<Vec<_>>());
        assert_eq!(ring.take(|_| ()), Taken::Closed);
    }

    #[test]
    fn two_threads_lose_nothing_that_was_accepted() {
        let ring = Ring::new();
        let taken = std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                let mut seen = Vec::new();
                loop {
                    match ring.take(|batch| seen.extend(batch.exits.iter().map(|exit| exit.left))) {
                        Taken::Closed => break seen,
                        Taken::Nothing => std::thread::yield_now(),
                        Taken::Batch => {}
                    }
                }
            });
            let mut batch = Batch::new();
            for number in 0..2000 {
                batch.exits.push(exit(number));
                while !ring.give(&mut batch) {
                    std::thread::yield_now();
                }
            }
            ring.close();
            taker.join()
        });
        assert_eq!(taken.unwrap(), (0..2000).collect::<Vec<_>>());
    }
}
