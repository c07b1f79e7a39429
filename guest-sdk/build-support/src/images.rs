//! Builds kernel images from the `build.rs` of a program that embeds them, and programs from that of their kernel.
//!
//! The inner build is an ordinary Cargo build of a package of the same workspace with the flags of guest code. It
//! has its own target directory, so that it never waits for the outer build's lock. The outer build's environment
//! must not leak into it: Cargo describes the build script's package and profile in variables that an inner Cargo or
//! rustc would take for its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs, io};

/// The target: the host's own, so that a stock toolchain has a `core` for it.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The profile of that name in the workspace's manifest.
const PROFILE: &str = "guest";

/// The code-generation flags of every kernel, for any machine layer or technique.
///
/// Position-independent code, like the prebuilt `core`, can be linked at any base. There is no red zone, because
/// interrupt handlers run on the interrupted stack. Frame pointers give backtraces.
const FLAGS: &[&str] = &[
    "--cfg=guest",
    "-Cpanic=abort",
    "-Crelocation-model=pic",
    "-Cno-redzone=yes",
    "-Cforce-unwind-tables=no",
    "-Cforce-frame-pointers=yes",
];

/// Variables of the outer build that the inner one must not see, by prefix and by name.
const FOREIGN_PREFIXES: &[&str] = &[
    "CARGO_FEATURE_",
    "CARGO_CFG_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_BUILD_",
    "CARGO_TARGET_",
    "DEP_",
];
const FOREIGN: &[&str] = &[
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PRIMARY_PACKAGE",
    "CLIPPY_ARGS",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "TARGET",
];

/// An image could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum ImageError {
    /// A variable that Cargo sets for every build script is missing.
    NotABuildScript(&'static str),
    /// Cargo could not be started.
    Spawn {
        /// The program.
        cargo: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// The inner build failed; its own messages were passed on.
    Failed {
        /// The guest package.
        package: String,
    },
    /// A file or directory of the inner build could not be used.
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotABuildScript(name) => {
                write!(f, "{name} is not set: images can be built by a Cargo build script only")
            }
            Self::Spawn { cargo, error } => write!(f, "cannot run {}: {error}", cargo.display()),
            Self::Failed { package } => {
                write!(f, "building `{package}` as a guest failed: its errors are above")
            }
            Self::File { path, error } => {
                write!(f, "cannot use {} for the guest build: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for ImageError {}

/// One build of a package of kernels ([`link::kernel`](crate::link::kernel)) or of programs for a kernel's user mode
/// ([`link::program`](crate::link::program)), with the profile `guest` of its workspace.
///
/// ```no_run
/// use paravane_guest_build::images::Guest;
///
/// let programs = Guest { directory: "programs", package: "programs", bins: &["hello"], cfgs: &[], prefix: "" };
/// programs.build()?; // then: include_bytes!(concat!(env!("OUT_DIR"), "/hello.elf"))
/// # Ok::<(), paravane_guest_build::images::ImageError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// The directory of the package, relative to the directory of the calling package's manifest.
    pub directory: &'a str,
    /// The package's name.
    pub package: &'a str,
    /// Its binaries to build.
    pub bins: &'a [&'a str],
    /// Further `--cfg` values, e.g. `machine="pv"`.
    pub cfgs: &'a [&'a str],
    /// The prefix of the images' file names in `OUT_DIR`: `PREFIX` + binary + `.elf`.
    pub prefix: &'a str,
}

impl Guest<'_> {
    /// Builds the images into `OUT_DIR`, and declares their sources to Cargo.
    ///
    /// # Errors
    /// When the inner build cannot be run or fails.
    pub fn build(&self) -> Result<(), ImageError> {
        let out = PathBuf::from(variable("OUT_DIR")?);
        let directory = resolve(&PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join(self.directory))?;
        let target_dir = out.join("guest");
        let cargo = PathBuf::from(variable("CARGO")?);
        let status = self
            .command(&cargo, &directory, &target_dir)
            .status()
            .map_err(|error| ImageError::Spawn { cargo, error })?;
        if !status.success() {
            return Err(ImageError::Failed { package: self.package.to_owned() });
        }
        declare_manifests(&directory);
        let built = target_dir.join(TARGET).join(PROFILE);
        for bin in self.bins {
            let image = built.join(bin);
            copy_if_changed(&image, &out.join(format!("{}{bin}.elf", self.prefix)))?;
            declare_sources(&built.join(format!("{bin}.d")))?;
        }
        Ok(())
    }

    fn command(&self, cargo: &Path, directory: &Path, target_dir: &Path) -> Command {
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--locked", "--profile", PROFILE, "--target", TARGET]);
        command.args(["--package", self.package]);
        command.args(self.bins.iter().flat_map(|bin| ["--bin", *bin]));
        command.arg("--manifest-path").arg(directory.join("Cargo.toml"));
        command.arg("--target-dir").arg(target_dir);
        for (name, _) in env::vars_os().filter(|(name, _)| is_foreign(name)) {
            command.env_remove(name);
        }
        command.env("CARGO_BUILD_BUILD_DIR", target_dir);
        command.env("CARGO_ENCODED_RUSTFLAGS", self.flags());
        command
    }

    fn flags(&self) -> String {
        let cfgs = self.cfgs.iter().map(|cfg| format!("--cfg={cfg}"));
        FLAGS.iter().map(|flag| (*flag).to_owned()).chain(cfgs).collect::<Vec<_>>().join("\x1f")
    }
}

