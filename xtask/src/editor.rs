//! What rust-analyzer runs to find errors: host code as host code, guest code as guest code.

use std::path::Path;

use crate::checks::{GUEST_MACHINES, guest_clippy};
use crate::command::{Outcome, cargo};

/// Checks everything once, with cargo's messages on standard output. An error in one part does not hide those in
/// another: rust-analyzer reads the messages and ignores the exit status.
pub(crate) fn check(root: &Path) -> Outcome {
    const MESSAGES: &str = "--message-format=json-diagnostic-rendered-ansi";
    let mut commands = vec![cargo(root)];
    commands[0].args(["clippy", "--workspace", "--all-targets", "--keep-going", MESSAGES]);
    for machine in GUEST_MACHINES {
        let mut command = guest_clippy(root, machine);
        command.args(["--keep-going", MESSAGES]);
        commands.push(command);
    }
    let mut all_passed = true;
    for mut command in commands {
        all_passed &= command.status().map_err(|error| format!("cannot start cargo: {error}"))?.success();
    }
    if all_passed { Ok(()) } else { Err("there were errors".to_owned()) }
}
