//! Dynamic binary translation: a kernel's code as code of ours that does the same at CPL 3.
//!
//! Almost all of it is a copy. What differs are transfers of control, which lead from translation to translation, and
//! sensitive instructions, in whose place [`crate::codegen`]'s templates run. The kernel's own code is read and never
//! executed. User programs run natively.
//!
//! | part | where |
//! | --- | --- |
//! | where in the guest's kernel view our pages are | `place.rs` |
//! | the guest's code, read | `code.rs` |
//! | one block: from an address to where control certainly goes elsewhere | `block.rs` |
//! | transfers of control in it | `transfer.rs`, `jump_table.rs` |
//! | the lookup of an indirect transfer's target, as code | `lookup.rs` |
//! | the cache of blocks, their links, the table of targets | `cache.rs`, `near.rs`, `targets.rs` |
//! | which frames and linear pages blocks came from, and whether they still do | `pages.rs` |
//! | stores to page tables that are logged | `adapt.rs`, `translator/guilty.rs` |
//! | what is translated when | `translator.rs`, `translator/make.rs`, `translator/ahead.rs` |
//!
//! A block belongs to a linear address and to the frames that its code was in. It goes when one of them is written to,
//! or when the address is seen to lead to another frame after a flush of translations, as a CPU's own may.
//!
//! Everything here is on the vCPU's thread. What may not be done here: knowing an engine or a device; executing
//! anything; trusting that code read twice is the same code.

#![forbid(unsafe_code)]

mod adapt;
mod block;
mod cache;
mod code;
mod jump_table;
mod lookup;
mod near;
mod pages;
mod place;
mod targets;
mod transfer;
pub(crate) mod translator;

/// Frames that are needed beside those for translations.
pub(crate) const OWN_FRAMES: u64 = targets::FRAMES;
/// Frames that the kernel may write: the state page, and the log of stores if they are logged.
pub(crate) const STATE_FRAMES: [u64; 2] = [1, 1 + adapt::LOG_FRAMES];

pub(crate) use translator::{Found, Surroundings, Translator};
