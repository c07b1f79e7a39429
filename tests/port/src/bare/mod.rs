//! The machine as bare x86-64: a serial port, descriptor tables, two interrupt controllers, a timer, page tables.
//!
//! Written as the manuals say, by somebody who knows nothing of hypervisors.

pub mod cpu;
pub mod entry;
pub mod exceptions;
pub mod paging;
pub mod serial;
pub mod timer;
