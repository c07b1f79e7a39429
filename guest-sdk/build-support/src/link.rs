//! Links a program as a kernel: called by the kernel's `build.rs`.
//!
//! A kernel is built for the host's own Linux target with `--cfg guest`; without that flag (for a host test, or an
//! editor's `cargo check`) nothing is emitted, and the crate is an ordinary one.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The usual base: pseudo-physical address 0 at 1 GiB.
///
/// A kernel in the lower half runs on every engine, the process engine included.
pub const LOW: u64 = 0x4000_0000;

/// The upper-half base that most x86-64 kernels use.
pub const HIGH: u64 = 0xffff_ffff_8000_0000;

const SCRIPT: &str = include_str!("../kernel.ld");

/// Linker arguments that keep the host's C runtime and position independence out of a kernel.
const ARGUMENTS: &[&str] = &[
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
];

/// Links every binary of the package as a kernel whose pseudo-physical address 0 is at `virt_base`.
///
/// # Errors
/// When the link script cannot be written to `OUT_DIR`.
pub fn kernel(virt_base: u64) -> io::Result<()> {
    emit("rustc-link-arg-bins=", virt_base)
}

/// As [`kernel`], for one binary of a package that has several.
///
/// # Errors
/// When the link script cannot be written to `OUT_DIR`.
pub fn kernel_bin(bin: &str, virt_base: u64) -> io::Result<()> {
    emit(&format!("rustc-link-arg-bin={bin}="), virt_base)
}

fn emit(directive: &str, virt_base: u64) -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_CFG_GUEST").is_none() {
        return Ok(());
    }
    let script = write_script(&PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()))?;
    for argument in arguments(&script, virt_base) {
        println!("cargo::{directive}{argument}");
    }
    Ok(())
}

fn write_script(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join("kernel.ld");
    fs::write(&path, SCRIPT)?;
    Ok(path)
}

/// `VIRT_BASE` must be defined before the script that uses it is read.
fn arguments(script: &Path, virt_base: u64) -> Vec<String> {
    let mut all: Vec<String> = ARGUMENTS.iter().map(|a| (*a).to_owned()).collect();
    all.push(format!("-Wl,--defsym=VIRT_BASE={virt_base:#x}"));
    all.push(format!("-Wl,-T,{}", script.display()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_precedes_the_script() {
        let all = arguments(Path::new("/x/kernel.ld"), HIGH);
        let base = all.iter().position(|a| a == "-Wl,--defsym=VIRT_BASE=0xffffffff80000000").unwrap();
        let script = all.iter().position(|a| a == "-Wl,-T,/x/kernel.ld").unwrap();
        assert!(base < script);
    }
}
