//! What the whole-system tests share: guests, ways to boot them, and words for what became of a test.
//!
//! The tests themselves are in `tests/tests/`: `system` boots guests on every engine that this machine has, the others look
//! at images, or at a real Xen. They use the hypervisor as a library, so that a test sees a run's report; what needs the
//! program itself is in `hypervisor/tests/`.
//!
//! # Principles
//!
//! 1. **Every engine, every test.** [`machine`] has the list; what a guest prints must not depend on it.
//! 2. **Nothing is skipped in silence**: a line says `SKIP`, what and why, and `PARAVANE_REQUIRE` makes it a failure.
//! 3. **A failure says whose it is**: the test's or the product's ([`verdict`]).
//! 4. **Random means repeatable**: seeds are printed, and can be given.
//!
//! # Map
//!
//! | Module | What |
//! | --- | --- |
//! | [`machine`] | the engines and transports that tests use |
//! | [`boot`] | boots an image, with a limit of time, and keeps what it printed and how it ended |
//! | [`guests`] | the test guests' images, whose source is `tests/guests/` |
//! | [`images`] | the smallest kernels, made of bytes |
//! | [`soup`] | kernels that do nearly anything, from a seed of [`random`] |
//! | [`verdict`] | success, skip, broken test, broken product |

pub mod boot;
pub mod guests;
pub mod images;
pub mod machine;
pub mod random;
pub mod soup;
pub mod verdict;
