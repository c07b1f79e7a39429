//! Runs the program on this machine's own Linux: it passes, and every check can fail.

use std::process::{Command, Output};

fn torture(spoil: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane-torture"));
    command.args(["0", "2"]);
    if let Some(name) = spoil {
        command.env("TORTURE_SPOIL", name);
    }
    command.output().expect("the program starts")
}

#[test]
fn it_passes_on_a_linux_that_is_in_order() {
    let output = torture(None);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.starts_with("torture: pass: vectors "), "{printed}");
}

#[test]
fn one_wrong_byte_fails_whichever_check_finds_it() {
    for check in ["vectors", "copies", "exec", "pipeline", "mappings", "signals", "threads", "numbers"] {
        let output = torture(Some(check));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{check}: {printed}");
        assert!(printed.starts_with(&format!("torture: FAIL: {check}: ")), "{printed}");
    }
}

#[test]
fn arguments_that_are_none_are_a_usage_error() {
    let program = env!("CARGO_BIN_EXE_paravane-torture");
    let output = Command::new(program).arg("soon").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(2));
}
