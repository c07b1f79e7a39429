//! Starting other programs, which most checks do.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// An error that ends a check, as a sentence for people.
pub(crate) type Outcome = Result<(), String>;

/// cargo, as if it had been started by hand: without what `cargo run` tells its program about the package xtask.
pub(crate) fn cargo(root: &Path) -> Command {
    program(root, "cargo")
}

/// Any other program, in the folder of the workspace.
pub(crate) fn program(root: &Path, name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root);
    for (variable, _) in std::env::vars_os() {
        let is_of_package = variable.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME"
        });
        if is_of_package {
            command.env_remove(variable);
        }
    }
    command
}

/// Prints the command, and runs it to its end.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let shown = shown(command);
    eprintln!("$ {shown}");
    let status = command.status().map_err(|error| format!("cannot start {shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    // A changed PATH finds this build's programs, and says nothing to a reader.
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)))
        .filter(|(name, _)| *name != "PATH");
    let set = set.map(|(name, value)| format!("{}={}", name.display(), quoted(value)));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    set.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.into_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("cargo");
        command
            .args(["test", "--target-dir=a b", ""])
            .env("RUSTFLAGS", "--cfg=machine=\"pv\"")
            .env_remove("HOME");
        assert_eq!(shown(&command), "RUSTFLAGS='--cfg=machine=\"pv\"' cargo test '--target-dir=a b' ''");
    }
}
