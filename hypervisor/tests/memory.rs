//! The host memory that a guest costs beyond its own: a limit in bytes, checked by counting pages.
//!
//! Tests are skipped for engines that this machine lacks.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::path::Path;
use std::process::{Command, Stdio};

use skip::skip;

/// The limit, for the reference guest.
const LIMIT: u64 = 6 << 20;

/// The `memory` object in a run's statistics; `None` if the engine is missing.
fn counted(engine: &str, workload: &str) -> Option<serde_json::Value> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("memory-{}-{engine}-{workload}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(["run", "--engine", engine, "--timeout", "60s", "--cmdline", &format!("bench={workload}")])
        .arg("--stats-json")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {}
        Some(1) => {
            skip(engine, messages.trim());
            return None;
        }
        status => panic!("{engine}, {workload}: status {status:?}, {messages}"),
    }
    let statistics: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let memory = statistics["memory"].clone();
    if memory.is_null() {
        assert!(!Path::new("/proc/self/smaps").exists(), "{statistics}");
        skip("smaps", "this host does not tell how much memory is in use");
        return None;
    }
    Some(memory)
}

#[test]
fn a_guest_costs_less_than_6_mib_beyond_its_own_memory() {
    for engine in ["kvm", "process"] {
        for workload in ["null-call", "map-512", "map-4096"] {
            let Some(memory) = counted(engine, workload) else { continue };
            let bytes = |name: &str| memory[name].as_u64().unwrap();
            let (beyond, program) = (bytes("beyond_guest"), bytes("program"));
            // Unoptimised code is larger than everything else; it uses the same other memory.
            let cost = if cfg!(debug_assertions) { beyond - program } else { beyond };
            assert!(cost < LIMIT, "{engine}, {workload}: {memory}");
            // Shows that the counts work: the guest's image and stack exist, and so does our program.
            assert!(bytes("guest") > 128 << 10 && program > 1 << 20 && beyond > program, "{memory}");
        }
    }
}
