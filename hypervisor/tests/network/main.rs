//! The reference guest, both builds on every engine, on networks of all kinds: what it is asked, what it asks, and what
//! it says when the other end goes away.
//!
//! The guest is a program of its own here, as users run it, so that it can be killed and so that what it says is seen.
//! What a machine lacks is skipped, with the reason; `PARAVANE_REQUIRE` names what must not be (`tap`, `passt`).
//! Nothing sleeps: each step waits for a line of the guest's or a byte of the network.

mod guest;
mod http;
mod icmp;
mod namespace;
mod pair;
mod tap;
mod user;
mod vsock;

use std::fmt::Display;
use std::io::Write;

/// Says that `feature` is not there, past the harness's capture.
fn skip(feature: &str, why: impl Display) {
    let required = std::env::var("PARAVANE_REQUIRE").unwrap_or_default();
    let is_required = required.split([',', ' ']).any(|what| what == feature);
    assert!(!is_required, "broken test: {feature} is required, but {why}");
    let _ = writeln!(std::io::stderr(), "SKIP: {feature}: {why}");
}
