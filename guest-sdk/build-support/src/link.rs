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

/// Where [`program`] links programs: where Linux has them, too.
pub const PROGRAM: u64 = 0x40_0000;

const SCRIPT: &str = include_str!("../kernel.ld");
const PROGRAM_SCRIPT: &str = include_str!("../program.ld");

/// Linker arguments that keep the host's C runtime and position independence out of a kernel or a program.
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

/// The variable by which the SDK's macros see, when the kernel is compiled, that its `build.rs` called this module.
const MARK: &str = "PARAVANE_GUEST_LINKED";

/// How the programs of a package become kernels.
///
/// ```no_run
/// use paravane_guest_build::link::{Kernel, LOW};
///
/// Kernel::at(LOW).stack(256 << 10).link()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "`link` passes it to the linker"]
pub struct Kernel {
    virt_base: u64,
    stack: u64,
    bin: Option<String>,
}

impl Kernel {
    /// The stack that a kernel starts on unless it chooses another size: 64 KiB.
    pub const STACK: u64 = 64 << 10;

    /// Kernels whose pseudo-physical address 0 is at `virt_base`, usually [`LOW`] or [`HIGH`].
    pub const fn at(virt_base: u64) -> Self {
        Self { virt_base, stack: Self::STACK, bin: None }
    }

    /// The size of the stack that the kernel starts on, in bytes, rounded up to whole pages.
    ///
    /// Below it lies a page that is not mapped, so that an overflow is a page fault and does not overwrite data.
    pub const fn stack(mut self, bytes: u64) -> Self {
        self.stack = bytes;
        self
    }

    /// Only the binary of this name, in a package that has other programs too.
    pub fn bin(mut self, name: &str) -> Self {
        self.bin = Some(name.to_owned());
        self
    }

    /// Passes all this to the linker of the package's binaries, examples and tests. Does nothing without `--cfg guest`.
    ///
    /// # Errors
    /// When the link script cannot be written to `OUT_DIR`.
    pub fn link(self) -> io::Result<()> {
        println!("cargo::rerun-if-changed=build.rs");
        if env::var_os("CARGO_CFG_GUEST").is_none() {
            return Ok(());
        }
        let script = write_script("kernel.ld", SCRIPT)?;
        let directive = match &self.bin {
            Some(bin) => format!("rustc-link-arg-bin={bin}"),
            None => "rustc-link-arg".to_owned(),
        };
        for argument in self.arguments(&script) {
            println!("cargo::{directive}={argument}");
        }
        println!("cargo::rustc-env={MARK}=1");
        Ok(())
    }

    /// What the script uses must be defined before it is read.
    fn arguments(&self, script: &Path) -> Vec<String> {
        let stack = self.stack.next_multiple_of(4096);
        let mut all: Vec<String> = ARGUMENTS.iter().map(|a| (*a).to_owned()).collect();
        all.push(format!("-Wl,--defsym=VIRT_BASE={:#x}", self.virt_base));
        all.push(format!("-Wl,--defsym=BOOT_STACK_SIZE={stack:#x}"));
        all.push(format!("-Wl,-T,{}", script.display()));
        all
    }
}

/// Links every binary, example and test of the package as a kernel at `virt_base`: short for [`Kernel::at`] and
/// [`Kernel::link`].
///
/// # Errors
/// As for [`Kernel::link`].
pub fn kernel(virt_base: u64) -> io::Result<()> {
    Kernel::at(virt_base).link()
}

/// As [`kernel`], for one binary of a package that has several.
///
/// # Errors
/// As for [`Kernel::link`].
pub fn kernel_bin(bin: &str, virt_base: u64) -> io::Result<()> {
    Kernel::at(virt_base).bin(bin).link()
}

/// Links the binaries of a package as programs for a kernel's user mode: static, at [`PROGRAM`], as the SDK's
/// `user::load` takes them. Does nothing without `--cfg guest`.
///
/// The kernel's own `build.rs` builds that package with [`images::Guest`](crate::images::Guest) and embeds the files.
///
/// # Errors
/// When the link script cannot be written to `OUT_DIR`.
pub fn program() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_CFG_GUEST").is_some() {
        let script = write_script("program.ld", PROGRAM_SCRIPT)?;
        for argument in program_arguments(&script) {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
    Ok(())
}

/// What the script uses must be defined before it is read.
fn program_arguments(script: &Path) -> Vec<String> {
    let mut all: Vec<String> = ARGUMENTS.iter().map(|a| (*a).to_owned()).collect();
    all.push(format!("-Wl,--defsym=PROGRAM_BASE={PROGRAM:#x}"));
    all.push(format!("-Wl,-T,{}", script.display()));
    all
}

fn write_script(name: &str, text: &str) -> io::Result<PathBuf> {
    let path = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
    fs::write(&path, text)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_uses_precedes_it() {
        let all = Kernel::at(HIGH).stack(5000).arguments(Path::new("/x/kernel.ld"));
        let position = |argument: &str| all.iter().position(|a| a == argument).unwrap();
        let script = position("-Wl,-T,/x/kernel.ld");
        assert!(position("-Wl,--defsym=VIRT_BASE=0xffffffff80000000") < script);
        assert!(position("-Wl,--defsym=BOOT_STACK_SIZE=0x2000") < script, "whole pages");
        let program = program_arguments(Path::new("/x/program.ld"));
        let [.., base, script] = program.as_slice() else { panic!("{program:?}") };
        assert_eq!([base.as_str(), script], ["-Wl,--defsym=PROGRAM_BASE=0x400000", "-Wl,-T,/x/program.ld"]);
    }
}
