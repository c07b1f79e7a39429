//! What is made of a trace.

use serde_json::Value;

use super::*;
use crate::trace::chrome::Chrome;
use crate::trace::filter::Filter;
use crate::trace::summary::{By, Summary};
use crate::trace::timeline::Timeline;

const PIN: Cause = Cause::Hypercall(26);
const UART: Cause = Cause::PortOut(PortDevice::Uart);
const MARK: Cause = Cause::PortOut(PortDevice::Mark);

/// An image with the functions `first` and `second`.
fn places() -> Places {
    let symbol = |name, value| Symbol { name, value, size: 0x10, kind: object::elf::STT_FUNC };
    let mut elf = Elf::plain();
    elf.symbols = vec![symbol("first", 0x1000), symbol("second", 0x1010)];
    elf.sections = vec![(".text", object::elf::SHT_PROGBITS, vec![0; 0x20])];
    elf.code_sections = vec![(".text", 0x1000)];
    Places::of(&elf.bytes())
}

fn mark(left: u64, value: u8) -> Exit {
    Exit { mark: Some(value), ..exit(left, MARK, 10, 0x1000) }
}

fn sample() -> Vec<Exit> {
    vec![
        exit(1_000, PIN, 100, 0x1004),
        mark(2_000, MARK_BEGIN),
        exit(3_000, PIN, 300, 0x1010),
        Exit { waited: 5_000, ..exit(4_000, UART, 2_000, 0x1018) },
        mark(12_000, MARK_END),
        exit(13_000, Cause::Kick, 50, 0x2000),
    ]
}

fn wanted(filter: impl FnOnce(&mut Filter)) -> Vec<u64> {
    let (mut wants, places) = (Filter::default(), places());
    filter(&mut wants);
    sample().iter().filter(|exit| wants.wants(exit, &places)).map(|exit| exit.left).collect()
}

#[test]
fn filters_take_out_what_is_not_wanted() {
    assert_eq!(wanted(|_| ()).len(), 6);
    assert_eq!(wanted(|filter| filter.marked = true), [3_000, 4_000], "marks belong to no region");
    assert_eq!(wanted(|filter| (filter.from, filter.to) = (2_000, 4_000)), [2_000, 3_000, 4_000]);
    assert_eq!(wanted(|filter| filter.symbols = vec!["eco".to_owned()]), [3_000, 4_000]);
    assert_eq!(wanted(|filter| filter.vcpu = Some(1)), [0u64; 0]);
    let causes = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        wanted(|filter| filter.only_causes(&header(), &names).unwrap())
    };
    assert_eq!(causes(&["MMUEXT"]), [1_000, 3_000], "a part of a name");
    assert_eq!(causes(&["port"]), [2_000, 4_000, 12_000], "a group");
    assert_eq!(causes(&["uart", "host"]), [4_000, 13_000], "a device and a group");
    let error = Filter::default().only_causes(&header(), &["no\x1bne".to_owned()]).unwrap_err().to_string();
    assert!(error.contains(r"no\u{1b}ne has") || error.contains(r"no\u{1b}ne in"), "{error}");
}

#[test]
fn a_summary_counts_by_everything() {
    let (header, places) = (header(), places());
    let mut summary = Summary::new(&header, &places);
    sample().iter().for_each(|exit| summary.add(exit));
    let rows = |by| {
        let rows = summary.rows(by).into_iter();
        rows.map(|row| (row.name, row.tally.count, row.tally.ns)).collect::<Vec<_>>()
    };
    let row = |name: &str, count, ns| (name.to_owned(), count, ns);
    assert_eq!(rows(By::Hypercall), [row("mmuext_op", 2, 400)]);
    assert_eq!(rows(By::Device), [row("uart", 1, 2_000), row("mark", 2, 20)]);
    assert_eq!(rows(By::Vcpu), [row("0", 6, 2_470)]);
    assert_eq!(rows(By::Symbol), [row("second", 2, 2_300), row("first", 3, 120), row("0x2000", 1, 50)]);
    assert_eq!(rows(By::Group), [row("port", 3, 2_020), row("hypercall", 2, 400), row("host", 1, 50)]);
    assert_eq!(rows(By::Cause)[0], row("out uart", 1, 2_000));
    assert_eq!((summary.span_ns(), summary.waited_ns()), (12_050, 5_000));
    let table = summary.table(By::Symbol, 2).unwrap();
    assert!(
        table.contains("second") && table.contains("1 more: --all") && !table.contains("0x2000"),
        "{table}"
    );
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!((&json["symbol"][0]["name"], &json["cause"][0]["max_ns"]), (&"second".into(), &2_000.into()));
    assert_eq!(Summary::new(&header, &places).table(By::Cause, 9), None);
}

