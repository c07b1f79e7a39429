//! Why page tables could not be changed.
#![forbid(unsafe_code)]

use core::fmt;

use crate::memory::Pfn;
use crate::queue::QueueError;

/// Why page tables could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PagingError {
    /// The address is not canonical, not of a page, or the hypervisor's.
    BadAddress(u64),
    /// The address is in the direct map, on which the kernel's own code relies.
    DirectMap(u64),
    /// Something is mapped there already.
    Mapped(u64),
    /// Nothing is mapped there.
    NotMapped(u64),
    /// The frame is not one of the domain's.
    NoSuchFrame(Pfn),
    /// A page table was needed and the source of frames is empty.
    OutOfFrames,
    /// The hypervisor refused a queued update.
    Refused(QueueError),
}

impl fmt::Display for PagingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadAddress(va) => write!(f, "{va:#x} is not the address of a page that a kernel may map"),
            Self::DirectMap(va) => write!(f, "{va:#x} is in the direct map, which must stay as it is"),
            Self::Mapped(va) => write!(f, "a page is mapped at {va:#x} already; unmap it first"),
            Self::NotMapped(va) => write!(f, "no page is mapped at {va:#x}"),
            Self::NoSuchFrame(pfn) => write!(f, "{pfn} is not a frame of this domain"),
            Self::OutOfFrames => f.write_str("no frame is left for a page table"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PagingError {}

impl From<QueueError> for PagingError {
    fn from(error: QueueError) -> Self {
        Self::Refused(error)
    }
}
