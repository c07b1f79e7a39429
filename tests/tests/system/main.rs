//! The whole system, from an image to what its guest did: every image on every engine that is there.
//!
//! A failure says whether the product or the test is broken (`paravane_tests::verdict`). Nothing here sleeps or
//! knows how long something takes; deadlines only keep a hang from lasting.

mod conformance;
mod devices;
mod endings;
mod files;
mod parity;
mod reference;
mod soup;
mod user_soup;
mod workloads;