fn variable(name: &'static str) -> Result<OsString, ImageError> {
    env::var_os(name).ok_or(ImageError::NotABuildScript(name))
}

/// Resolves `..`, so that the path's ancestors are the directory's real ones.
fn resolve(directory: &Path) -> Result<PathBuf, ImageError> {
    directory.canonicalize().map_err(|error| ImageError::File { path: directory.to_owned(), error })
}

fn is_foreign(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| {
        FOREIGN.contains(&name) || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// Copies a file unless the copy is equal, so that the code that embeds it is not compiled again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<(), ImageError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error| ImageError::File { path, error }
    };
    let new = fs::read(from).map_err(fail(from))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).map_err(fail(to))
}

/// Declares the manifests and the lock file from the package up to its workspace's root.
fn declare_manifests(directory: &Path) {
    for ancestor in directory.ancestors() {
        println!("cargo::rerun-if-changed={}", ancestor.join("Cargo.toml").display());
        let lock = ancestor.join("Cargo.lock");
        if lock.exists() {
            println!("cargo::rerun-if-changed={}", lock.display());
            return;
        }
    }
}

/// Declares the files of the inner build's dependency file as dependencies of the outer build.
fn declare_sources(dep_info: &Path) -> Result<(), ImageError> {
    let text = fs::read_to_string(dep_info)
        .map_err(|error| ImageError::File { path: dep_info.to_owned(), error })?;
    for source in sources(&text) {
        println!("cargo::rerun-if-changed={source}");
    }
    Ok(())
}

/// The prerequisites of a make rule; `\ ` stands for a blank in a name.
fn sources(dep_info: &str) -> Vec<String> {
    let Some((_, list)) = dep_info.split_once(": ") else {
        return Vec::new();
    };
    let line = list.lines().next().unwrap_or_default().replace("\\ ", "\0");
    line.split_whitespace().map(|name| name.replace('\0', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dep_info_is_read_with_blanks_in_names() {
        let text = "/t/kernel: /a/b.rs /c\\ d/e.rs /f.ld\n\n/a/b.rs:\n";
        assert_eq!(sources(text), ["/a/b.rs", "/c d/e.rs", "/f.ld"]);
        assert!(sources("no rule").is_empty());
    }

    #[test]
    fn the_outer_build_does_not_leak_in() {
        for name in ["CARGO_CFG_TARGET_OS", "CARGO_PROFILE_DEV_DEBUG", "RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER"]
        {
            assert!(is_foreign(&name.into()), "{name}");
        }
        for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_TOOLCHAIN", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE"]
        {
            assert!(!is_foreign(&name.into()), "{name}");
        }
    }

    #[test]
    fn every_machine_layer_gets_the_same_flags_but_its_own_cfg() {
        let guest = |cfgs| Guest { directory: "..", package: "p", bins: &["b"], cfgs, prefix: "" };
        let (pv, bare) = (guest(&["machine=\"pv\""]).flags(), guest(&["machine=\"bare\""]).flags());
        assert_eq!(pv.replace("\"pv\"", "\"bare\""), bare);
        assert_eq!(pv.split('\x1f').count(), FLAGS.len() + 1);
    }
}
