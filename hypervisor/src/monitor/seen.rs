//! What each virtual CPU of a domain has seen of its page tables' changes, while it runs.
//!
//! For engines on which every CPU must catch up by itself (`EveryCpu` of decision 26): there one that runs may use what
//! a change took away until it has left the guest and come back. Whoever needs that to be over
//! [demands](Seen::demand) it, kicks those that are [behind](Seen::behind), and [waits](Seen::wait_for) until none is.
//! One that is outside is not waited for, however little it has seen: it looks for demands on its way in.
//!
//! Each side stores what it is about to do before it looks at the other's word, in one order for all (SeqCst), so that
//! one of the two sees the other: the CPU that enters turns back, or the one that demands waits for it. The model in
//! the tests visits every order of the steps, and fails for each rule that is broken.
//!
//! Rules for the callers:
//!
//! * A CPU enters in the order [`Waker::enter_guest`](super::waker::Waker::enter_guest), [`Seen::enter`]: whoever finds
//!   it inside must be able to kick it out.
//! * Catching up, demanding and the log itself are under the domain's lock; waiting, entering and leaving are without
//!   it.
//! * What a CPU has caught up with, it has cached nothing from before: catching up flushes.
//!
//! Nothing here is taken by a CPU that enters or leaves, unless somebody waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::mmu::log::Position;

/// The word of a CPU that is outside the guest. No log gets there.
const OUTSIDE: u64 = u64::MAX;

/// What the virtual CPUs of a domain have seen.
#[derive(Debug)]
pub struct Seen {
    /// How much every CPU must have seen to be in the guest.
    demanded: AtomicU64,
    /// For each CPU how much it had seen when it entered, or [`OUTSIDE`].
    cpus: Box<[AtomicU64]>,
    /// Held by who waits while it looks, and by who left while it tells.
    looking: Mutex<()>,
    left: Condvar,
}

impl Seen {
    /// For `vcpus` of them, all outside.
    pub fn new(vcpus: usize) -> Self {
        Self {
            demanded: AtomicU64::new(0),
            cpus: (0..vcpus).map(|_| AtomicU64::new(OUTSIDE)).collect(),
            looking: Mutex::new(()),
            left: Condvar::new(),
        }
    }

    /// The CPU is about to enter, and has applied the log up to `seen`. False if that is not enough: then it must not,
    /// and catch up first.
    #[must_use]
    pub fn enter(&self, cpu: usize, seen: Position) -> bool {
        let Some(word) = self.cpus.get(cpu) else { return false };
        word.store(seen.0, Ordering::SeqCst);
        let enough = self.demanded.load(Ordering::SeqCst) <= seen.0;
        if !enough {
            self.leave(cpu);
        }
        enough
    }

    /// It is out of the guest again.
    pub fn leave(&self, cpu: usize) {
        let Some(word) = self.cpus.get(cpu) else { return };
        let seen = word.swap(OUTSIDE, Ordering::SeqCst);
        if self.demanded.load(Ordering::SeqCst) > seen {
            // Whoever looks now has not seen the swap perhaps, and then hears of it.
            drop(self.looking.lock().unwrap_or_else(PoisonError::into_inner));
            self.left.notify_all();
        }
    }

    /// From now on no CPU enters that has not seen everything up to `position`.
    pub fn demand(&self, position: Position) {
        self.demanded.fetch_max(position.0, Ordering::SeqCst);
    }

    /// The CPUs in the guest that have not seen everything up to `position`, which has been demanded: those to be
    /// kicked.
    pub fn behind(&self, position: Position) -> impl Iterator<Item = usize> {
        let words = self.cpus.iter().enumerate();
        words.filter(move |(_, word)| word.load(Ordering::SeqCst) < position.0).map(|(cpu, _)| cpu)
    }

    /// Waits until none is behind. The caller is outside, and holds no lock.
    pub fn wait_for(&self, position: Position) {
        let looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let somebody_is_behind = |_: &mut ()| self.behind(position).next().is_some();
        drop(self.left.wait_while(looking, somebody_is_behind).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests;
