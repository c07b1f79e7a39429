use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A result with these times and exits of one workload by one technique.
fn result(times: &[u64], exits: &[u64]) -> Value {
    let runs: Vec<Value> =
        times.iter().zip(exits).map(|(ns, traps)| json!({"ns": ns, "traps": traps, "host_ns": 1})).collect();
    json!({
        "schema": 1, "version": "1", "debug_build": false, "asked": "kvm", "mem_bytes": 1 << 26, "busy_poll_us": 200,
        "host": {"cpu": "a CPU", "cpus": 2, "kernel": "6.1", "kvm_module": null},
        "engine": {"name": "kvm", "transport": "pio"},
        "workloads": [{"name": "map-512", "kind": "job", "techniques": {"trap": {"ops": 10, "runs": runs}}}],
    })
}

fn read(value: &Value) -> Recorded {
    Recorded::parse(&value.to_string()).unwrap()
}

fn between(a: &Value, b: &Value) -> Changes {
    Changes::between(&read(a), &read(b), 1.0)
}

const BEFORE: [u64; 6] = [1000, 1010, 1020, 1030, 1040, 1050];
const SLOWER: [u64; 6] = [1200, 1210, 1220, 1230, 1240, 1250];

#[test]
fn a_change_beyond_noise_is_told_with_its_direction() {
    let (before, slower) = (result(&BEFORE, &[5; 6]), result(&SLOWER, &[5; 6]));
    let changes = between(&before, &slower);
    let [time, exits] = &changes.rows[..] else { panic!("{changes:?}") };
    assert_eq!((time.measure, time.verdict, time.first), (Measure::Time, Verdict::Worse, 102.5));
    assert_eq!(exits.verdict, Verdict::Noise);
    assert!(changes.any_worse() && changes.circumstances.is_empty());
    assert!(!between(&slower, &before).any_worse());
    let text = changes_text(&changes, 100);
    let row: Vec<_> = text.lines().find(|l| l.contains("map-512")).unwrap().split_whitespace().collect();
    assert!(row.contains(&"+19.5%") && row.contains(&"worse"), "{text}");
    assert!(text.lines().all(|line| line.starts_with('|') || line.len() <= 100), "{text}");
}

#[test]
fn noise_is_no_change_and_one_run_says_nothing() {
    let (a, b) = ([1000, 1100, 1200, 1300, 1400, 1500], [1050, 1150, 1250, 1350, 1450, 1600]);
    let changes = between(&result(&a, &[5; 6]), &result(&b, &[5; 6]));
    assert!(changes.rows.iter().all(|row| row.verdict == Verdict::Noise), "{changes:?}");
    let once = between(&result(&[1000], &[5]), &result(&[9000], &[7]));
    assert!(once.rows.iter().all(|row| row.verdict == Verdict::TooFew), "{once:?}");
    assert!(!once.any_worse() && changes_text(&once, 80).contains("too few runs"));
}

#[test]
fn counts_without_noise_need_three_runs() {
    let times = [1000, 1001, 1002];
    let changes = between(&result(&times, &[1538; 3]), &result(&times, &[3; 3]));
    assert_eq!(changes.rows[1].verdict, Verdict::Better);
    let noisy = between(&result(&times, &[1538, 1539, 1538]), &result(&times, &[3; 3]));
    assert_eq!(noisy.rows[1].verdict, Verdict::TooFew);
}

#[test]
fn what_is_not_the_same_is_said() {
    let mut other = result(&BEFORE, &[5; 6]);
    other["host"]["cpu"] = json!("another\u{1b}[2J CPU");
    other["engine"]["name"] = json!("process");
    other["workloads"][0]["techniques"]["pv"] = json!({"ops": 1, "runs": []});
    other["workloads"][0]["techniques"]["trap"]["ops"] = json!(11);
    let changes = between(&result(&BEFORE, &[5; 6]), &other);
    let what: Vec<_> = changes.circumstances.iter().map(|d| d.what.as_str()).collect();
    assert_eq!(what, ["engine", "processor"]);
    assert!(changes.rows.iter().all(|row| row.verdict == Verdict::OtherWork));
    assert_eq!(changes.only_second, ["map-512 by pv"]);
    let text = changes_text(&changes, 80);
    for part in ["NOT THE SAME  engine: kvm, transport pio before", r"another\u{1b}[2J CPU now", "OTHER WORK"]
    {
        assert!(text.contains(part), "{part:?} missing in:\n{text}");
    }
}

