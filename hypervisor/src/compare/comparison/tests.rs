//! The comparison on guests that are played by the test.

use std::cell::Cell;

use super::*;
use crate::compare::{Kind, Progress, RunFigures, Saving, View, WORKLOADS, compare, text};
use crate::engine::EngineInfo;
use crate::launch::{Config, EngineChoice, Report};
use crate::ledger::{Cause, PrivOp};
use crate::machine::end::DomainEnd;
use crate::testing::compare::{GOOD, good, is_pv, name_of, play, settings, technique};
use crate::virtio::DeviceStops;

/// The comparison on the one machine of `settings`.
fn compare_one(
    settings: &Settings,
    boot: impl FnMut(Config) -> Result<Report, String>,
    on_progress: impl FnMut(Progress),
) -> Comparison {
    let [comparison] = compare(settings, boot, on_progress).try_into().unwrap();
    comparison
}

/// In a pipe, in detail.
const VIEW: View = View { details: true, width: 120 };

#[test]
fn what_is_saved() {
    let result = compare_one(&settings(1), good, |_| {});
    assert!(result.ok());
    let workload = &result.workloads[0];
    assert_eq!(workload.traps_saved, Some(Saving { saved: 1_497, percent: Some(99.8) }));
    assert_eq!(workload.time_saved, Some(Saving { saved: 1_950_000, percent: Some(97.5) }));
}

#[test]
fn the_json_shape() {
    let json = serde_json::to_value(compare_one(&settings(1), good, |_| {})).unwrap();
    assert!(json["host"]["cpus"].as_u64() >= Some(1));
    assert_eq!(json["engine"]["name"], "kvm");
    let workload = &json["workloads"][0];
    assert_eq!(workload["name"], "map-512");
    let pv = &workload["techniques"]["pv"];
    assert_eq!(
        (&pv["ops"], &pv["traps"], &pv["ns"], &pv["ok"]),
        (&512.into(), &3.into(), &50_000.into(), &true.into())
    );
    assert_eq!(pv["exits"][0]["cause"], "hypercall mmu_update");
    assert_eq!(pv["batches"][0]["requests"], 512);
    assert_eq!(pv["flushes"], serde_json::json!({"explicit": 3, "full": 0}));
    assert_eq!(pv["whole"], serde_json::json!({"traps": 3, "kernel_statistics": [["exits", 9_000]]}));
    let trap = &workload["techniques"]["trap"]["exits"][0];
    assert_eq!(
        (&trap["count"], &trap["p50_ns"], &trap["p90_ns"], &trap["p99_ns"]),
        (&1_500.into(), &1_000.into(), &1_000.into(), &1_000.into())
    );
    assert_eq!(workload["traps_saved"]["saved"], 1_497);
    assert_eq!(json["notes"].as_array().unwrap().len(), NOTES.len());
}

#[test]
fn the_median_is_a_run_that_took_place() {
    let mut times = [900, 100, 400, 700].into_iter();
    let boot = |config: Config| {
        let ns = if is_pv(&config) { times.next().unwrap() } else { 5 };
        Ok(play(config, GOOD, Cause::Kick, ns / 100, ns))
    };
    let progress = Cell::new(0);
    let result = compare_one(&settings(4), boot, |p| {
        assert_eq!((p.done, p.total), (progress.get(), 8));
        progress.set(p.done + 1);
    });
    assert_eq!(progress.get(), 8);
    let (name, pv) = &result.workloads[0].techniques[0];
    assert_eq!((*name, pv.ns, pv.traps, pv.runs.len()), ("pv", 400, 4, 4));
    assert_eq!(pv.runs[0], RunFigures { traps: 9, ns: 900, host_ns: 9_000, cycles: None });
    assert!(result.workloads[0].time_saved.unwrap().saved < 0, "a loss is shown as one");
}

/// What follows what in the order of its boots.
fn boots(settings: &Settings) -> Vec<String> {
    let mut order = Vec::new();
    compare_one(settings, good, |p| order.push(format!("{} {}", p.workload, p.technique)));
    order
}

