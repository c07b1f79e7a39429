//! The machine that every guest has, whatever runs it: memory and its layout, time, the first console, kicks, ends.
//!
//! Memory, console input and kicks are shared between threads; clocks and timers belong to a vCPU's thread. Only
//! [`kick::Kick::kick`] is async-signal-safe. What may not be done here: knowing how a guest is run or what kind of
//! kernel it is.

pub mod console;
pub mod device_memory;
pub mod end;
pub mod kick;
pub mod layout;
pub mod memory;
pub mod time;
pub mod words;
