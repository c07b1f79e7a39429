//! `paravane doctor`: what this machine offers for running guests, what it costs, and what to change.
//!
//! It looks, and boots the built-in guests on each engine; it changes nothing.

mod advice;
mod devices;
mod features;
mod kvm;
mod techniques;
mod text;
mod trial;

use serde::Serialize;

use self::devices::Need;
use self::features::Shown;
use self::kvm::KvmState;
use self::techniques::Usable;
use self::trial::Trial;
use super::{print, status};
use crate::compare::HostFacts;
use crate::launch::EngineChoice;

const HELP: &str = "\
It takes a second or two: the built-in guests are booted on each engine to measure what exits cost here.

Exit status: 0 if guests can run here, 1 if not.";

/// Arguments of `paravane doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that was found out.
#[derive(Clone, Debug, Serialize)]
struct Diagnosis {
    /// Version of this shape.
    schema: u32,
    version: &'static str,
    /// Whether this program was built without optimization: its times then mean little.
    debug_build: bool,
    host: HostFacts,
    kvm: KvmFacts,
    /// What `--engine auto` takes, and why.
    auto: Trial,
    /// Each engine, asked for by name.
    engines: Vec<Trial>,
    /// The ways into the host on KVM.
    transports: Vec<Trial>,
    /// The techniques, and where they work.
    techniques: Vec<Usable>,
    /// What guests see of the processor.
    features: Vec<Shown>,
    /// What guests' devices need.
    devices: Vec<Need>,
    /// What to change.
    advice: Vec<String>,
}

/// The device, apart from what can be done with it.
#[derive(Clone, Debug, Serialize)]
struct KvmFacts {
    state: &'static str,
    detail: String,
}

/// Looks, tries and reports; the exit status of the process.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let diagnosis = diagnose();
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&diagnosis)?))?;
    } else {
        print(&text::text(&diagnosis))?;
    }
    let usable = diagnosis.engines.iter().any(Trial::works);
    Ok(if usable { 0 } else { status::HOST_ERROR })
}

fn diagnose() -> Diagnosis {
    let kvm = KvmState::probe();
    let host = HostFacts::gather();
    let auto = trial::automatic();
    let engines = vec![trial::engine(EngineChoice::Kvm), trial::engine(EngineChoice::Process)];
    let transports =
        if engines.iter().any(|t| t.name == "kvm" && t.works()) { trial::transports() } else { Vec::new() };
    let advice = advice::advice(&host, &kvm, &auto, &engines, &transports);
    let detail = match kvm {
        KvmState::Absent => kvm.to_string(),
        _ => format!("{kvm}: {}", kvm::kind(host.kvm_module)),
    };
    Diagnosis {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        debug_build: cfg!(debug_assertions),
        host,
        kvm: KvmFacts { state: kvm.id(), detail },
        auto,
        techniques: techniques::usable(&engines),
        features: features::shown(&engines),
        engines,
        transports,
        devices: devices::needs(),
        advice,
    }
}