#[test]
fn several_engines_are_compared_each_with_its_own() {
    let of = |times: &[u64]| {
        let (kvm, mut process) = (result(&BEFORE, &[5; 6]), result(times, &[5; 6]));
        process["asked"] = json!("process");
        json!({"schema": 1, "engines": [kvm, process]})
    };
    let changes = between(&of(&BEFORE), &of(&SLOWER));
    let worse: Vec<_> = changes.rows.iter().filter(|row| row.verdict == Verdict::Worse).collect();
    assert!(worse.len() == 1 && worse[0].engine == "process" && changes.rows.len() == 4, "{changes:?}");
    let one = between(&of(&BEFORE), &json!({"schema": 1, "engines": []}));
    assert_eq!((one.rows.len(), one.only_first.len()), (0, 2));
}

#[test]
fn what_changed_little_is_not_called_worse() {
    let slower = BEFORE.map(|ns| ns + 60);
    let [a, b] = [BEFORE, slower].map(|times| read(&result(&times, &[5; 6])));
    assert!(Changes::between(&a, &b, 1.0).any_worse());
    assert_eq!(Changes::between(&a, &b, 10.0).rows[0].verdict, Verdict::Little);
}

#[test]
fn how_many_runs_are_wanted_follows_from_how_many_rows_there_are() {
    assert!((least_p(3, 3) - 0.1).abs() < 1e-12);
    assert!((least_p(5, 5) - 2.0 / 252.0).abs() < 1e-12);
    let changes = between(&result(&[1; 3], &[5; 3]), &result(&[1; 3], &[5; 3]));
    assert_eq!(changes.runs_wanted, 4, "2 of 70 ways is less than 1 in 20");
}

#[test]
fn another_file_is_refused() {
    for text in ["", "[]", "{}", r#"{"schema": 2}"#, r#"{"schema": 1}"#, r#"{"schema": 1, "engines": [1]}"#] {
        assert!(Recorded::parse(text).is_err(), "{text}");
    }
}

#[test]
fn as_many_runs_as_can_be_measured_are_judged_and_no_more() {
    let of = |count: u64, first: u64| {
        let times: Vec<u64> = (first..first + count).collect();
        result(&times, &vec![5; times.len()])
    };
    let changes = between(&of(1000, 1), &of(1000, 2));
    let spread = changes.rows[0].first_spread.as_ref().unwrap();
    assert!(spread.confidence >= 0.95 && spread.confidence < 0.96, "{spread:?}");
    assert!(spread.low > spread.min && spread.high < spread.max, "{spread:?}");
    assert_eq!(changes.rows[0].verdict, Verdict::Noise);
    let error = Recorded::parse(&of(1001, 1).to_string()).unwrap_err();
    assert_eq!(error.to_string(), "map-512 by trap has 1001 runs, and --repeat makes 1000 at most");
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}|[{}\\[\\]:,\"schema1engines ]{0,60}") {
        drop(Recorded::parse(&text));
    }

    #[test]
    fn any_runs_are_judged(
        a in prop::collection::vec((any::<u64>(), any::<u64>()), 0..5),
        b in prop::collection::vec((any::<u64>(), any::<u64>()), 0..5),
    ) {
        let of = |runs: Vec<(u64, u64)>| {
            let (times, exits): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
            result(&times, &exits)
        };
        let changes = between(&of(a), &of(b));
        prop_assert!(!changes_text(&changes, 80).is_empty());
    }
}
