//! A domain under attack by its own guest, by what Xen once got wrong.

mod modes;
mod several;
mod waits;
mod xsa;
