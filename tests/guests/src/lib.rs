//! The kernels of the test guests. Nothing here is meant for host programs.
#![cfg_attr(not(test), no_std)]

#[cfg(guest)]
mod chance;
#[cfg(guest)]
pub mod conformance;
#[cfg(guest)]
pub mod endings;
#[cfg(guest)]
pub mod hello;
#[cfg(guest)]
mod mistakes;
#[cfg(guest)]
mod probe;
#[cfg(guest)]
pub mod smp;
#[cfg(guest)]
pub mod snapshot;
#[cfg(guest)]
mod suite;
#[cfg(guest)]
pub mod user_mode;
#[cfg(guest)]
pub mod user_soup;
#[cfg(guest)]
pub mod virtio_soup;
