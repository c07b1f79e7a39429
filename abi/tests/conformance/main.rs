//! Compares every number of the crate with Xen's public headers.
//!
//! Each number of the crate is listed once, in `constants.rs` and `structures.rs`, or has its C name already
//! (hypercalls, features, errors). A C program is generated from the list, prints the headers' values, and the two
//! are compared. `completeness.rs` checks that the list is complete.

mod completeness;
mod constants;
mod fact;
mod headers;
mod structures;

use fact::Fact;
use paravane_abi::{Errno, features, hypercall};
use std::io::Write as _;

/// The environment variable that lists, separated by commas or spaces, what must not be skipped.
const REQUIRE: &str = "PARAVANE_REQUIRE";

/// Facts that need no list, because tables of the crate hold the C names.
fn named() -> Vec<Fact> {
    let hypercalls = (0..hypercall::PARAVANE_VIRTIO_OP).filter_map(|number| {
        let name = hypercall::name(number)?;
        Some(Fact::new(format!("hypercall {name}"), number, format!("__HYPERVISOR_{name}")))
    });
    let features = (0..32 * features::XENFEAT_NR_SUBMAPS).filter_map(|bit| {
        let name = features::feature_name(bit)?;
        Some(Fact::new(format!("feature {name}"), bit, format!("XENFEAT_{name}")))
    });
    let errors = (1..4096).filter_map(|code| {
        let (Err(error), value) = (Errno::from_result(-code), code) else { return None };
        let name = error.name()?;
        Some(Fact::new(format!("error {name}"), value, format!("XEN_{name}")))
    });
    let renamed = [Fact::new("hypercall::ARCH_7".into(), hypercall::ARCH_7, "__HYPERVISOR_arch_7".into())];
    let aliases = [("EWOULDBLOCK", Errno::EWOULDBLOCK), ("EDEADLOCK", Errno::EDEADLOCK)]
        .map(|(name, error)| Fact::new(format!("error {name}"), error.code(), format!("XEN_{name}")));
    hypercalls.chain(features).chain(errors).chain(aliases).chain(renamed).collect()
}

fn all() -> Vec<Fact> {
    [named(), constants::facts(), structures::facts()].into_iter().flatten().collect()
}

#[test]
fn says_what_xens_headers_say() {
    let facts = all();
    let values = match headers::evaluate(&facts) {
        Ok(values) => values,
        Err(headers::Error::Missing(reason)) => {
            let required = std::env::var(REQUIRE).unwrap_or_default();
            assert!(
                !required.split([',', ' ']).any(|what| what == "xen-headers"),
                "{REQUIRE}={required}, but {reason}"
            );
            let _ = writeln!(std::io::stderr(), "SKIP: {reason}");
            return;
        }
        Err(headers::Error::Failed(reason)) => panic!("{reason}"),
    };
    assert_eq!(
        values.len(),
        facts.len(),
        "the C program printed another number of facts than it was asked for"
    );
    let wrong: Vec<String> = facts
        .iter()
        .zip(&values)
        .filter(|(fact, value)| fact.value != **value)
        .map(|(fact, value)| {
            format!("{}: {} here, {value} in Xen's headers ({})", fact.claim, fact.value, fact.c)
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} facts differ:\n{}", wrong.len(), facts.len(), wrong.join("\n"));
    println!("compared {} facts", facts.len());
}