#[test]
fn a_file_without_end_of_addresses_takes_bounded_memory() {
    let (header, places) = (header(), Places::default());
    let mut summary = Summary::new(&header, &places);
    (0..70_000).for_each(|n| summary.add(&exit(n, PIN, 1, n)));
    let rows = summary.rows(By::Symbol);
    assert_eq!(
        (rows.len(), rows[0].name.as_str(), rows[0].tally.count),
        (65_537, "elsewhere", 70_000 - 65_536)
    );
}

fn timeline(json: bool) -> String {
    let (header, places, mut out) = (header(), places(), Vec::new());
    let mut timeline = Timeline::begin(&mut out, &header, &places, json).unwrap();
    entries(&sample()).iter().for_each(|entry| timeline.add(entry).unwrap());
    timeline.add(&Entry::Lost { vcpu: 0, after: 13_000, count: 7 }).unwrap();
    timeline.end().unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_timeline_has_a_line_for_each_exit() {
    let text = timeline(false);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[1], ["0.000001000", "0", "0.100us", "-", "hypercall", "mmuext_op", "first+0x4"]);
    assert_eq!(lines[2], ["0.000002000", "0.900us", "0", "0.010us", "-", "out", "mark", "1", "first"]);
    assert_eq!(lines[4], ["0.000004000", "0.700us", "0", "2.000us", "5.000us", "out", "uart", "second+0x8"]);
    assert_eq!(lines[5][1], "1.000us", "what was waited is not what ran");
    assert!(text.ends_with("7 exits are not in the file\n"));
    // The heading is over its columns.
    let (heading, line) = (text.lines().next().unwrap(), text.lines().nth(4).unwrap());
    for (name, value) in [("Exit", "out uart"), ("Guest code", "second")] {
        assert_eq!(heading.find(name), line.find(value), "{text}");
    }
    for (name, value) in [("Seconds", "0.000004000"), ("Worked", "2.000us"), ("Waited", "5.000us")] {
        let end = |text: &str, part: &str| text.find(part).unwrap() + part.len();
        assert_eq!(end(heading, name), end(line, value), "{name}: {text}");
    }
}

#[test]
fn what_the_guest_ran_is_from_the_last_entry_whether_it_has_a_line_or_not() {
    let (header, places, mut out) = (header(), places(), Vec::new());
    let mut timeline = Timeline::begin(&mut out, &header, &places, false).unwrap();
    let list = sample();
    timeline.pass(&list[0]);
    timeline.add(&Entry::Exit(list[1])).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains(" 0.900us "), "{text}");
}

#[test]
fn a_timeline_as_json_is_an_object_a_line() {
    let lines: Vec<Value> = timeline(true).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 7);
    let expected = serde_json::json!({
        "ns": 4_000, "vcpu": 0, "cause": "out uart", "worked_ns": 2_000, "waited_ns": 5_000,
        "place": "0x1018", "symbol": "second", "offset": 8
    });
    assert_eq!((&lines[3], &lines[1]["mark"], &lines[6]["lost"]), (&expected, &1.into(), &7.into()));
}

/// What the format's description demands of events, and nothing else.
#[test]
fn chrome_gets_what_its_format_demands() {
    let (header, places, mut out) = (header(), places(), Vec::new());
    let mut chrome = Chrome::begin(&mut out, &header, &places).unwrap();
    entries(&sample()).iter().for_each(|entry| chrome.add(entry).unwrap());
    chrome.add(&Entry::Lost { vcpu: 0, after: 13_000, count: 7 }).unwrap();
    chrome.end().unwrap();
    let json: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&json["displayTimeUnit"], &json["otherData"]["technique"]), (&"ns".into(), &"trap".into()));
    let events = json["traceEvents"].as_array().unwrap();
    for event in events {
        assert!(event["name"].is_string() && event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
        match event["ph"].as_str().unwrap() {
            "X" => assert!(event["ts"].is_f64() && event["dur"].is_f64(), "{event}"),
            "i" => assert!(event["ts"].is_f64() && event["s"] == "t", "{event}"),
            "M" => assert!(event["args"]["name"].is_string(), "{event}"),
            other => panic!("unexpected phase {other}"),
        }
    }
    let named = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
    assert_eq!(named("thread_name")["args"]["name"], "vCPU 0");
    let (whole, wait) = (named("out uart"), named("wait"));
    assert_eq!((&whole["ts"], &whole["dur"], &whole["cat"]), (&4.0.into(), &7.0.into(), &"port".into()));
    assert_eq!((&wait["ts"], &wait["dur"]), (&6.0.into(), &5.0.into()), "inside of its exit");
    assert_eq!(whole["args"]["place"], "second+0x8");
    assert_eq!(named("mark 1")["ts"], 2.0);
    assert!(events.iter().any(|event| event["name"].as_str().unwrap().starts_with("7 exits")));
}
