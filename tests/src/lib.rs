//! What the whole-system tests share: guests, ways to boot them, and the verdicts of tests.
//!
//! The tests themselves are in `tests/tests/`. `system` boots guests on every engine that this machine has; the others
//! examine images, or boot them on a real Xen. They use the hypervisor as a library, so that a test sees the report of
//! a run. Tests of the `paravane` program itself are in `hypervisor/tests/`.
//!
//! # Principles
//!
//! 1. **Every test runs on every engine.** [`machine`] lists them; a guest prints the same on each.
//! 2. **Nothing is skipped silently**: a line says `SKIP`, what and why, and `PARAVANE_REQUIRE` makes it a failure.
//! 3. **A failure says what is broken**: the test or the product ([`verdict`]).
//! 4. **Random tests can be repeated**: they print their seeds, and take seeds from the environment.
//!
//! # Map
//!
//! | Module | What |
//! | --- | --- |
//! | [`machine`] | the engines and transports that tests use |
//! | [`boot`] | boots an image with a time limit, and records its output and how it ended |
//! | [`guests`] | the images of the test guests in `tests/guests/` |
//! | [`images`] | minimal kernels, made from a few bytes of machine code |
//! | [`soup`] | kernels of random hypercalls and instructions, from a seed of [`random`] |
//! | [`verdict`] | skip, broken test, broken product |

pub mod boot;
pub mod guests;
pub mod images;
pub mod machine;
pub mod machine_soup;
pub mod random;
pub mod soup;
pub mod verdict;
