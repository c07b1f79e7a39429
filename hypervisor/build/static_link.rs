//! Links the program `paravane` with a static C library if the build machine has one.
//!
//! The dynamic linker takes a third of a millisecond, a sixth of what a guest's whole start takes. Rust's own switch
//! for this (`-C target-feature=+crt-static`) applies to a whole build: plain `cargo build` would use it for procedural
//! macros too, which then cannot be loaded. So only the program is linked as a static, position-independent executable.
//! The linker finds each library that rustc asks for in a directory that this script writes, as a linker script that
//! names the static archive. Without archives (not every distribution installs them with the C compiler) the program is
//! linked as usual. This may only change how the program is linked, never what it does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The libraries that rustc links into every program for this target, without GCC's unwinder.
const LIBRARIES: [&str; 6] = ["c", "m", "rt", "pthread", "util", "dl"];
/// Set it to link the program dynamically.
const OPT_OUT: &str = "PARAVANE_DYNAMIC";

/// Emits the directives for the program `bin`.
pub fn emit(bin: &str) -> io::Result<()> {
    println!("cargo::rerun-if-env-changed={OPT_OUT}");
    let ours = env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    if !ours || env::var("HOST") != env::var("TARGET") || env::var_os(OPT_OUT).is_some() {
        return Ok(());
    }
    let linker = env::var_os("RUSTC_LINKER").map_or_else(|| PathBuf::from("cc"), PathBuf::from);
    let Some(archives) = LIBRARIES.iter().map(|name| archive(&linker, name)).collect::<Option<Vec<_>>>()
    else {
        return Ok(());
    };
    if archive(&linker, "gcc_eh").is_none() {
        return Ok(());
    }
    let dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("static");
    fs::create_dir_all(&dir)?;
    for (name, archive) in LIBRARIES.iter().zip(archives) {
        fs::write(dir.join(format!("lib{name}.a")), format!("INPUT({})\n", archive.display()))?;
    }
    // The unwinder's `gcc_s` exists only as a shared library; `gcc_eh` is the same code as an archive.
    fs::write(dir.join("libgcc_s.a"), "INPUT(-lgcc_eh -lgcc)\n")?;
    println!("cargo::rustc-link-arg-bin={bin}=-L{}", dir.display());
    println!("cargo::rustc-link-arg-bin={bin}=-static-pie");
    Ok(())
}

/// The archive that `linker` uses for `-l name` in a static link.
fn archive(linker: &Path, name: &str) -> Option<PathBuf> {
    let output = Command::new(linker).arg(format!("-print-file-name=lib{name}.a")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    // The compiler prints an unknown name unchanged. Spaces and brackets would need quoting in a linker script.
    let plain = path.to_str()?.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    (path.is_absolute() && plain && path.exists()).then_some(path)
}
