//! The diagnosis as text.

use std::fmt::{self, Write};

use super::Diagnosis;
use super::devices::Need;
use super::features::Shown;
use super::techniques::Usable;
use super::trial::{Cost, Trial};
use crate::compare::HostFacts;
use crate::ledger::{nanos, nanos_f64};

/// Formats everything.
pub fn text(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, diagnosis);
    out
}

fn write(out: &mut String, d: &Diagnosis) -> fmt::Result {
    let HostFacts { cpu, cpus, virtualized, kernel, clocksource, .. } = &d.host;
    let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "unknown".to_owned());
    let nested = if *virtualized { ", itself virtual" } else { "" };
    writeln!(out, "Host      {} ({cpus} CPUs{nested})", known(cpu))?;
    writeln!(out, "          Linux {}, clock {}", known(kernel), known(clocksource))?;
    writeln!(out, "KVM       {}", d.kvm.detail)?;
    writeln!(out, "Engines")?;
    write_trial(out, &d.auto)?;
    d.engines.iter().try_for_each(|trial| write_trial(out, trial))?;
    if !d.transports.is_empty() {
        writeln!(out, "Transports on KVM")?;
        d.transports.iter().try_for_each(|trial| write_transport(out, trial))?;
    }
    writeln!(out, "Techniques")?;
    d.techniques.iter().try_for_each(|usable| write_usable(out, usable))?;
    if !d.features.is_empty() {
        writeln!(out, "Processor features that guests see")?;
        d.features.iter().try_for_each(|shown| write_shown(out, shown))?;
    }
    writeln!(out, "Devices")?;
    d.devices.iter().try_for_each(|need| write_need(out, need))?;
    write_costs(out, d)?;
    match d.advice.as_slice() {
        [] => writeln!(out, "\nNothing to change."),
        advice => {
            writeln!(out, "\nTo change")?;
            advice.iter().try_for_each(|what| writeln!(out, "  * {what}"))
        }
    }
}

fn write_trial(out: &mut String, trial: &Trial) -> fmt::Result {
    write!(out, "  {:<8}", trial.name)?;
    match (&trial.why_not, trial.engine, trial.transport, &trial.detail) {
        (Some(why), ..) => writeln!(out, "unusable: {why}"),
        (None, Some(engine), Some(transport), Some(detail)) => {
            let engine = if engine == trial.name { String::new() } else { format!("{engine}, ") };
            writeln!(out, "works: {engine}transport {transport}, {detail}")
        }
        _ => writeln!(out, "works"),
    }
}

fn write_transport(out: &mut String, trial: &Trial) -> fmt::Result {
    write!(out, "  {:<8}", trial.name)?;
    match (&trial.why_not, trial.hypercall_ns()) {
        (Some(why), _) => writeln!(out, "unusable: {why}"),
        (None, Some(ns)) => writeln!(out, "works: {} for a hypercall and back", nanos_f64(ns)),
        (None, None) => writeln!(out, "works"),
    }
}

fn write_usable(out: &mut String, usable: &Usable) -> fmt::Result {
    write!(out, "  {:<18} ", usable.name)?;
    match &usable.why_not {
        Some(why) => writeln!(out, "unusable: {why}"),
        None if usable.engines.is_empty() => writeln!(out, "works: without an engine"),
        None => writeln!(out, "works: on {}", usable.engines.join(" and ")),
    }
}

fn write_shown(out: &mut String, shown: &Shown) -> fmt::Result {
    write!(out, "  {:<8}as Xen shows them, with {}", shown.engine, shown.vectors)?;
    match &shown.not_hidden {
        None => writeln!(out),
        Some(more) => writeln!(out, "; CPUID without Xen's prefix also shows {more}"),
    }
}

fn write_need(out: &mut String, need: &Need) -> fmt::Result {
    write!(out, "  {:<10} ", need.option)?;
    match &need.why_not {
        None => writeln!(out, "works: {} is here", need.what),
        Some(why) if need.optional => writeln!(out, "works without {}: {why}", need.what),
        Some(why) => writeln!(out, "unusable: {why}"),
    }
}

/// One column for each engine that works.
fn write_costs(out: &mut String, d: &Diagnosis) -> fmt::Result {
    let working: Vec<&Trial> = d.engines.iter().filter(|t| t.works()).collect();
    let Some(first) = working.first() else { return Ok(()) };
    writeln!(out, "\nWhat it costs here, way in and out and the guest's own part included (means)")?;
    let width = first.costs.iter().map(|cost| cost.what.len()).max().unwrap_or(0);
    write!(out, "  {:width$}", "")?;
    working.iter().try_for_each(|trial| write!(out, " {:>10}", trial.name))?;
    write!(out, "\n  {:width$}", "from the image to the guest's first instruction")?;
    for trial in &working {
        write!(out, " {:>10}", trial.startup_ns.map_or_else(|| "-".to_owned(), nanos))?;
    }
    writeln!(out)?;
    for cost in &first.costs {
        write!(out, "  {:width$}", cost.what)?;
        let costs = working.iter().map(|trial| trial.costs.iter().find(|other| other.what == cost.what));
        for cost in costs {
            let ns = cost.and_then(|cost| cost.ns);
            write!(out, " {:>10}", ns.map_or_else(|| "-".to_owned(), nanos_f64))?;
        }
        writeln!(out)?;
    }
    working.iter().try_for_each(|trial| trial.costs.iter().try_for_each(|cost| write_gap(out, trial, cost)))
}

