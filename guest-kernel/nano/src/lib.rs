//! Nanobenchmarks that only compute, and how every nanobenchmark is timed.
//!
//! After the seven of Adams and Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization"
//! (ASPLOS 2006): one operation, repeated, in cycles. The ones here need no privilege, so that the reference kernel runs
//! them on both of its machines and a program on the host runs the same instructions natively. They are assembly: two
//! compilers, or one with different flags, would make different loops.
//!
//! What may not be done here: anything that needs a kernel, and any dependency.
//!
//! * [`Compute`] is one of them; [`COMPUTE`] has all.
//! * [`rounds()`] times anything that is repeated.
//! * [`smc`] needs memory that can be written and executed, which only its caller can provide.
#![cfg_attr(not(test), no_std)]

mod compute;
mod loops;
mod rounds;
#[cfg(test)]
mod tests;

pub use compute::{
    ALU, ALU_WORDS, CALLRET, COMPUTE, Compute, Data, Done, FIB, INDIRECT_1, INDIRECT_4, INDIRECT_16,
};
pub use loops::{SMC_BYTES, empty, smc};
pub use rounds::{Cycles, ROUNDS, cycles, repetitions_within, rounds};
