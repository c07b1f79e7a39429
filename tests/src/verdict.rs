//! Verdicts of a test: a skip with its reason, a broken test, or a broken product.
//!
//! A failure says which of the two is broken, so that its reader knows where to look first. Notes that must be seen
//! even if the test passes (a skip, a count) bypass libtest's capture and go to standard error.

use std::fmt::Display;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

#[path = "../../hypervisor/src/testing/skip.rs"]
mod skipping;

/// Prints a note that is visible even if the test passes.
pub fn note(what: impl Display) {
    // If standard error is closed the note is lost; the verdict does not depend on it.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Prints, once for each reason, that tests are skipped because `feature` is missing.
///
/// # Panics
/// If `PARAVANE_REQUIRE` names the feature.
pub fn skip(feature: &str, why: impl Display) {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let skipped = format!("{feature}: {why}");
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&skipped) {
        skipping::skip(feature, why);
        said.push(skipped);
    }
}

/// Fails because of the test itself, or the machine that it runs on.
#[track_caller]
pub fn broken_test(why: impl Display) -> ! {
    panic!("broken test: {why}")
}

/// Fails because of the system under test.
#[track_caller]
pub fn broken_product(why: impl Display) -> ! {
    panic!("broken product: {why}")
}
