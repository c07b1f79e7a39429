//! The host.

pub mod audit;
pub mod busy_poll;
pub mod cli;
pub mod compare;
pub mod console;
pub mod device;
pub mod domain;
pub mod emulate;
pub mod engine;
pub mod event;
pub mod hypercall;
pub mod images;
pub mod ledger;
pub mod memory;
pub mod mmu;
pub mod monitor;
pub mod platform;
#[cfg(test)]
mod skip;
pub mod threads;
pub mod time;
