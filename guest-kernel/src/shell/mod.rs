//! The shell on the console: reads commands and carries them out until one ends the session.
#![forbid(unsafe_code)]

pub mod command;
#[cfg(guest)]
mod disk;
#[cfg(guest)]
mod session;

#[cfg(guest)]
pub use session::run;
