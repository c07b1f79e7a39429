//! A small kernel for bare x86-64, and its port to Paravane in four steps: `docs/port.md` tells the story.
//!
//! [`kernel`] is what the port leaves alone. It asks its [`Machine`](machine::Machine) for everything else: a page of
//! functions, which each program of `bin/` answers by those of `bare` or of `pv`. The functions that a step does not
//! use are not in its image, so that `paravane audit` finds what is still to be done.
#![cfg_attr(not(test), no_std)]

#[cfg(guest)]
pub mod bare;
pub mod kernel;
pub mod machine;
#[cfg(guest)]
pub mod pv;