#[test]
fn the_order_is_by_chance_and_the_seed_gives_it_again() {
    let mut settings = settings(4);
    settings.workloads = WORKLOADS.iter().filter(|w| w.name.starts_with("map-")).copied().collect();
    let order = boots(&settings);
    assert_eq!(order, boots(&settings));
    assert_ne!(order, boots(&Settings { seed: 2, ..settings.clone() }));
    for repetition in order.chunks(4) {
        let mut once = repetition.to_vec();
        once.sort_unstable();
        assert_eq!(once, ["map-4096 pv", "map-4096 trap", "map-512 pv", "map-512 trap"]);
    }
    assert!(order.chunks(4).any(|repetition| repetition != &order[..4]), "{order:?}");
}

#[test]
fn a_warm_up_does_not_count() {
    let mut times = [9_000, 100, 200, 300].into_iter();
    let boot = |config: Config| {
        let ns = if is_pv(&config) { times.next().unwrap() } else { 5 };
        Ok(play(config, GOOD, Cause::Kick, 1, ns))
    };
    let result = compare_one(&Settings { warm_up: 1, ..settings(3) }, boot, |p| assert_eq!(p.total, 8));
    let (_, pv) = &result.workloads[0].techniques[0];
    let spread = pv.spread.as_ref().unwrap();
    assert_eq!((pv.ns, pv.runs.len(), spread.max, spread.confidence), (200, 3, 300.0, 0.75));
    assert!(text(&result, &VIEW).contains("median of 3 runs after 1 that do not count"));
}

#[test]
fn one_failure_spoils_the_workload_but_not_the_report() {
    let lines = [
        ("bench: name=map-512 ops=0 ok=false why=two frames swapped\n", "failed: two frames swapped"),
        ("bench: name=map-512 ops=511 ok=true\n", "not comparable"),
        ("panic: oh\x1b[2J no\n", "no `bench:` line"),
    ];
    for (line, problem) in lines {
        let boot = |config: Config| {
            if is_pv(&config) {
                Ok(play(config, line, Cause::PrivilegedInstruction(PrivOp::Cli), 1, 1))
            } else {
                good(config)
            }
        };
        let result = compare_one(&settings(2), boot, |_| {});
        let workload = &result.workloads[0];
        assert!(!result.ok() && workload.traps_saved.is_none(), "{line}");
        assert_eq!(workload.problems.len(), 1, "the same problem twice is said once");
        assert!(workload.problems[0].contains(problem), "{}", workload.problems[0]);
        assert!(text(&result, &VIEW).contains(problem));
    }
}

#[test]
fn what_lacks_a_device_is_skipped_and_nothing_else_is_spoilt() {
    let lacking = |config: Config| {
        if is_pv(&config) {
            return good(config);
        }
        Ok(play(config, "skip: name=map-512 why=no-such-device\n", Cause::Kick, 1, 1))
    };
    let result = compare_one(&settings(2), lacking, |_| {});
    let workload = &result.workloads[0];
    assert_eq!(workload.skipped, ["trap: the guest lacks a device for it: no-such-device"]);
    assert!(result.ok() && workload.traps_saved.is_none() && workload.techniques.len() == 1);
    assert!(
        text(&result, &VIEW)
            .contains("map-512: not by trap: the guest lacks a device for it: no-such-device")
    );
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["workloads"][0]["skipped"].as_array().unwrap().len(), 1);
}

#[test]
fn a_workload_is_given_what_it_needs() {
    let mut settings = settings(1);
    for (prefix, kinds) in [("net-", &[1][..]), ("block-", &[2]), ("console-virtio-", &[3]), ("map-", &[])] {
        settings.workloads = WORKLOADS.iter().filter(|w| w.name.starts_with(prefix)).copied().collect();
        let given = Cell::new(0);
        let boot = |config: Config| {
            assert_eq!(config.devices.iter().map(|d| d.info().kind).collect::<Vec<_>>(), kinds);
            given.set(given.get() + 1);
            good(config)
        };
        compare_one(&settings, boot, |_| {});
        assert_eq!(given.get(), 2 * settings.workloads.len());
    }
}