fn write_gap(out: &mut String, trial: &Trial, cost: &Cost) -> fmt::Result {
    match &cost.why_not {
        Some(why) => writeln!(out, "  on {}, {} was not measured: {why}", trial.name, cost.what),
        None => Ok(()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::{KvmFacts, techniques};
    use super::*;
    use crate::compare::{Outcome, Sample};
    use crate::engine::EngineInfo;
    use crate::ledger::{Cause, Ledger, MARK_BEGIN, MARK_END};

    pub fn host() -> HostFacts {
        HostFacts {
            cpu: Some("A CPU".to_owned()),
            cpus: 2,
            virtualized: false,
            kernel: None,
            kvm_module: Some("kvm_amd"),
            clocksource: None,
            load: Some(0.5),
        }
    }

    /// A trial in which each of ten hypercalls took `ns`.
    pub fn works(name: &'static str, engine: &'static str, ns: f64) -> Trial {
        let mut ledger = Ledger::new();
        ledger.mark(MARK_BEGIN, 0);
        (0..10).for_each(|_| ledger.record(Cause::Hypercall(17), 1));
        ledger.mark(MARK_END, (ns * 10.0) as u64);
        let engine = EngineInfo {
            name: engine,
            transport: "pio",
            detail: "as it is".to_owned(),
            ..EngineInfo::default()
        };
        let outcome = Outcome::parse("bench: name=x ops=10 ok=true", "x").unwrap();
        let sample = Sample {
            outcome,
            region: ledger.region().unwrap(),
            engine,
            whole_traps: 10,
            kernel_statistics: Vec::new(),
            startup_ns: 1_500_000,
        };
        Trial::of(name, &sample)
    }

    fn diagnosis(auto: Trial, engines: Vec<Trial>, transports: Vec<Trial>) -> Diagnosis {
        let kvm = KvmFacts { state: "works", detail: "/dev/kvm works".to_owned() };
        let (host, advice) = (host(), vec!["do this".to_owned()]);
        Diagnosis {
            schema: 1,
            version: "0",
            debug_build: false,
            host,
            kvm,
            auto,
            engines,
            transports,
            techniques: techniques::usable(&[]),
            features: vec![Shown { engine: "process", vectors: "AVX", not_hidden: Some("more".to_owned()) }],
            devices: Vec::new(),
            advice,
        }
    }

    #[test]
    fn engines_stand_side_by_side_with_their_costs() {
        let mut process = works("process", "process", 6e3);
        process.costs[0].why_not = Some("too shy".to_owned());
        let engines = vec![works("kvm", "kvm", 28e3), process];
        let transports = vec![works("pio", "kvm", 27e3), Trial::failed("vmcall", "no such luck".to_owned())];
        let text = text(&diagnosis(works("auto", "process", 6e3), engines, transports));
        for part in [
            "  auto    works: process, transport pio, as it is\n",
            "  kvm     works: transport pio, as it is\n",
            "  pio     works: 27.0 us for a hypercall and back\n",
            "  vmcall  unusable: no such luck\n",
            "  * do this\n",
            "  process as Xen shows them, with AVX; CPUID without Xen's prefix also shows more\n",
            "on process, a hypercall was not measured: too shy",
        ] {
            assert!(text.contains(part), "{part:?} missing in:\n{text}");
        }
        let row = text.lines().find(|l| l.trim_start().starts_with("a hypercall ")).unwrap();
        assert!(row.split_whitespace().skip(2).eq(["28.0", "us", "6.00", "us"]), "{row}");
    }

    #[test]
    fn devices_say_what_they_lack() {
        let need = |why: Option<&str>, optional| Need {
            option: "--x",
            what: "it",
            why_not: why.map(str::to_owned),
            optional,
        };
        let mut d = diagnosis(works("auto", "kvm", 6e3), Vec::new(), Vec::new());
        d.devices = vec![need(None, false), need(Some("gone"), true), need(Some("gone"), false)];
        let all = "Devices\n  --x        works: it is here\n  --x        works without it: gone\n  --x        unusable: gone\n";
        assert!(text(&d).contains(all), "{}", text(&d));
    }

    #[test]
    fn what_does_not_work_has_no_costs() {
        let failed = |name| Trial::failed(name, "no way".to_owned());
        let text = text(&diagnosis(failed("auto"), vec![failed("kvm"), failed("process")], Vec::new()));
        assert!(text.contains("process unusable: no way") && !text.contains("What it costs"));
    }
}
