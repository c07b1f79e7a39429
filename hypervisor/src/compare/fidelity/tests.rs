//! The table of the seventeen, on guests that are played by the test.

use super::*;
use crate::compare::View;
use crate::ledger::Cause;
use crate::technique::EngineNeed;
use crate::testing::compare::{name_of, play, settings, technique};

/// How a guest ends that was ended by the hypervisor.
fn killed() -> DomainEnd {
    DomainEnd::Killed("general protection fault".to_owned())
}

/// `trap` with silent rows wrong, and `interpret`; `hvm` is not on this host.
fn fidelity_settings() -> FidelitySettings {
    let mut techniques = settings(1).techniques;
    techniques.push(technique("interpret", EngineNeed::Nothing, || Ok(())));
    techniques.push(technique("hvm", EngineNeed::Ring0(crate::engine::Irqchip::Monitor), || {
        Err("no such hardware".to_owned())
    }));
    FidelitySettings { techniques, named: false, machine: settings(1).machines[0], image: b"an image" }
}

/// A guest that is wrong about what is silent under `trap`, and ends in IRETQ there.
fn guest(config: Config) -> Result<Report, String> {
    assert_eq!(&*config.image, b"an image");
    let deprivileged = name_of(&config) == "trap";
    let skip = config.cmdline.split_once("skip=").map_or("", |(_, names)| names);
    let skip: Vec<String> = skip.split(',').map(str::to_owned).collect();
    let mut text = String::new();
    for row in ROWS.iter().filter(|row| !skip.iter().any(|name| name == row.name)) {
        text += &format!("fidelity {}: begin\n", row.name);
        if deprivileged && row.name == "pop-segment" {
            let report = play(config, &text, Cause::Kick, 0, 1);
            return Ok(Report { end: killed(), ..report });
        }
        let verdict = if deprivileged { "wrong" } else { "right" };
        text += &format!("fidelity {}: machine=IF-cleared here=something {verdict}\n", row.name);
    }
    Ok(play(config, &(text + "fidelity: done\n"), Cause::Kick, 0, 1))
}

fn word<'a>(fidelity: &'a Fidelity, row: &str, technique: &str) -> Option<&'a Answer> {
    let row = fidelity.rows.iter().find(|found| found.name == row)?;
    row.techniques.iter().find(|(name, _)| *name == technique).map(|(_, answer)| answer)
}

#[test]
fn every_instruction_has_an_answer_by_every_technique() {
    let result = fidelity(&fidelity_settings(), guest, |_| {});
    assert_eq!(result.rows.len(), 17);
    assert!(result.rows.iter().all(|row| row.techniques.len() == 3), "{result:#?}");
    assert_eq!(word(&result, "popf", "trap").unwrap().verdict, Verdict::Wrong);
    assert_eq!(word(&result, "popf", "interpret").unwrap().verdict, Verdict::Right);
    let text = fidelity_text(&result, &View { details: true, width: 120 });
    let row = text.lines().find(|line| line.starts_with("POPF ")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["POPF", "right", "wrong", "absent"]);
    for part in
        ["hvm: not on this host: no such hardware", "POPF by trap: wrong: something; the machine: IF-cleared"]
    {
        assert!(text.contains(part), "{part:?} missing in:\n{text}");
    }
}

/// The paravirtual kernel's column is what an audit finds, not what somebody claims.
#[test]
fn a_paravirtual_kernel_is_audited() {
    let result = fidelity(&fidelity_settings(), guest, |_| {});
    for row in &ROWS {
        let answer = word(&result, row.name, "pv").unwrap();
        assert!(answer.documented, "{}: {answer:?}", row.name);
    }
    let flags = word(&result, "popf", "pv").unwrap();
    assert_eq!((flags.verdict, flags.here.as_str()), (Verdict::Absent, "0 in the kernel's code"));
    let selectors = word(&result, "mov-segment", "pv").unwrap();
    assert_eq!(selectors.verdict, Verdict::Declared);
    assert!(selectors.here.contains("selector"), "{}", selectors.here);
}

/// The audit's lines are told apart by their beginnings: each is of one row at most.
#[test]
fn the_bare_kernel_has_what_the_paravirtual_one_lacks() {
    let bare = audit(GuestKind::Bare.builtin()).unwrap();
    for finding in &bare.findings {
        let of = ROWS.iter().filter(|row| row.is_of(finding)).count();
        assert!(of <= 1, "{finding:?}");
    }
    let row = Row::named("cpuid").unwrap();
    assert!(bare.findings.iter().any(|finding| row.is_of(finding)));
}

#[test]
fn a_guest_that_is_ended_goes_on_with_the_next_instruction() {
    let mut boots = 0;
    let boot = |config: Config| {
        boots += usize::from(name_of(&config) == "trap");
        guest(config)
    };
    let result = fidelity(&fidelity_settings(), boot, |_| {});
    assert_eq!(boots, 2);
    let answer = word(&result, "pop-segment", "trap").unwrap();
    assert_eq!((answer.verdict, answer.documented), (Verdict::Ended, false));
    assert!(answer.here.contains("general protection fault"));
    assert_eq!(word(&result, "cpuid", "trap").unwrap().verdict, Verdict::Wrong);
    assert!(!result.ok() && result.problems.len() == 1, "{:?}", result.problems);
}

#[test]
fn only_what_is_documented_is_right() {
    let wrong = |config: Config| {
        let of_interpret = name_of(&config) == "interpret";
        let line = "fidelity popf: machine=a here=b right\n";
        if of_interpret { guest(config) } else { Ok(play(config, line, Cause::Kick, 0, 1)) }
    };
    let result = fidelity(&fidelity_settings(), wrong, |_| {});
    assert!(!result.ok(), "a guest that stops early");
    for (technique, row, verdict, documented) in [
        ("trap", "popf", Verdict::Wrong, true),
        ("trap", "popf", Verdict::Right, false),
        ("interpret", "popf", Verdict::Wrong, false),
        ("translate-adaptive", "sgdt", Verdict::Right, true),
        ("pv", "popf", Verdict::Undeclared, false),
    ] {
        assert_eq!(expected::is(technique, row, verdict), documented, "{technique} {row} {verdict:?}");
    }
}

#[test]
fn a_technique_that_was_named_has_to_be_there() {
    let named = FidelitySettings { named: true, ..fidelity_settings() };
    let result = fidelity(&named, guest, |_| {});
    assert!(result.problems.iter().any(|problem| problem.starts_with("hvm: ")), "{:?}", result.problems);
}

#[test]
fn the_json_has_every_answer() {
    let json = serde_json::to_value(fidelity(&fidelity_settings(), guest, |_| {})).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["rows"].as_array().unwrap().len(), 17);
    let popf = &json["rows"][0];
    assert_eq!((&popf["name"], &popf["about"]), (&"popf".into(), &"POPF".into()));
    let expected = serde_json::json!({"verdict": "wrong", "documented": true, "machine": "IF-cleared", "here": "something"});
    assert_eq!(popf["techniques"]["trap"], expected);
    assert_eq!(json["engines"]["trap"]["name"], "kvm");
}
