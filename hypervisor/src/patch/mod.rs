//! Patching in place: sensitive instructions of a bare kernel are replaced by jumps to stubs.
//!
//! A site is patched when it traps for the first time, or ahead of time where the image's symbols say what is code: it
//! must be certain that an instruction begins there. Which jump fits is decided in `site.rs`, by pure functions that
//! the audit uses as well (`survey.rs`).
//!
//! What may not be done here: handling an exit, knowing an engine.

#![forbid(unsafe_code)]

pub(crate) mod arena;
pub(crate) mod flow;
pub(crate) mod install;
pub(crate) mod kernel;
mod record;
pub(crate) mod site;
pub(crate) mod stub;
pub mod survey;

pub use site::Tactic;