#[test]
fn different_engines_are_not_compared() {
    let boot = |config: Config| {
        let name = if is_pv(&config) { "process" } else { "kvm" };
        let report = good(config)?;
        let engine = EngineInfo { name, ..report.engine };
        Ok(Report { engine, ..report })
    };
    let result = compare_one(&settings(1), boot, |_| {});
    let workload = &result.workloads[0];
    assert_eq!(workload.problems, ["pv ran on engine process, trap on kvm: not comparable"]);
    assert!(!workload.ok && workload.time_saved.is_none() && workload.techniques.len() == 2);
}

#[test]
fn a_device_that_stopped_is_a_problem_whatever_the_guest_says() {
    let stopped = |config: Config| {
        let mut report = good(config)?;
        let last = Some("queue 0: the available index runs ahead of the ring".to_owned());
        for (n, stops) in [0, 2].into_iter().enumerate() {
            report.devices.push(DeviceStops {
                device: format!("rng {n}"),
                stops,
                last: last.clone(),
                untold: 0,
            });
        }
        Ok(report)
    };
    let result = compare_one(&settings(2), stopped, |_| {});
    let said = ["pv", "trap"].map(|technique| {
        format!(
            "{technique}: the guest broke the rules of rng 1, which stopped: queue 0: the available index runs \
             ahead of the ring"
        )
    });
    assert_eq!(result.workloads[0].problems, said);
    assert!(!result.ok() && result.workloads[0].techniques.is_empty());
}

#[test]
fn a_guest_that_fails_and_crashes_is_believed_its_reason() {
    let failed = |config: Config| {
        let line = "bench: name=map-512 ops=0 ok=false why=two frames swapped\n";
        let report = play(config, line, Cause::Kick, 1, 1);
        Ok(Report { end: DomainEnd::GuestCrash, ..report })
    };
    let result = compare_one(&settings(1), failed, |_| {});
    assert!(result.workloads[0].problems[0].contains("failed: two frames swapped"));
}

#[test]
fn ends_and_errors_of_the_host_are_problems() {
    let crashed = |config: Config| {
        let report = play(config, "one\ntwo\x1b[2J\n", Cause::Kick, 1, 1);
        Ok(Report { end: DomainEnd::GuestCrash, ..report })
    };
    let result = compare_one(&settings(1), crashed, |_| {});
    assert!(
        result.workloads[0].problems[0].contains(r"the guest crashed; its last words: one / two\u{1b}[2J")
    );
    let result = compare_one(&settings(1), |_| Err("no /dev/kvm".to_owned()), |_| {});
    assert!(result.workloads[0].problems[0].contains("no /dev/kvm"));
    assert!(result.engine.is_none() && result.workloads[0].techniques.is_empty());
}

#[test]
fn the_text_shows_what_matters() {
    let result = compare_one(&settings(3), good, |_| {});
    let text = text(&result, &VIEW);
    for part in [
        "map-512",
        "99.80%",
        "2.00 ms",
        "97.50%",
        "page-table store",
        "entries per mmu_update",
        "pv: flushes of the guest's queue, by reason as it says: explicit 3\n",
        "trap: in the whole boot 1500 exits reached us, and the host's kernel counted 9000\n",
    ] {
        assert!(text.contains(part), "{part:?} missing in:\n{text}");
    }
}

/// Three techniques more: on the same engine, on none, and one that this host lacks.
fn four_more() -> Settings {
    let mut settings = settings(1);
    let lacking = || Err("no such hardware".to_owned());
    settings.techniques.extend([
        technique("translate", EngineNeed::Deprivileged, || Ok(())),
        technique("interpret", EngineNeed::Nothing, || Ok(())),
        technique("hvm", EngineNeed::Ring0(crate::engine::Irqchip::Monitor), lacking),
    ]);
    settings
}

/// As good as their names.
fn each_its_own(config: Config) -> Result<Report, String> {
    match name_of(&config) {
        "translate" => Ok(play(config, GOOD, Cause::TranslateMiss, 20, 1_000_000)),
        "interpret" => {
            assert_eq!(config.engine, EngineChoice::Auto, "it runs on none of those that can be asked for");
            let report = play(config, GOOD, Cause::Kick, 0, 3_000_000);
            let engine = EngineInfo { name: "none", detail: "interpreted".to_owned(), ..report.engine };
            Ok(Report { engine, ..report })
        }
        _ => good(config),
    }
}

