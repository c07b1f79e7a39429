//! The checks, in the order in which CI runs them: cheap ones that often fail come first.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Outcome, cargo, program, run};
use crate::{advisories, architecture, book, listings, package};

/// One check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Completes "this check: ...".
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Run) -> Outcome,
}

/// How checks are run.
pub(crate) struct Run {
    /// The folder of the workspace.
    pub(crate) root: PathBuf,
    /// Whether generated files are written instead of compared.
    pub(crate) write: bool,
    /// Whether features of the machine that checks need are required: see [`require`].
    pub(crate) is_ci: bool,
}

/// All checks.
pub(crate) const ALL: &[Check] = &[
    Check { name: "fmt", what: "code is formatted by rustfmt", run: fmt },
    Check { name: "clippy", what: "host code has no warnings", run: clippy },
    Check { name: "guest-lints", what: "guest code, built as such, has no warnings", run: guest_lints },
    Check { name: "architecture", what: "rooms use what the table allows", run: architecture::check },
    Check {
        name: "advisories",
        what: "the tests that docs/advisories.md names exist",
        run: advisories::check,
    },
    Check {
        name: "book",
        what: "every page is in the book, no link is dead, mdBook builds it",
        run: book::check,
    },
    Check { name: "doc", what: "cargo doc has no warnings", run: doc },
    Check { name: "test", what: "the tests that `cargo test` runs", run: test },
    Check {
        name: "listings",
        what: "listings are what is built; new projects boot and test",
        run: listings::check,
    },
    Check { name: "package", what: "what is published can be packaged", run: package::check },
    Check { name: "compare", what: "the main job: `paravane compare`", run: compare },
    Check { name: "linux", what: "Debian's Linux and GRUB on KVM (tests/linux/run.sh)", run: linux },
    Check {
        name: "hardware-kvm",
        what: "an emulated machine with hardware KVM (tests/hardware-kvm/run.sh)",
        run: hardware_kvm,
    },
];

/// The machine layers of the reference kernel, the values of `--cfg machine`.
pub(crate) const GUEST_MACHINES: [&str; 2] = ["pv", "bare"];

fn fmt(with: &Run) -> Outcome {
    run(cargo(&with.root).args(["fmt", "--all", "--check"]))
}

fn clippy(with: &Run) -> Outcome {
    run(cargo(&with.root).args(["clippy", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

/// clippy over guest code, built for a machine. It has a target folder of its own.
pub(crate) fn guest_clippy(root: &Path, machine: &str) -> Command {
    let mut command = cargo(root);
    command.args(["clippy", "--locked", "--lib", "--bins", "-p", "paravane-guest-sdk"]);
    command.args(["-p", "paravane-guest-kernel", "-p", "paravane-user", "-p", "paravane-nano"]);
    command.args(["-p", "paravane-test-guests", "-p", "paravane-port"]);
    // With `--target`, cargo does not use the flags for build scripts, which run on the host.
    command.args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"]);
    command.arg(format!("target/guest-lints-{machine}"));
    command.env("RUSTFLAGS", format!("--cfg=guest --cfg=machine=\"{machine}\" -Cpanic=abort"));
    command
}

fn guest_lints(with: &Run) -> Outcome {
    for machine in GUEST_MACHINES {
        run(guest_clippy(&with.root, machine).args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

/// Includes private items, which most of the documentation is about.
fn doc(with: &Run) -> Outcome {
    let mut command = cargo(&with.root);
    command.args(["doc", "--no-deps", "--locked", "--workspace", "--document-private-items"]);
    run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// The test command of README.md.
fn test(with: &Run) -> Outcome {
    run(cargo(&with.root).args(["test", "--locked"]))
}

/// The other command of README.md.
fn compare(with: &Run) -> Outcome {
    let program = ["run", "--release", "--locked", "--", "compare"];
    run(cargo(&with.root).args(program))?;
    run(cargo(&with.root).args(program).arg("--fidelity"))
}

/// In CI, on a machine with KVM, no part of it may be skipped.
fn linux(with: &Run) -> Outcome {
    let mut command = program(&with.root, "tests/linux/run.sh");
    if with.is_ci && File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        require(&mut command, "linux");
    }
    run(&mut command)
}

fn hardware_kvm(with: &Run) -> Outcome {
    let mut command = program(&with.root, "tests/hardware-kvm/run.sh");
    if with.is_ci {
        require(&mut command, "hardware-kvm");
    }
    run(&mut command)
}

/// Adds to `PARAVANE_REQUIRE`, the list of features whose absence makes a test fail instead of being skipped.
fn require(command: &mut Command, feature: &str) {
    let required = std::env::var("PARAVANE_REQUIRE").unwrap_or_default();
    command.env("PARAVANE_REQUIRE", with_feature(&required, feature));
}

fn with_feature(required: &str, feature: &str) -> String {
    if required.is_empty() { feature.to_owned() } else { format!("{required},{feature}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_required_beside_others() {
        assert_eq!(with_feature("", "linux"), "linux");
        assert_eq!(with_feature("xen-headers,qemu-img", "linux"), "xen-headers,qemu-img,linux");
    }

    #[test]
    fn each_check_has_a_name_of_its_own() {
        let mut names: Vec<&str> = ALL.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    /// CONTRIBUTING.md has a row for each.
    #[test]
    fn every_check_is_documented() {
        const PAGE: &str = include_str!("../../CONTRIBUTING.md");
        for check in ALL {
            assert!(PAGE.contains(&format!("| `{}` |", check.name)), "{}", check.name);
        }
    }
}
