//! Page tables, which the hypervisor changes on request.
//!
//! A domain owns its page tables and reads them freely, but the hypervisor checks every change to a table in
//! use, so a change is a queued update. Two consequences shape this module:
//!
//! * A frame that becomes a table first loses its writable mapping. That update goes to the front of the queue
//!   ([`Queue::update_first`](crate::queue::Queue::update_first)), so a new table costs no transition of its own.
//! * Until that happens the frame is ordinary memory: entries of a table that is *loose* (made, linked, but the
//!   queue not flushed yet) are plain stores. Filling a new table is free; the hypervisor checks it once, whole.
//!
//! [`Mmu`] is the vCPU's access to page tables, one entry at a time; kernels use [`AddressSpace`]. Values read
//! through either include queued changes.

mod direct;
mod error;
mod flags;
mod frames;
mod free;
mod mmu;
mod protect;
mod space;
#[cfg(test)]
pub(crate) mod tests;

pub use error::PagingError;
pub use flags::PageFlags;
pub use frames::{BootFrames, FrameSource};
pub use free::FreeMemory;
pub use mmu::Mmu;
pub(crate) use protect::ImageParts;
pub use space::AddressSpace;