#[test]
fn techniques_are_read_in_the_order_of_history_and_none_is_missing() {
    let mut settings = four_more();
    settings.machines[0].engine = EngineChoice::Kvm;
    let result = compare_one(&settings, each_its_own, |_| {});
    let view = View { details: false, width: 120 };
    let text = text(&result, &view);
    let title = text.lines().find(|line| line.contains("interpret") && line.contains("trap")).unwrap();
    assert_eq!(title.split_whitespace().collect::<Vec<_>>(), ["interpret", "trap", "translate", "pv"]);
    let row = text.lines().find(|line| line.starts_with("map-512 ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, ["map-512", "1.5", "0", "2.00", "ms", "1500", "0.50", "20", "0.03", "3"]);
    for part in ["hvm: not on this host: no such hardware", "interpret: on none: interpreted", "--details"] {
        assert!(text.contains(part), "{part:?} missing in:\n{text}");
    }
    assert!(result.ok(), "nobody named what is missing");
    let asked = compare_one(&Settings { named: true, ..settings }, each_its_own, |_| {});
    assert!(!asked.ok(), "what is named has to be there");
}

#[test]
fn more_techniques_change_nothing_of_what_was_in_the_json() {
    let two = serde_json::to_value(compare_one(&settings(1), good, |_| {})).unwrap();
    let more = serde_json::to_value(compare_one(&four_more(), each_its_own, |_| {})).unwrap();
    assert_eq!(more["schema"], 1);
    assert_eq!(more["baseline"], "trap");
    assert_eq!(more["unavailable"], serde_json::json!([{"technique": "hvm", "why": "no such hardware"}]));
    let [two, more] = [&two["workloads"][0], &more["workloads"][0]];
    for member in ["name", "about", "kind", "ok", "traps_saved", "time_saved"] {
        assert_eq!(two[member], more[member], "{member}");
    }
    for technique in ["pv", "trap"] {
        assert_eq!(two["techniques"][technique], more["techniques"][technique]);
    }
    let names: Vec<_> = more["techniques"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["interpret", "pv", "translate", "trap"]);
    assert_eq!(more["savings"]["translate"]["traps"]["saved"], 1_480);
    assert_eq!(more["savings"]["interpret"]["time"]["percent"], -50.0);
    assert!(two["techniques"]["trap"].get("work").is_none() && two.get("native").is_none());
}

/// The members that users of the JSON may rely on.
#[test]
fn the_members_of_the_json() {
    let json = serde_json::to_value(compare_one(&settings(1), good, |_| {})).unwrap();
    let members = |value: &serde_json::Value| {
        let names = value.as_object().unwrap().keys();
        names.map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        members(&json),
        "abouts asked baseline busy_poll_us debug_build engine host mem_bytes notes repeat schema seed unavailable version \
         warm_up workloads"
    );
    let workload = &json["workloads"][0];
    assert_eq!(
        members(workload),
        "about kind name ok problems savings skipped techniques time_saved traps_saved"
    );
    assert_eq!(
        members(&workload["techniques"]["pv"]),
        "batches details engine exits flushes host_ns ns ok ops runs traps whole"
    );
    assert_eq!(members(&workload["savings"]["pv"]), "time traps");
}

#[test]
fn a_technique_that_fails_spoils_no_other() {
    let failing = |config: Config| match name_of(&config) {
        "translate" => Ok(play(config, "panic: oh no\n", Cause::Kick, 1, 1)),
        _ => each_its_own(config),
    };
    let result = compare_one(&four_more(), failing, |_| {});
    let workload = &result.workloads[0];
    assert!(!result.ok() && workload.problems.len() == 1, "{:?}", workload.problems);
    assert_eq!(workload.traps_saved, Some(Saving { saved: 1_497, percent: Some(99.8) }));
    assert!(text(&result, &VIEW).lines().any(|line| line.starts_with("map-512 ") && line.contains("FAIL")));
}

#[test]
fn what_needs_no_engine_is_measured_once_for_all() {
    let mut settings = four_more();
    let [machine] = settings.machines[..] else { panic!() };
    settings.machines = vec![machine, Machine { engine: EngineChoice::Process, ..machine }];
    let (boots, told) = (Cell::new(0), Cell::new(0));
    let boot = |config: Config| {
        boots.set(boots.get() + 1);
        each_its_own(config)
    };
    let results = compare(&settings, boot, |progress| told.set(progress.total));
    assert_eq!((boots.get(), told.get()), (7, 7), "three on each of two engines, and one");
    assert!(results.iter().all(|result| result.workloads[0].techniques.len() == 4));
}

#[test]
fn single_operations_have_a_table_of_their_own() {
    let mut settings = settings(1);
    settings.workloads.push(Workload::nano("clisti", "CLI; STI").only(crate::image::GuestKind::Bare));
    let boot = |config: Config| {
        if !config.cmdline.contains("clisti") {
            return good(config);
        }
        assert!(!is_pv(&config), "a kernel without the operation is not booted");
        let line = "bench: name=clisti ops=1000 ok=true unit=pair cycles-x100-median=1460040 cycles-x100-min=900000\n";
        Ok(play(config, line, Cause::PrivilegedInstruction(PrivOp::Cli), 2_003, 5_600_000))
    };
    let result = compare_one(&settings, boot, |_| {});
    assert!(result.ok() && result.workloads[1].kind == Kind::Nano);
    let text = text(&result, &View { details: false, width: 120 });
    let row = text.lines().find(|line| line.starts_with("clisti ")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["clisti", "14.6k~", "2", "-"]);
    assert!(text.contains("clisti: not by pv: only a bare-PC kernel does this"), "{text}");
    let json = serde_json::to_value(&result).unwrap();
    let cycles = &json["workloads"][1]["techniques"]["trap"]["cycles"];
    assert_eq!(*cycles, serde_json::json!({"median": 14600.4, "min": 9000.0}));
}

/// The guests are played, but the program is run by this host, if it allows that.
#[test]
fn programs_have_a_table_of_their_own_and_run_natively() {
    let mut settings = settings(1);
    settings.workloads = vec![*Workload::named("lat_sig-catch").unwrap()];
    let boot = |config: Config| -> Result<Report, String> {
        assert_eq!(config.cmdline, "run=lat_sig,catch,1000");
        assert!(config.initrd.as_ref().is_some_and(|file| file.starts_with(b"\x7fELF")));
        let line = "bench: name=lat_sig-catch ops=1000 ok=true unit=signal ns=7 each=0.007\n";
        Ok(play(config, line, Cause::Kick, 4, 80_000_000_000))
    };
    let result = compare_one(&settings, boot, |_| {});
    assert!(result.ok() && result.workloads[0].kind == Kind::Program);
    let shown = text(&result, &View { details: false, width: 120 });
    let row = shown.lines().find(|line| line.starts_with("lat_sig-catch ")).unwrap();
    let row: Vec<&str> = row.split_whitespace().collect();
    let workload = &result.workloads[0];
    match (&workload.native_program, &workload.native_missing) {
        (Some(run), None) => {
            assert_eq!(run.ops, 1000);
            assert!(row[1].parse::<f64>().is_ok_and(|times| times < 1.0) || row[1] == "~0", "{row:?}");
            assert!(text(&result, &VIEW).contains("natively, on this host's kernel: 1000 operations in "));
        }
        (None, Some(why)) => assert!(row[1] == "-" && shown.contains(&why[..40]), "{shown}"),
        both => panic!("{both:?}"),
    }
}

#[test]
fn what_does_not_fit_a_terminal_stands_below() {
    let result = compare_one(&four_more(), each_its_own, |_| {});
    for width in [40, 60, 80, 120] {
        let text = text(&result, &View { details: false, width });
        let (_, tables) = text.split_once("then exits to the host.\n").unwrap();
        assert!(tables.lines().all(|line| line.chars().count() <= width), "{width}:\n{tables}");
    }
}
