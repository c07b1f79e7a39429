//! Processes: programs in user mode, on either machine.
//!
//! A process is an ordinary Linux program as far as the calls go that are here: the numbers and structures are Linux's
//! for x86-64, so that the same file runs on both. There are no threads, users, directories or devices.
//!
//! The kernel runs one process at a time until it leaves user mode, and is not interrupted itself: it has one stack. A
//! system call that must wait leaves no trace on it. The process notes what it waits for, and the call is made again
//! from its beginning when that has come. So a process that waits costs its registers and its pages, and a thousand of
//! them no stacks.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`abi`] | numbers and structures |
//! | [`areas`], [`space`] | memory: what addresses are for, and the pages that are there |
//! | [`archive`], [`files`], [`pipe`] | files, and the numbers by which processes know them |
//! | [`signals`] | signals, and the frames of their handlers |
//! | [`start`] | the first state of a program |
//! | `table` | processes, who waits for what, whose turn it is |
//! | `turn` | the loop that runs them |
//! | `calls` | system calls |

pub mod abi;
pub mod archive;
pub mod areas;
#[cfg(guest)]
mod calls;
pub mod files;
pub mod pipe;
pub mod signals;
pub mod space;
pub mod start;
#[cfg(guest)]
mod table;
#[cfg(test)]
mod tests;
#[cfg(guest)]
mod turn;

#[cfg(guest)]
pub use turn::run;
