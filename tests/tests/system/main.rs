//! The whole system, from an image to the outcome of its guest: every image on every engine of this machine.
//!
//! A failure says whether the product or the test is broken (`paravane_tests::verdict`). No test sleeps or expects
//! something to take a certain time; time limits only end hangs.

mod bare_soup;
mod conformance;
mod devices;
mod digest;
mod endings;
mod fidelity;
mod files;
mod gdb;
mod mistakes;
mod parity;
mod patching;
mod porting;
mod processes;
mod reference;
mod smp;
mod snapshot;
mod soup;
mod techniques;
mod translate;
mod user_mode;
mod user_soup;
mod workloads;
