//! How a unit test says that this machine lacks what it needs.

use std::fmt::Display;
use std::io::Write;

/// Names a variable with a list, separated by commas or spaces, of what must not be skipped.
const REQUIRE: &str = "PARAVANE_REQUIRE";

/// Past the harness's capture, as a skip must not look like a pass; and a failure where `PARAVANE_REQUIRE` names the
/// feature.
#[track_caller]
pub(crate) fn skip(feature: &str, why: impl Display) {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    assert!(!required.split([',', ' ']).any(|what| what == feature), "{feature} is required, but {why}");
    let _ = writeln!(std::io::stderr(), "SKIP: {feature}: {why}");
}
