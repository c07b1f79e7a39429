//! Several engines side by side, on guests that are played by the test.

use super::super::{View, compare, side_text};
use super::*;
use crate::launch::{Config, EngineChoice, Report};
use crate::ledger::Cause;
use crate::testing::compare::{GOOD, good, is_pv, play, settings};

/// In a pipe, in detail.
const VIEW: View = View { details: true, width: 120 };

/// `kvm` needs 1 kick more than `process` in the bare guest, and fails altogether if it is to.
fn side(kvm_works: bool, only_usable: bool) -> SideBySide {
    let mut settings = settings(1);
    let machine = settings.machines[0];
    let on = |engine| super::super::Machine { engine, ..machine };
    settings.machines = vec![on(EngineChoice::Kvm), on(EngineChoice::Process)];
    let boot = |config: Config| -> Result<Report, String> {
        match config.engine {
            EngineChoice::Kvm if !kvm_works => Err("no /dev/kvm".to_owned()),
            EngineChoice::Kvm if !is_pv(&config) => {
                let mut report = play(config, GOOD, Cause::PageTableStore, 1_500, 3_000_000);
                report.ledger.mark(crate::ledger::MARK_BEGIN, 0);
                report.ledger.record(Cause::Kick, 10);
                report.ledger.mark(crate::ledger::MARK_END, 1);
                Ok(report)
            }
            _ => good(config),
        }
    };
    SideBySide::new(compare(&settings, boot, |_| {}), only_usable).unwrap()
}

#[test]
fn each_engine_has_the_shape_that_it_has_alone() {
    let json = serde_json::to_value(side(true, false)).unwrap();
    let alone = serde_json::to_value(&compare(&settings(1), good, |_| {})[0]).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json["engines"][0]), keys(&alone));
    assert_eq!(
        (&json["engines"][0]["asked"], &json["engines"][1]["asked"]),
        (&"kvm".into(), &"process".into())
    );
    assert_eq!(json["engines"][1]["workloads"][0]["techniques"]["pv"]["traps"], 3);
    assert!(json["host"]["cpus"].as_u64() >= Some(1) && json.get("workloads").is_none());
}

#[test]
fn differing_trap_counts_are_told_by_cause() {
    let side = side(true, false);
    assert!(side.ok());
    let [difference] = &side.trap_differences[..] else { panic!("{:?}", side.trap_differences) };
    assert_eq!((difference.workload, difference.technique), ("map-512", "trap"));
    assert_eq!(difference.traps, BTreeMap::from([("kvm", 1_501), ("process", 1_500)]));
    let kicks = BTreeMap::from([("kvm", 1), ("process", 0)]);
    assert_eq!(difference.causes, BTreeMap::from([("kick".to_owned(), kicks)]));
    let text = side_text(&side, &VIEW);
    let told =
        "map-512 by trap: trap counts differ: kvm 1501, process 1500; by cause: kick (kvm 1, process 0)";
    assert!(text.contains(told), "{text}");
}

#[test]
fn the_text_has_a_block_of_columns_for_each_engine() {
    let text = side_text(&side(true, false), &VIEW);
    let cells = |name: &str| -> Vec<String> {
        let row = text.lines().find(|l| l.starts_with(&format!("| {name} "))).unwrap();
        row.split('|').map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
    };
    assert_eq!(cells("trap")[1..3], ["1501", "3.00 ms"]);
    assert_eq!(cells("trap")[5..7], ["1500", "2.00 ms"]);
    assert_eq!(cells("page-table store")[1..], ["1500", "1.00 us", "1500", "1.00 us"]);
    assert_eq!(cells("kick")[1..], ["1", "10 ns", "0", "-"]);
    assert!(text.contains("\npv: flushes of the guest's queue, by reason as it says: explicit 3\n"));
    assert!(text.contains("\ntrap on kvm: in the whole boot 1501 exits reached us, and"));
    assert!(text.contains("\ntrap on process: in the whole boot 1500 exits reached us, and"));
    let overview: Vec<Vec<&str>> =
        text.lines().filter(|l| l.starts_with("map-512 ")).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(overview[0][1..], ["3.00", "ms", "1501", "0.02", "3"]);
    assert_eq!(overview[1][1..], ["2.00", "ms", "1500", "0.03", "3"]);
}

#[test]
fn an_engine_that_is_absent_fails_only_if_it_was_named() {
    let named = side(false, false);
    assert!(!named.ok() && named.engines.len() == 2);
    assert!(side_text(&named, &VIEW).contains("NOT OK  map-512: pv: "));
    let usable = side(false, true);
    assert!(usable.ok() && usable.engines.len() == 1);
    assert_eq!(usable.left_out[0].engine, "kvm");
    assert!(side_text(&usable, &VIEW).contains("not kvm: pv: the guest could not be started: no /dev/kvm"));
    assert!(SideBySide::new(Vec::new(), true).is_none());
}
