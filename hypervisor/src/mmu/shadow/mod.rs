//! Shadow page tables: a bare guest's tables, translated to machine addresses and to CPL 3.
//!
//! The CPU walks shadow tables, never the guest's. A guest table that a shadow derives from is mapped
//! read-only, so that every store to it traps and the shadow is brought up to date in the same step: the two
//! never disagree, and INVLPG and MOV to CR3 need no resynchronisation. In four rules:
//!
//! 1. A shadow entry exists only where the guest's entry is present and has its accessed bit; a shadow leaf
//!    is writable only where the guest's has its dirty bit and the frame is not a table in use. Whatever is
//!    missing is filled by the page fault that misses it ([`Shadow::fill`]), which sets those bits.
//! 2. A guest frame is a *table in use* from the moment that a shadow table derives from it until the last
//!    one goes: when its last parent entry goes, when its root leaves the cache of address spaces, or when
//!    it is written in a way that tables are not ([`Shadow::store`]).
//! 3. Kernel and user are two views of one address space, with a root each: at virtual CPL 0 everything that
//!    the guest maps is accessible at CPL 3, at virtual CPL 3 only its user pages are.
//! 4. The shadow is a cache. When its frames run out all of it is dropped and filled again.
//!
//! 5. Frames of code from which a technique has made something are write-protected like tables (`code.rs`).
//! 6. Pages of ours may lie where the guest maps nothing, in the kernel's view only (`overlay.rs`).
//!
//! L4 slots 256..=271 of every root are the hypervisor's; a guest cannot use linear addresses there.
//!
//! Code here may change shadow entries only through `Shadow::set_entry`, which maintains the reverse maps and notifies
//! the engine. It may not decide what a fault means to the guest.
//!
//! The idea is that of any shadowing hypervisor; the terms follow Intel SDM vol. 3, 4.5 to 4.10.

mod code;
mod entry;
mod fill;
mod overlay;
mod pool;
mod roots;
mod slots;
mod state;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod view;

pub use super::guest::{Controls, Lookup, LookupError};
pub use code::{CodeWrite, MAX_REPLACED};
pub use fill::Fill;
pub use overlay::{OverlayFill, OverlayPage};
pub use state::{BadRoot, NoShadow, Shadow, frames_for};
pub use view::View;
