//! Links the programs as a static executable; without `--cfg guest` the crate is an ordinary one.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=user.ld");
    if env::var_os("CARGO_CFG_GUEST").is_none() {
        return;
    }
    let script = format!("-Wl,-T,{}/user.ld", env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
        "-Wl,-z,max-page-size=4096",
        &script,
    ];
    arguments.iter().for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));
}
