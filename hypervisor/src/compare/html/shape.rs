//! Whether a recorded result has what the page's script reads. A script that meets something else stops in the middle,
//! and the page says nothing of it.
//!
//! What may not be done here: asking for more than is read, so that results of older versions can be shown.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A recorded result does not have what a page is made of.
#[derive(Debug, thiserror::Error)]
#[error("no page can be made of it: {0}; measure again with this version")]
pub struct ShapeError(#[from] serde_json::Error);

/// Looks for what the script reads.
///
/// # Errors
/// The first thing that is missing, or of another type.
pub fn check(result: &Value) -> Result<(), ShapeError> {
    Facts::deserialize(result)?;
    match result.get("engines") {
        Some(engines) => drop(Vec::<Engine>::deserialize(engines)?),
        None => drop(Engine::deserialize(result)?),
    }
    Ok(())
}

/// Members of which no more than their presence and their type is of interest.
macro_rules! members {
    ($($(#[$about:meta])* $name:ident { $($member:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "what is read is the type")]
        struct $name {
            $($member: $type,)*
        }
    )*};
}

members! {
    /// What is said of the whole result.
    Facts {
        version: String,
        notes: Option<Vec<String>>,
        host: Host,
    }
    Host {
        cpus: f64,
    }
    Engine {
        asked: String,
        engine: Option<EngineFacts>,
        mem_bytes: f64,
        busy_poll_us: f64,
        abouts: Option<BTreeMap<String, String>>,
        unavailable: Option<Vec<NotHere>>,
        workloads: Vec<Workload>,
    }
    EngineFacts {
        name: String,
        transport: String,
        detail: String,
    }
    NotHere {
        technique: String,
        why: String,
    }
    Workload {
        name: String,
        about: String,
        kind: String,
        problems: Option<Vec<String>>,
        skipped: Option<Vec<String>>,
        native: Option<Cycles>,
        native_program: Option<NativeRun>,
        native_missing: Option<String>,
        techniques: BTreeMap<String, Technique>,
    }
    NativeRun {
        ops: f64,
        ns: f64,
    }
    Cycles {
        median: f64,
        min: f64,
    }
    Technique {
        ops: f64,
        traps: f64,
        ns: f64,
        host_ns: f64,
        cycles: Option<Cycles>,
        exits: Vec<ExitRow>,
        batches: Vec<Batch>,
        work: Option<Vec<Work>>,
        flushes: Option<BTreeMap<String, f64>>,
        spread: Option<Spread>,
        runs: Vec<Run>,
    }
    ExitRow {
        cause: String,
        group: String,
        count: f64,
        ns: f64,
        avg_ns: f64,
        p50_ns: f64,
        p90_ns: f64,
        p99_ns: f64,
        max_ns: f64,
        histogram: Vec<(f64, f64)>,
    }
    Batch {
        kind: String,
        batches: f64,
        requests: f64,
        median: f64,
        max: f64,
        histogram: Vec<(f64, f64)>,
    }
    Work {
        kind: String,
        count: f64,
    }
    Spread {
        median: f64,
        low: f64,
        high: f64,
        confidence: f64,
        min: f64,
        max: f64,
        outliers: Vec<usize>,
    }
    Run {
        traps: f64,
        ns: f64,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result() -> Value {
        let technique = json!({
            "ops": 1, "traps": 2, "ns": 3, "host_ns": 1, "batches": [], "runs": [{"traps": 2, "ns": 3}],
            "exits": [{"cause": "c", "group": "g", "count": 2, "ns": 3, "avg_ns": 1.5, "p50_ns": 1, "p90_ns": 1,
                "p99_ns": 2, "max_ns": 2, "histogram": [[1, 1], [2, 1]]}],
        });
        json!({
            "schema": 1, "version": "0", "debug_build": false, "host": {"cpus": 2}, "notes": [], "asked": "auto",
            "engine": null, "mem_bytes": 1, "busy_poll_us": 1,
            "workloads": [{"name": "w", "about": "", "kind": "job", "techniques": {"pv": technique}}],
        })
    }

    #[test]
    fn what_a_page_shows_has_to_be_there() {
        check(&result()).unwrap();
        let mut side_by_side = result();
        side_by_side["engines"] = json!([result()]);
        check(&side_by_side).unwrap();
        side_by_side["engines"] = json!([{}]);
        assert!(check(&side_by_side).unwrap_err().to_string().contains("missing field `asked`"));
        for member in ["ops", "exits", "batches", "runs"] {
            let mut lacking = result();
            lacking["workloads"][0]["techniques"]["pv"].as_object_mut().unwrap().remove(member);
            assert!(check(&lacking).unwrap_err().to_string().contains(member), "{member}");
        }
        for not_one in [json!({}), json!(null), json!({"engines": 1})] {
            assert!(check(&not_one).is_err());
        }
    }
}
