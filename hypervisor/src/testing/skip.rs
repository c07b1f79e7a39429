//! How a test says that this machine lacks what it needs. The tests of the program have this file too, by its path:
//! it must not use the rest of the crate, and what is not for tests does not belong here.

use std::fmt::Display;
use std::io::Write;

/// Names a variable with a list, separated by commas or spaces, of what must not be skipped.
const REQUIRE: &str = "PARAVANE_REQUIRE";

/// Past the harness's capture, as a skip must not look like a pass; and a failure where `PARAVANE_REQUIRE` names the
/// feature.
#[track_caller]
pub(crate) fn skip(feature: &str, why: impl Display) {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    let is_required = required.split([',', ' ']).any(|what| what == feature);
    assert!(!is_required, "broken test: {feature} is required, but {why}");
    let _ = writeln!(std::io::stderr(), "SKIP: {feature}: {why}");
}
