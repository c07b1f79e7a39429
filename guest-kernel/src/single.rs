//! Statics of a machine with one processor.

use core::cell::UnsafeCell;

/// A static that is set up and used by code that can show that it has the only reference.
///
/// There is one processor, and interrupt handlers share nothing but atomics with the code that they interrupt.
pub struct Single<T>(UnsafeCell<T>);

// SAFETY: there is one processor, and a caller of `get` promises that no other reference is in use.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    /// Holds `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value.
    ///
    /// # Safety
    /// While the reference is in use there is no other, not in an interrupt handler either.
    #[allow(clippy::mut_from_ref)]
    pub const unsafe fn get(&self) -> &mut T {
        // SAFETY: the caller has the only reference.
        unsafe { &mut *self.0.get() }
    }

    /// The value's address, for tables that hardware reads.
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
