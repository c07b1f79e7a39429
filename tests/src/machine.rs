//! The engines and transports that tests boot guests on: those of this machine, or those that the environment names.
//!
//! * `PARAVANE_ENGINES`: names of engines, separated by commas or blanks. Only these are used, and all of them must
//!   work here. Techniques that need no engine are then left out.
//! * `PARAVANE_TRANSPORT`: the transport on KVM. The process engine has only one and ignores this.
//!
//! An unknown name fails the test, so that no run silently tests something else than it was asked to.

use std::sync::OnceLock;

use paravane::engine::kvm::{HostKind, host_kind};
use paravane::launch::{EngineChoice, RunError, TransportChoice};
use paravane::technique::{EngineNeed, Technique};

use crate::boot::Guest;
use crate::guests::HELLO;
use crate::verdict::{broken_test, skip};

const ENGINES: &str = "PARAVANE_ENGINES";
const TRANSPORT: &str = "PARAVANE_TRANSPORT";

/// All engines.
const ALL: [EngineChoice; 2] = [EngineChoice::Kvm, EngineChoice::Process];

/// The engines that guests are booted on. Each one that this machine lacks is reported once as skipped.
pub fn engines() -> &'static [EngineChoice] {
    static AVAILABLE: OnceLock<Vec<EngineChoice>> = OnceLock::new();
    AVAILABLE.get_or_init(|| {
        let asked = std::env::var(ENGINES).ok();
        let wanted = asked.as_deref().map_or_else(|| Ok(ALL.to_vec()), named);
        let wanted = wanted.unwrap_or_else(|why| broken_test(format_args!("{ENGINES}: {why}")));
        if wanted.contains(&EngineChoice::Kvm) {
            say_which_kvm();
        }
        let available = |engine: &EngineChoice| match Guest::new(HELLO).boot_on(*engine) {
            Err(RunError::Engine(why)) if asked.is_some() => {
                broken_test(format_args!("{ENGINES} has {}: {why}", engine.name()))
            }
            Err(RunError::Engine(why)) => {
                skip(engine.name(), why);
                false
            }
            // The tests find any other error.
            _ => true,
        };
        wanted.into_iter().filter(available).collect()
    })
}

/// The engines that a guest is booted on by `technique`: those of [`engines`] that offer what it needs. A technique that
/// this machine lacks is reported as skipped.
pub fn engines_for(technique: &Technique) -> Vec<EngineChoice> {
    if let Err(why) = (technique.available)() {
        let feature = match technique.engine {
            EngineNeed::Ring0(_) => "hardware-kvm",
            EngineNeed::Deprivileged | EngineNeed::Nothing => technique.name,
        };
        skip(feature, format_args!("{}: {why}", technique.name));
        return Vec::new();
    }
    match technique.engine {
        EngineNeed::Deprivileged => engines().to_vec(),
        EngineNeed::Ring0(_) => engines().iter().copied().filter(|e| *e == EngineChoice::Kvm).collect(),
        // Where engines were named, they are what is tested: interpreting in an emulated machine takes for ever.
        EngineNeed::Nothing if std::env::var_os(ENGINES).is_some() => Vec::new(),
        EngineNeed::Nothing => vec![EngineChoice::Auto],
    }
}

/// The transport for guests on `engine` by `technique`.
pub fn transport_for(technique: Option<&Technique>, engine: EngineChoice) -> TransportChoice {
    let has_transports = technique.is_none_or(|technique| technique.engine == EngineNeed::Deprivileged);
    if has_transports { transport(engine) } else { TransportChoice::Auto }
}

/// The transport for guests on `engine`.
fn transport(engine: EngineChoice) -> TransportChoice {
    let asked = std::env::var(TRANSPORT).unwrap_or_default();
    let choice = match asked.as_str() {
        "" | "auto" => TransportChoice::Auto,
        "pio" => TransportChoice::Pio,
        "vmcall" => TransportChoice::Vmcall,
        other => broken_test(format_args!("{TRANSPORT}: there is no transport {other:?}")),
    };
    if engine == EngineChoice::Process { TransportChoice::Auto } else { choice }
}

/// Reports whether KVM has hardware support here: a machine can test KVM either with or without it.
fn say_which_kvm() {
    match host_kind() {
        HostKind::Hardware => {}
        HostKind::Software => skip("hardware-kvm", "the KVM of this machine is in software"),
        HostKind::Absent => skip("hardware-kvm", "/dev/kvm cannot be used here"),
    }
}

fn named(names: &str) -> Result<Vec<EngineChoice>, String> {
    let words = names.split([',', ' ']).filter(|word| !word.is_empty());
    let engine = |word: &str| {
        let found = ALL.into_iter().find(|engine| engine.name() == word);
        found.ok_or_else(|| format!("there is no engine {word:?}"))
    };
    let engines = words.map(engine).collect::<Result<Vec<_>, _>>()?;
    if engines.is_empty() { Err("it names no engine".to_owned()) } else { Ok(engines) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_found_by_name() {
        assert_eq!(named("kvm"), Ok(vec![EngineChoice::Kvm]));
        assert_eq!(named("process, kvm"), Ok(vec![EngineChoice::Process, EngineChoice::Kvm]));
    }

    #[test]
    fn a_list_that_would_test_nothing_is_refused() {
        for names in ["", " , ", "kvn", "kvm,auto"] {
            assert!(named(names).is_err(), "{names:?}");
        }
    }
}
