//! The projects that `paravane new` writes, as a stranger gets them: built, booted, tested, and without warnings; and the
//! mistakes that one makes in them, each of which ends in a message that names its remedy.
//!
//! All share one target folder, so that what they depend on is compiled once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::checks::Run;
use crate::command::{Outcome, cargo, program, run, shown};
use crate::generated::cannot;

/// A project, in `target/listings/NAME`.
struct Project {
    folder: PathBuf,
    /// Where all projects are built.
    target: PathBuf,
    /// PATH, with the program that was built from this source first.
    path: std::ffi::OsString,
}

/// The check.
pub(crate) fn check(with: &Run) -> Outcome {
    run(cargo(&with.root).args(["build", "--locked", "--package", "paravane"]))?;
    let minimal = Project::new(with, "least", &["--minimal"])?;
    boots(&minimal, &["run", "--locked"])?;
    run(&mut minimal.cargo(&["test", "--locked"]))?;
    minimal.add(&with.root, "declared.rs", "src/bin/declared.rs")?;
    boots(&minimal, &["run", "--locked", "--bin", "declared"])?;

    let virtio = Project::new(with, "devices", &["--virtio"])?;
    boots(&virtio, &["run", "--locked"])?;
    run(&mut virtio.cargo(&["test", "--locked"]))?;

    let user = Project::new(with, "programs", &["--user"])?;
    boots(&user, &["run", "--locked"])?;
    run(&mut user.cargo(&["test", "--locked"]))?;
    run(&mut user.cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;

    let usual = Project::new(with, "my-kernel", &[])?;
    boots(&usual, &["run", "--locked"])?;
    run(&mut usual.cargo(&["test", "--locked", "--release"]))?;
    run(&mut usual.cargo(&["clippy", "--locked", "--all-targets", "--", "-D", "warnings"]))?;
    run(usual.cargo(&["doc", "--locked", "--no-deps"]).env("RUSTDOCFLAGS", "--cfg=guest -D warnings"))?;
    usual.add(&with.root, "mistakes.rs", "tests/kernel.rs")?;
    failures_are_reported(&usual)?;
    mistakes_name_their_remedy(&usual)
}

impl Project {
    fn new(with: &Run, name: &str, options: &[&str]) -> Result<Self, String> {
        let listings = with.root.join("target/listings");
        let folder = listings.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| cannot("remove", &folder, &error))?;
        }
        let built = with.root.join("target/debug");
        let before = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([built].into_iter().chain(std::env::split_paths(&before)));
        let path = path.map_err(|error| format!("cannot extend PATH: {error}"))?;
        let mut new = program(&with.root, "target/debug/paravane");
        run(new.env("PATH", &path).arg("new").arg(&folder).args(options).arg("--sdk").arg(&with.root))?;
        Ok(Self { folder, target: listings.join("target"), path })
    }

    /// Copies a file of `tests/listings`.
    fn add(&self, root: &Path, from: &str, to: &str) -> Outcome {
        let (from, to) = (root.join("tests/listings").join(from), self.folder.join(to));
        let folder = to.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(|error| cannot("create", folder, &error))?;
        fs::copy(&from, &to).map(drop).map_err(|error| cannot("copy", &from, &error))
    }

    /// cargo in the project's folder, where it finds the flags for guests.
    fn cargo(&self, words: &[&str]) -> Command {
        let mut command = cargo(&self.folder);
        // What CI sets for host code would replace the flags for guests.
        command.env_remove("RUSTFLAGS").env_remove("RUSTDOCFLAGS").env("PATH", &self.path);
        command.args(words).env("CARGO_TARGET_DIR", &self.target);
        command
    }
}

/// Runs a command that prints; what it printed, on both outputs, and how it ended.
fn output(command: &mut Command) -> Result<(String, Option<i32>), String> {
    eprintln!("$ {}", shown(command));
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot start {}: {error}", shown(command)))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8_lossy(&text).into_owned(), output.status.code()))
}

/// The kernel says hello and powers off.
fn boots(project: &Project, words: &[&str]) -> Outcome {
    let (text, status) = output(&mut project.cargo(words))?;
    print!("{text}");
    let good = status == Some(0) && text.starts_with("hello, ");
    if good {
        Ok(())
    } else {
        Err(format!("{}: the kernel did not say hello and power off", words.join(" ")))
    }
}

/// Tests that fail do so by name, and a hang ends.
fn failures_are_reported(project: &Project) -> Outcome {
    let mut tests = project.cargo(&["test", "--locked", "--test", "kernel"]);
    tests.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "paravane runner --timeout 2 --");
    let (text, status) = output(&mut tests)?;
    let wanted = [
        "running 5 tests",
        "test hangs ... FAILED (timed out)",
        "test panics ... FAILED\n",
        "test passes ... ok",
        "test returns - should panic ... FAILED (should have panicked)",
        "test waits ... ignored",
        "there is memory after all",
        " at tests/kernel.rs:17",
        "test result: FAILED. 1 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out",
        "(exit status: 124)",
    ];
    expect(&text, status != Some(0), &wanted)
}

/// What is missing is named by a message of ours.
fn mistakes_name_their_remedy(project: &Project) -> Outcome {
    let check = ["check", "--locked", "--bins"];
    let (text, status) = output(project.cargo(&check).env("RUSTFLAGS", "-Cdebuginfo=0"))?;
    expect(
        &text,
        status != Some(0),
        &["the flag --cfg=guest is missing", "ignores its rustflags while RUSTFLAGS"],
    )?;
    let (text, status) = output(project.cargo(&check).env("RUSTFLAGS", "--cfg=guest"))?;
    expect(&text, status != Some(0), &["add -Cpanic=abort to rustflags"])?;
    let script = project.folder.join("build.rs");
    let (aside, written) = (script.with_extension("away"), |error| cannot("rename", &script, &error));
    fs::rename(&script, &aside).map_err(written)?;
    let (text, status) = output(&mut project.cargo(&check))?;
    expect(&text, status != Some(0), &["needs a build.rs", "paravane_guest_build::link::kernel"])?;
    fs::rename(&aside, &script).map_err(written)?;
    let main = project.folder.join("src/main.rs");
    fs::write(&main, "#![no_std]\n#![no_main]\nparavane_guest::panic_handler!();\n")
        .map_err(|error| cannot("write", &main, &error))?;
    let (text, status) = output(&mut project.cargo(&["build", "--locked", "--bins"]))?;
    expect(&text, status != Some(0), &["this program has no entry point", "paravane_guest::entry!(main)"])?;
    let without_handler = "#![no_std]\n#![no_main]\nparavane_guest::entry!(main);\n\
                           fn main(_: paravane_guest::Boot) -> ! {\n    paravane_guest::power::power_off()\n}\n";
    fs::write(&main, without_handler).map_err(|error| cannot("write", &main, &error))?;
    let (text, status) = output(&mut project.cargo(&["build", "--locked", "--bins"]))?;
    // The compiler's own words; the SDK's macro has the attribute's name.
    expect(&text, status != Some(0), &["`#[panic_handler]` function required, but not found"])
}

fn expect(text: &str, failed: bool, wanted: &[&str]) -> Outcome {
    let missing: Vec<_> = wanted.iter().filter(|wanted| !text.contains(**wanted)).collect();
    if failed && missing.is_empty() {
        Ok(())
    } else {
        Err(format!("{text}\nthis should have failed, with {missing:?}"))
    }
}
