//! Code of ours that runs at CPL 3 in a bare guest's kernel view, in the place of the kernel's own.
//!
//! Two techniques emit such code: one translates all of a kernel's, the other replaces single instructions by jumps to
//! stubs. Both use the parts here:
//!
//! | part | where |
//! | --- | --- |
//! | bytes of instructions, at the address where they will run | `emitter.rs` |
//! | a copy of a guest's instruction that does the same at another address | `copy.rs`, `operand.rs` |
//! | what runs in the place of a sensitive instruction | `sensitive.rs`, `flags.rs`, `iret.rs` |
//! | the page that such code shares with the monitor | `state_page.rs` |
//! | the guest's state at each instruction of such code | `recipe.rs` |
//!
//! The guest's registers stay in their registers and its flags in RFLAGS. A template that needs a register leaves the
//! guest's value in that register's slot of the state page. So at each instruction boundary the guest's state is either
//! that before the guest's instruction or that after it, and [`recipe::Recipe`] says which and how to restore it: an
//! exit never finds an instruction of the guest half done.
//!
//! The kernel can read all of it, and write the state page. What is read from there is what it could also have put
//! into its own registers: it is masked, and never used as an address or a length of ours.
//!
//! What may not be done here: knowing a shadow, an engine or a technique; deciding which code is replaced.

#![forbid(unsafe_code)]

pub(crate) mod copy;
pub(crate) mod emitter;
mod flags;
mod iret;
mod operand;
pub(crate) mod recipe;
pub(crate) mod sensitive;
pub(crate) mod state_page;
#[cfg(test)]
pub(crate) mod tests;
