//! What became of a test: success, a skip that says why, a broken test, or a broken product.
//!
//! A failure says which of the two it is, so that whoever reads it knows where to look first. What must be seen
//! although the test passed (a skip, a count) goes around libtest's capture, to standard error.

use std::fmt::Display;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

#[path = "../../hypervisor/src/testing/skip.rs"]
mod skipping;

/// Says something that is to be seen even if the test passes.
pub fn note(what: impl Display) {
    // A closed standard error loses the note; the verdict does not depend on it.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Says that `feature` is not there and that what needs it is skipped, once for each reason.
///
/// # Panics
/// When `PARAVANE_REQUIRE` names the feature.
pub fn skip(feature: &str, why: impl Display) {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let skipped = format!("{feature}: {why}");
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&skipped) {
        skipping::skip(feature, why);
        said.push(skipped);
    }
}

/// The test itself, or the machine that it runs on, is not as it must be.
#[track_caller]
pub fn broken_test(why: impl Display) -> ! {
    panic!("broken test: {why}")
}

/// The system under test did what it must not.
#[track_caller]
pub fn broken_product(why: impl Display) -> ! {
    panic!("broken product: {why}")
}
