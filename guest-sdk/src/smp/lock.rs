//! A lock whose waiters give their processor to whoever holds it.
//!
//! A vCPU is a thread of the host's: the holder of a lock may not be running. So a waiter spins for about as long as a
//! critical section lasts, and then yields at each turn. Whoever locks it in a handler must lock it with events
//! disabled everywhere else ([`SpinLock::lock_without_events`]), or a vCPU waits for itself.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::event;
use crate::hypercall::sched::yield_now;

/// Looks at the lock before a waiter yields: some microseconds.
const SPINS: u32 = 1000;

/// A lock over a value.
#[derive(Debug, Default)]
pub struct SpinLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the holder of the lock only, one at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits until it holds the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        self.acquire();
        Guard::new(self, false)
    }

    /// The same, with events disabled until the guard goes.
    pub fn lock_without_events(&self) -> Guard<'_, T> {
        let enable = event::is_enabled();
        event::disable();
        self.acquire();
        Guard::new(self, enable)
    }

    /// Holds the lock if nobody else does.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // A guard that is made and not given away would let go of what somebody else holds.
        if self.locked.swap(true, Ordering::Acquire) { None } else { Some(Guard::new(self, false)) }
    }

    fn acquire(&self) {
        let mut looks = 0;
        while self.locked.swap(true, Ordering::Acquire) {
            while self.locked.load(Ordering::Relaxed) {
                looks += 1;
                if looks < SPINS { core::hint::spin_loop() } else { yield_now() }
            }
        }
    }
}

/// Holds a lock, and lets go of it when dropped.
///
/// It stays on the vCPU that locked, whose events it may enable again.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a SpinLock<T>,
    enable: bool,
    stays: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives out shared references to the value, and nothing else.
unsafe impl<T: Sync> Sync for Guard<'_, T> {}

impl<'a, T> Guard<'a, T> {
    fn new(lock: &'a SpinLock<T>, enable: bool) -> Self {
        Self { lock, enable, stays: PhantomData }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard's holder is the only one that has the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.locked.store(false, Ordering::Release);
        if self.enable {
            event::enable();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        static SUM: SpinLock<u64> = SpinLock::new(0);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..10_000 {
                        *SUM.lock() += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*SUM.lock(), 40_000);
        let held = SUM.try_lock().unwrap();
        assert!(SUM.try_lock().is_none());
        assert!(SUM.try_lock().is_none(), "a try that failed has let go of nothing");
        drop(held);
        assert!(SUM.try_lock().is_some());
    }
}
