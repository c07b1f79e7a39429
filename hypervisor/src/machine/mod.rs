//! The machine that a guest is given, whatever runs it: memory, its layout, time, and the console's two ends.
//!
//! What may not be done here: knowing how a guest is run or what kind of kernel it is.

pub mod console;
pub mod device_memory;
pub mod end;
pub mod kick;
pub mod layout;
pub mod memory;
pub mod time;
