//! The same work takes the same traps on every engine, because an engine only runs code and maps pages.

use std::collections::BTreeMap;

use paravane::ledger::{Cause, Region};
use paravane::technique::{EngineNeed, TECHNIQUES};
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::machine::engines;
use paravane_tests::verdict::{broken_product, skip};

/// Workloads whose traps do not depend on time. (With timers they do: for a late timer the guest need not wait.)
const TIMELESS: [&str; 4] = ["null-call", "console-4k", "map-512", "address-space"];

/// Traps by cause, without kicks, which the host causes.
fn traps(region: &Region) -> BTreeMap<String, u64> {
    let own = region.exits.iter().filter(|row| row.cause != Cause::Kick);
    own.map(|row| (row.cause.to_string(), row.count)).collect()
}

#[test]
fn the_same_work_takes_the_same_traps() {
    if engines().len() < 2 {
        return skip("two engines", "nothing to compare");
    }
    // A technique that needs no engine, or another, has nothing to be compared with.
    for technique in TECHNIQUES.iter().filter(|technique| technique.engine == EngineNeed::Deprivileged) {
        let name = technique.name;
        for workload in TIMELESS {
            let cmdline = format!("bench={workload}");
            let guest = Guest { technique: Some(technique), ..Guest::new(technique.builtin()) };
            let outcomes = Guest { name, cmdline: &cmdline, mem_bytes: 64 << 20, ..guest }.boot();
            let counts = |o: &Outcome| traps(&o.must_have_done(workload).1);
            let [one, other] = [counts(&outcomes[0]), counts(&outcomes[1])];
            if one != other {
                let engines = outcomes.iter().map(|o| o.engine).collect::<Vec<_>>().join(" and ");
                broken_product(format_args!("{name} {workload} on {engines}:\n{one:#?}\n{other:#?}"));
            }
        }
    }
}
