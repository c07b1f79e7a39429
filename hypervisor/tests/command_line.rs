//! The program from outside: arguments, pipes, signals and exit statuses.
//!
//! Tests that need a guest are skipped on machines that cannot run one.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};

use skip::skip;

fn paravane(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(args: &[&str]) -> Output {
    paravane(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Starts the reference guest and waits for its prompt; `None` if this machine cannot run guests.
fn guest(args: &[&str]) -> Option<Child> {
    match prompt(&[&["--timeout", "60s"], args].concat()) {
        Ok(child) => Some(child),
        Err((output, seen)) => {
            assert_eq!(output.status.code(), Some(1), "the guest ended: {seen}");
            skip("engine", text(&output.stderr));
            None
        }
    }
}

/// The same. Without a prompt, returns how it ended and what it had printed.
fn prompt(args: &[&str]) -> Result<Child, (Output, String)> {
    let mut child = paravane(&[&["run"], args].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let (stdout, mut seen) = (child.stdout.as_mut().unwrap(), Vec::new());
    let mut byte = [0];
    while !seen.ends_with(b"> ") {
        if stdout.read(&mut byte).unwrap() == 0 {
            return Err((child.wait_with_output().unwrap(), text(&seen)));
        }
        seen.push(byte[0]);
    }
    Ok(child)
}

fn type_to(child: &mut Child, line: &str) {
    child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
}

fn signal(child: &Child, number: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: kill takes no pointers; the child `pid` has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

#[test]
fn the_host_says_what_it_does_if_asked() {
    let info =
        ["paravane: info: launch::start: ", "paravane: info: launch::going: the guest has run: PowerOff ms="];
    let debug = ["paravane: debug: launch::start: read the image us="];
    for (options, said, unsaid) in [
        (&[][..], &[][..], &["info: ", "debug: "][..]),
        (&["-v"], &info, &debug),
        (&["--log", "warn"], &[], &info),
        (&["-vv"], &[info.as_slice(), &debug].concat(), &[]),
    ] {
        let Some(mut child) = guest(options) else { return };
        type_to(&mut child, "halt\n");
        let told = text(&child.wait_with_output().unwrap().stderr);
        assert!(said.iter().all(|part| told.contains(part)), "{options:?}:\n{told}");
        assert!(!unsaid.iter().any(|part| told.contains(part)), "{options:?}:\n{told}");
    }
}

#[test]
fn messages_show_no_control_or_bidirectional_characters_of_paths() {
    let name = "/nonexistent/\x1b]0;owned\x07\u{202e}gpj.img";
    let arguments = [
        &["run", name][..],
        &["run", "--initrd", name],
        &["run", "--disk", name],
        &["run", "--stats-json", name],
        &["run", "--net", &format!("unix={name}")],
        &["run", "--vsock", &format!("cid=3,socket={name}")],
        &["run", "--console", &format!("file={name}")],
        &["audit", name],
        &["run", "--engine", name],
        &["run", "--disk", &format!("{name},format=vmdk")],
    ];
    for arguments in arguments {
        let output = output(arguments);
        let said = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {said}");
        // clap removes a terminal's escape sequences completely.
        assert!(said.contains(r"\u{202e}gpj.img"), "{arguments:?}: {said:?}");
        assert!(!said.contains(['\x1b', '\x07', '\u{202e}']), "{arguments:?}: {said:?}");
    }
}

#[test]
fn errors_about_unavailable_devices_have_a_remedy() {
    for (args, part) in [
        (&["run", "--net", "unix=/nonexistent/wire"][..], "start the program that listens there first"),
        (&["run", "--net", "unix=/nonexistent/wire,server"], "in a directory that exists and is yours"),
        (&["run", "--vsock", "cid=3,socket=/nonexistent/s"], "in a directory that exists and is yours"),
        (&["run", "--disk", "/nonexistent/d"], "make it: truncate"),
        (&["run", "--disk", "/tmp"], "is a directory; make an image of its files"),
        (&["run", "--disk", "/etc/passwd,readonly,format=qcow2"], "is not a qcow2 image"),
        (&["run", "--console", "unix=/nonexistent/c"], "start the program that listens there first"),
        (&["run", "--console", "file=/nonexistent/c"], "cannot write to /nonexistent/c"),
    ] {
        let output = output(args);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{args:?}: {said}");
        assert!(said.starts_with("paravane: ") && said.contains(part), "{said}");
    }
}

#[test]
fn usage_errors_are_2_and_name_the_mistake() {
    let nine: Vec<_> = ["run"].into_iter().chain(["--net", "peer"].into_iter().cycle().take(18)).collect();
    for (args, part) in [
        (&nine[..], "9 devices are too many: a guest can have 8"),
        (&["run", "--disk", "/tmp/x", "--disk", "/tmp/../tmp/x,readonly"], "add \",readonly\" to both"),
        (
            &["run", "--console", "unix=/tmp/x,server", "--vsock", "cid=3,socket=/tmp/../tmp/x"],
            "give each a file of its own",
        ),
        (&["run", "--disk", "x,queues=17"], "give a number from 1 to 16"),
        (&["run", "--busy-poll", "200us"], "expected a whole number of microseconds"),
        (&["run", "--mem", "12Q"], "unknown unit `Q`"),
        (&["run", "--engine", "xen"], "possible values: auto, kvm, process"),
        (&["run", "--bare", "kernel.elf"], "cannot be used with"),
        (&["compare", "--workload", "nothing"], "possible values: null-call"),
        (&["run", "--net", "ether"], "expected tap=NAME, user, unix=PATH or peer first"),
        (&["run", "--net", "tap=a/b"], "is not a valid interface name"),
        (&["run", "--net", "peer,mac=01:00:00:00:00:01"], "is not a MAC address that a guest can have"),
        (&["run", "--vsock", "cid=2,socket=/tmp/s"], "is not an address that a guest can have"),
        (&["fly"], "unrecognized subcommand"),
    ] {
        let output = output(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(part), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn help_documents_exit_statuses() {
    let output = output(&["run", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("124    the time given by --timeout was up"));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    for args in [
        &["run", "/nonexistent/kernel"][..],
        &["run", "--initrd", "/nonexistent/initrd"],
        &["run", "--stats-json", "/nonexistent/stats.json"],
    ] {
        let output = output(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("/nonexistent/"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_file_that_is_not_a_kernel_is_refused() {
    let output = output(&["run", "/etc/passwd"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!text(&output.stderr).contains("panicked"));
}

#[test]
fn the_list_needs_no_guest() {
    let output = output(&["compare", "--list"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("map-512"));
}

#[test]
fn several_engines_are_compared_side_by_side() {
    let named = ["--technique", "pv,trap", "--workload", "map-512"];
    let result = output(&[&["compare", "--engine", "all", "--json"][..], &named].concat());
    let json: serde_json::Value = serde_json::from_slice(&result.stdout).unwrap();
    let engines = json["engines"].as_array().unwrap();
    if engines.is_empty() {
        assert_eq!(result.status.code(), Some(1));
        skip("engine", text(&result.stderr));
        return;
    }
    assert_eq!(result.status.code(), Some(0), "{}", text(&result.stderr));
    for engine in engines {
        let pv = &engine["workloads"][0]["techniques"]["pv"];
        assert_eq!((&pv["ops"], &engine["engine"]["name"]), (&512.into(), &engine["asked"]));
        // On a slow host a time slice may end within the region. That is a kick, which the guest did not cause.
        let asked = pv["exits"].as_array().unwrap().iter().filter(|e| e["group"] == "hypercall");
        assert_eq!(asked.map(|e| e["count"].as_u64().unwrap()).sum::<u64>(), 3);
    }
}

/// The least workload, and the shape of the JSON on a real machine.
#[test]
fn every_technique_takes_part_or_is_unavailable() {
    let result = output(&["compare", "--workload", "null-call", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&result.stdout).unwrap();
    if json["engine"].is_null() {
        skip("engine", text(&result.stderr));
        return;
    }
    assert_eq!(result.status.code(), Some(0), "{}", text(&result.stderr));
    assert_eq!((&json["schema"], &json["baseline"]), (&1.into(), &"trap".into()));
    let unavailable = json["unavailable"].as_array().unwrap();
    let workload = &json["workloads"][0];
    for technique in &paravane::technique::TECHNIQUES {
        let lacking = unavailable.iter().find(|one| one["technique"] == technique.name);
        let done = &workload["techniques"][technique.name];
        match lacking {
            Some(one) => assert!(done.is_null() && !one["why"].as_str().unwrap().is_empty(), "{one}"),
            None => assert_eq!(done["ops"], 1000, "{}: {done}", technique.name),
        }
    }
    assert_eq!(workload["savings"]["pv"]["traps"]["saved"], 0);
}

#[test]
fn a_table_fits_a_pipe_of_120_columns() {
    let named = ["--workload", "null-call,alu", "--technique", "pv,trap"];
    let result = output(&[&["compare"][..], &named].concat());
    let printed = text(&result.stdout);
    if printed.contains("no guest ran to its end") {
        skip("engine", printed);
        return;
    }
    assert_eq!(result.status.code(), Some(0), "{printed}");
    let (_, tables) = printed.split_once("then exits to the host.").unwrap();
    assert!(tables.lines().all(|line| line.chars().count() <= 120), "{printed}");
    let columns: Vec<_> = tables.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(columns, ["trap", "pv"], "{printed}");
}

#[test]
fn the_doctor_measures_what_works() {
    let result = output(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&result.stdout).unwrap();
    let engines = json["engines"].as_array().unwrap();
    let works = |engine: &serde_json::Value| engine["why_not"].is_null();
    assert_eq!(result.status.success(), engines.iter().any(works), "{json:#}");
    assert_eq!(works(&json["auto"]), engines.iter().any(works));
    let options: Vec<_> = json["devices"].as_array().unwrap().iter().map(|need| &need["option"]).collect();
    assert_eq!(options, ["--disk", "--net tap", "--net user"]);
    for engine in engines.iter().filter(|engine| works(engine)) {
        let costs = engine["costs"].as_array().unwrap();
        assert!(costs.len() == 5 && costs.iter().all(|cost| cost["ns"].as_f64() > Some(0.0)), "{costs:#?}");
    }
    for failed in engines.iter().filter(|engine| !works(engine)) {
        skip(failed["name"].as_str().unwrap(), &failed["why_not"]);
    }
}

#[test]
fn how_the_guest_ends_is_the_exit_status() {
    for (line, code) in [("halt\n", 0), ("panic\n", 3), ("reboot\n", 5)] {
        let Some(mut child) = guest(&[]) else { return };
        type_to(&mut child, line);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{line}");
    }
}

#[test]
fn a_pipe_carries_any_byte() {
    let Some(mut child) = guest(&[]) else { return };
    type_to(&mut child, "\x01x\nhalt\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "Ctrl-A x left although it came from a pipe");
}

#[test]
fn the_guest_goes_on_when_its_input_ends() {
    // If a busy host reaches the time limit before the prompt, the test is repeated with more time.
    for timeout in ["2s", "10s", "60s"] {
        let mut child = match prompt(&["--timeout", timeout]) {
            Ok(child) => child,
            Err((output, _)) if output.status.code() == Some(124) => continue,
            Err((output, seen)) => {
                assert_eq!(output.status.code(), Some(1), "the guest ended: {seen}");
                return skip("engine", text(&output.stderr));
            }
        };
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(124));
        return;
    }
    panic!("no prompt within a minute");
}

#[test]
fn signals_end_the_guest_in_order() {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let Some(child) = guest(&["--stats"]) else { return };
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + number));
        assert!(text(&output.stderr).contains("Exits of the whole run"), "the statistics are lost");
    }
}

#[test]
fn the_registers_of_a_killed_guest_are_printed() {
    for (args, line, code) in [(&["--stats"][..], "panic\n", 3), (&["--stats", "--bare"], "panic\n", 3)] {
        let Some(mut child) = guest(args) else { return };
        type_to(&mut child, line);
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("Registers at the end, in ") && said.contains("    rip 000000004"), "{said}");
    }
    let Some(mut child) = guest(&["--stats"]) else { return };
    type_to(&mut child, "halt\n");
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("Registers"), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let Some(mut child) = guest(&[]) else { return };
    drop(child.stdout.take());
    type_to(&mut child, "help\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(128 + libc::SIGPIPE), String::new()));
}

#[test]
fn statistics_are_written_as_json() {
    let path = std::env::temp_dir().join(format!("paravane-stats-{}.json", std::process::id()));
    let Some(mut child) = guest(&["--stats-json", path.to_str().unwrap()]) else { return };
    type_to(&mut child, "halt\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(json["end"], "the guest powered off");
    assert!(json["whole"]["exits"][0]["count"].as_u64() > Some(0));
    assert!(json["startup"]["main_to_first_output_ns"].as_u64() > Some(0));
}

/// Popek and Goldberg's theorem: where sensitive instructions do not trap, trap-and-emulate is wrong.
#[test]
fn the_seventeen_go_wrong_where_they_do_not_trap() {
    let result = output(&["compare", "--fidelity", "--technique", "pv,trap", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&result.stdout).unwrap();
    let problems = json["problems"].as_array().unwrap();
    if problems.iter().any(|problem| problem.as_str().unwrap().contains("could not be started")) {
        skip("engine", &problems[0]);
        return;
    }
    assert_eq!(result.status.code(), Some(0), "{problems:?}");
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 17);
    for name in ["popf", "pushf", "lar", "mov-segment"] {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!(row["techniques"]["trap"]["verdict"], "wrong", "{row}");
        assert_ne!(row["techniques"]["pv"]["verdict"], "present", "{row}");
    }
    let usage = output(&["compare", "--fidelity", "--workload", "alu"]);
    assert_eq!(usage.status.code(), Some(2));
}

/// Recorded by the program itself, and read back by it.
#[test]
fn recorded_results_are_compared() {
    let measured =
        output(&["compare", "--workload", "null-call", "--technique", "pv,trap", "--repeat", "3", "--json"]);
    let mut json: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
    if json["engine"].is_null() {
        skip("engine", text(&measured.stderr));
        return;
    }
    assert_eq!(json["workloads"][0]["techniques"]["pv"]["spread"]["confidence"], 0.75);
    let folder = std::env::temp_dir().join(format!("paravane-recorded-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, json: &serde_json::Value| {
        let path = folder.join(name).into_os_string().into_string().unwrap();
        std::fs::write(&path, json.to_string()).unwrap();
        path
    };
    let before = file("a.json", &json);
    let same = output(&["compare", &before, &before]);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same.stderr));
    assert!(text(&same.stdout).contains(" 0 worse, 0 better"), "{}", text(&same.stdout));
    for run in json["workloads"][0]["techniques"]["pv"]["runs"].as_array_mut().unwrap() {
        run["traps"] = 100_000.into();
    }
    let after = file("b.json", &json);
    let worse = output(&["compare", &before, &after, "--json"]);
    assert_eq!(worse.status.code(), Some(8), "{}", text(&worse.stderr));
    let changes: serde_json::Value = serde_json::from_slice(&worse.stdout).unwrap();
    let rows = changes["rows"].as_array().unwrap();
    let told: Vec<_> = rows.iter().filter(|row| row["verdict"] == "worse").collect();
    assert!(told.len() == 1 && told[0]["measure"] == "exits" && told[0]["technique"] == "pv", "{changes}");
    assert_eq!(output(&["compare", &before, "/etc/passwd"]).status.code(), Some(1));
    std::fs::remove_dir_all(&folder).unwrap();
}
