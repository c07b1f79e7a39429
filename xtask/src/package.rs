//! What is published: the SDK's crates and the program, as packages that need nothing of this source tree.
//!
//! The program embeds guests, whose source is not in its package: it has the images instead, which are copied from the
//! last build to `hypervisor/prebuilt` first. The SDK's crates are built as packaged; the program is not, for that
//! takes minutes: the same command without `--no-verify` after this check does it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checks::Run;
use crate::command::{Outcome, cargo, run};
use crate::generated::cannot;

/// What a kernel depends on.
const SDK: [&str; 6] = ["-p", "paravane-abi", "-p", "paravane-guest-build", "-p", "paravane-guest-sdk"];
/// The program, and what it depends on: cargo takes that from the packages, not from a registry.
const PROGRAM: [&str; 8] =
    ["-p", "paravane-abi", "-p", "paravane-guest-build", "-p", "paravane-nano", "-p", "paravane"];
/// What the program's package has to have beside its source.
const NEEDED: [&str; 10] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "prebuilt/bare-fidelity.elf",
    "prebuilt/bare-guest-kernel.elf",
    "prebuilt/programs.elf",
    "prebuilt/pv-guest-kernel.elf",
    "templates/common/build.rs",
    "templates/minimal/manifest.toml",
    "templates/user/programs/manifest.toml",
];

/// The check.
pub(crate) fn check(with: &Run) -> Outcome {
    copy_images(with)?;
    // Files that git ignores, or that are not committed yet, are part of it.
    run(cargo(&with.root).args(["package", "--locked", "--allow-dirty"]).args(SDK))?;
    run(cargo(&with.root).args(["package", "--locked", "--allow-dirty", "--no-verify"]).args(PROGRAM))?;
    let mut list = cargo(&with.root);
    list.args(["package", "--locked", "--allow-dirty", "--list", "-p", "paravane"]);
    let output = list.output().map_err(|error| format!("cannot start cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match NEEDED.iter().find(|needed| !text.lines().any(|line| line == **needed)) {
        None => Ok(()),
        Some(missing) => Err(format!("the package of the program has no {missing}")),
    }
}

/// Copies the guests' images from where the program's build script has put them.
fn copy_images(with: &Run) -> Outcome {
    let mut build = cargo(&with.root);
    build.args(["build", "--locked", "--package", "paravane", "--message-format=json"]);
    let output = build.stderr(std::process::Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot start cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let from = out_dir(&text).ok_or("cargo did not say where the build script of paravane writes")?;
    let to = with.root.join("hypervisor/prebuilt");
    fs::create_dir_all(&to).map_err(|error| cannot("create", &to, &error))?;
    for needed in NEEDED.iter().filter_map(|needed| needed.strip_prefix("prebuilt/")) {
        let image = from.join(needed);
        fs::copy(&image, to.join(needed)).map_err(|error| cannot("copy", &image, &error))?;
    }
    Ok(())
}

/// The folder that cargo's messages name for the build script of the package `paravane`, which is in `hypervisor`.
fn out_dir(messages: &str) -> Option<PathBuf> {
    let is_ours = |line: &&str| {
        line.contains(r#""reason":"build-script-executed""#) && line.contains("/hypervisor#paravane@")
    };
    let (_, rest) = messages.lines().find(is_ours)?.split_once(r#""out_dir":""#)?;
    Some(Path::new(rest.split_once('"')?.0).to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_scripts_folder_is_found() {
        let other = r#"{"reason":"build-script-executed","package_id":"path+file:///w/tests#0.1.0","out_dir":"/o/1"}"#;
        let ours = r#"{"reason":"build-script-executed","package_id":"path+file:///w/hypervisor#paravane@0.1.0","env":[],"out_dir":"/o/2"}"#;
        assert_eq!(out_dir(&format!("{other}\n{ours}\n")), Some(PathBuf::from("/o/2")));
        assert_eq!(out_dir(other), None);
    }
}
