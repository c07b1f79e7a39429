//! Pointers that a guest passes: numbers with a type, which the host cannot dereference.
//!
//! Only [`super::access::GuestMemory`] turns one into bytes. Arithmetic on elements is checked: what leaves the
//! address space is EFAULT.

use std::marker::PhantomData;

use paravane_abi::errno::Errno;

/// A linear address at which a guest says that it has a `T`.
pub struct GuestPtr<T> {
    address: u64,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for GuestPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for GuestPtr<T> {}

impl<T> GuestPtr<T> {
    /// The pointer with this value.
    pub fn new(address: u64) -> Self {
        Self { address, of: PhantomData }
    }
    /// Its value: to be given back to the guest, or kept as a number.
    pub fn address(self) -> u64 {
        self.address
    }
    /// Whether it is 0, which many calls take for none.
    pub fn is_null(self) -> bool {
        self.address == 0
    }
    /// What begins `offset` bytes further on; EFAULT beyond the address space.
    pub fn part<U>(self, offset: usize) -> Result<GuestPtr<U>, Errno> {
        self.address.checked_add(offset as u64).map(GuestPtr::new).ok_or(Errno::EFAULT)
    }
    /// The next element of a list of unknown length; EFAULT beyond the address space.
    pub fn next(self) -> Result<Self, Errno> {
        self.part(size_of::<T>())
    }
}

/// `count` elements that a guest says it has one after the other.
pub struct GuestSlice<T> {
    first: GuestPtr<T>,
    count: u64,
}

impl<T> Clone for GuestSlice<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for GuestSlice<T> {}

impl<T> GuestSlice<T> {
    /// The elements from `first` on.
    pub fn new(first: u64, count: u64) -> Self {
        Self { first: GuestPtr::new(first), count }
    }
    /// How many there are.
    pub fn count(self) -> u64 {
        self.count
    }
    /// Element `n`; EFAULT past the end, and beyond the address space.
    pub fn at(self, n: u64) -> Result<GuestPtr<T>, Errno> {
        let offset = n.checked_mul(size_of::<T>() as u64).filter(|_| n < self.count).ok_or(Errno::EFAULT)?;
        self.first.address.checked_add(offset).map(GuestPtr::new).ok_or(Errno::EFAULT)
    }
    /// What is left after `n` elements, for the arguments of a call that is to be issued again.
    ///
    /// Nothing is accessed here: an address that wraps around is refused when it is used.
    pub fn after(self, n: u64) -> Self {
        let offset = n.wrapping_mul(size_of::<T>() as u64);
        Self::new(self.first.address.wrapping_add(offset), self.count.saturating_sub(n))
    }
    /// Where it begins.
    pub fn first(self) -> GuestPtr<T> {
        self.first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No element lies elsewhere than where its number says, and none at a wrapped address.
        #[test]
        fn elements_are_where_they_should_be_or_nowhere(first: u64, count: u64, n: u64) {
            let exact = u128::from(first) + u128::from(n) * 8;
            let expected = u64::try_from(exact).ok().filter(|_| n < count).ok_or(Errno::EFAULT);
            prop_assert_eq!(GuestSlice::<u64>::new(first, count).at(n).map(GuestPtr::address), expected);
        }
    }

    #[test]
    fn what_is_left_begins_after_what_is_done() {
        let left = GuestSlice::<u32>::new(0x1000, 5).after(2);
        assert_eq!((left.first().address(), left.count()), (0x1008, 3));
        assert_eq!(GuestPtr::<u64>::new(u64::MAX - 7).next().map(GuestPtr::address), Err(Errno::EFAULT));
    }
}
