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
#[path = "../../src/testing/skip.rs"]
mod skip;
mod tap;
mod user;
mod vsock;

use skip::skip;
