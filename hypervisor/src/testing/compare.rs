//! Guests that are played by a test: what they say, and how often they trap.

use std::time::Duration;

use crate::compare::{Machine, Settings, Workload};
use crate::engine::EngineInfo;
use crate::launch::{Config, EngineChoice, Report, TransportChoice};
use crate::ledger::{BatchKind, Cause, Ledger, MARK_BEGIN, MARK_END};
use crate::machine::end::DomainEnd;
use crate::technique::{EngineNeed, TECHNIQUES, Technique};

/// One workload on one machine.
pub fn settings(repeat: usize) -> Settings {
    let machine = Machine {
        mem_bytes: 64 << 20,
        engine: EngineChoice::Auto,
        transport: TransportChoice::Auto,
        deadline: Duration::from_secs(1),
    };
    let workloads = vec![*Workload::named("map-512").unwrap()];
    let techniques = TECHNIQUES.iter().filter(|technique| ["pv", "trap"].contains(&technique.name)).collect();
    Settings {
        workloads,
        techniques,
        baseline: "trap",
        named: false,
        repeat,
        warm_up: 0,
        seed: 1,
        machines: vec![machine],
    }
}

/// A technique for bare kernels that exists in a test only.
pub fn technique(
    name: &'static str,
    engine: EngineNeed,
    available: fn() -> Result<(), String>,
) -> &'static Technique {
    let trap = Technique::named("trap").unwrap();
    let Technique { runs, shadow_frames, own_code, own_frames, device_parameters, make, .. } = *trap;
    let about = "played by a test";
    Box::leak(Box::new(Technique {
        name,
        about,
        runs,
        engine,
        max_vcpus: 1,
        available,
        shadow_frames,
        own_code,
        own_frames,
        device_parameters,
        undebuggable: None,
        make,
        restore: None,
    }))
}

/// The name of the technique that a guest was started with.
pub fn name_of(config: &Config) -> &'static str {
    config.technique.unwrap().name
}

/// A guest that says `line`, and traps `traps` times in `ns`.
pub fn play(mut config: Config, line: &str, cause: Cause, traps: u64, ns: u64) -> Report {
    config.sink.write(line.as_bytes());
    let mut ledger = Ledger::new();
    ledger.mark(MARK_BEGIN, 0);
    for _ in 0..traps {
        ledger.record(cause, 1_000);
    }
    ledger.batch(BatchKind::MmuUpdate, 512);
    ledger.mark(MARK_END, ns);
    Report {
        end: DomainEnd::PowerOff,
        ledger,
        startup: Vec::new(),
        engine: EngineInfo {
            name: "kvm",
            transport: "pio",
            detail: "played".to_owned(),
            ..EngineInfo::default()
        },
        kernel_statistics: vec![("exits".to_owned(), 9_000)],
        last: None,
        memory: None,
        devices: Vec::new(),
        run_ns: ns,
        first_output_ns: None,
        autopsy: None,
        trace: None,
    }
}

/// Whether the paravirtual guest is meant.
pub fn is_pv(config: &Config) -> bool {
    config.image_name.contains("pv")
}

/// What a guest says that succeeded.
pub const GOOD: &str = "bench: name=map-512 ops=512 ok=true unit=page flush-explicit=3 flush-full=0\n";

/// The guests as they are when all is well.
pub fn good(config: Config) -> Result<Report, String> {
    Ok(if is_pv(&config) {
        play(config, GOOD, Cause::Hypercall(1), 3, 50_000)
    } else {
        play(config, GOOD, Cause::PageTableStore, 1_500, 2_000_000)
    })
}
