//! Both builds of the reference guest, on every engine and every kind of network: as a server, as a client, and when
//! the other end disappears.
//!
//! The guest runs in its own process, as users run it, so that tests can kill it and see its messages. Tests of
//! features that the machine lacks are skipped with the reason, unless `PARAVANE_REQUIRE` names the feature (`tap`,
//! `passt`). Nothing sleeps: each step waits for a line of the guest or a byte from the network.

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
