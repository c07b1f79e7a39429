//! The permitted accesses to a page, as bits of an entry.
#![forbid(unsafe_code)]

use bitflags::bitflags;
use paravane_abi::pte;

use crate::memory::Mfn;

bitflags! {
    /// The accesses that a page permits besides reads.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PageFlags: u64 {
        /// Stores.
        const WRITE = pte::RW;
        /// Accesses by user mode, where there is a processor that distinguishes them.
        ///
        /// On x86-64 it protects nothing: a paravirtual kernel runs at the privilege level of its programs, and the
        /// hypervisor sets this bit in every entry. What user mode can reach is what its own root leads to:
        /// [`UserSpace`](crate::user::UserSpace) contains nothing of the kernel.
        const USER = pte::USER;
        /// No instruction fetches.
        const NO_EXECUTE = pte::NX;
    }
}

impl PageFlags {
    /// Kernel data.
    pub const DATA: Self = Self::WRITE.union(Self::NO_EXECUTE);

    /// The flags of an entry.
    pub const fn of(entry: u64) -> Self {
        Self::from_bits_truncate(entry)
    }

    /// The entry that maps a frame with these flags. Accessed and dirty bits are set from the start: the SDK never
    /// reads them, and setting them later costs the processor a locked store, or the host a fault.
    pub const fn entry(self, frame: Mfn) -> u64 {
        let dirty = if self.contains(Self::WRITE) { pte::DIRTY } else { 0 };
        pte::make(frame.0, self.bits() | pte::PRESENT | pte::ACCESSED | dirty)
    }
}
