//! A domain under attack by its own guest, by what Xen once got wrong.

mod index;
mod modes;
mod xsa;
