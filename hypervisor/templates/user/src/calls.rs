//! The system calls, as the kernel and its programs agree on them: this file is part of both.
//!
//! A program executes SYSCALL with the number in RAX and arguments in RDI and RSI. The result is in RAX; all other
//! registers are kept, but RCX and R11, which the instruction itself overwrites.

/// Prints RSI bytes at RDI. The result is how many, or [`BAD_ADDRESS`].
pub const WRITE: u64 = 1;
/// Ends the program, with the status in RDI.
pub const EXIT: u64 = 2;

/// A result: the program has no memory there.
pub const BAD_ADDRESS: u64 = u64::MAX;
/// A result: there is no such call.
pub const NO_SUCH_CALL: u64 = u64::MAX - 1;
