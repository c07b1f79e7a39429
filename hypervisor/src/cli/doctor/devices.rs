//! What guests' devices need of the host, and whether it is here. Nothing is started, made or changed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{env, io};

use io_uring::IoUring;
use serde::Serialize;

use crate::backend::net::tap::Tap;
use crate::backend::net::user::UserError;

/// One thing that a device needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The option of `paravane run` that it is for.
    pub option: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Why it cannot be used, and what to do; nothing if it can.
    pub why_not: Option<String>,
    /// Whether the option works without it.
    pub optional: bool,
}

/// Looks for everything. Other devices need nothing of the host that programs do not have anyway; vhost is not used.
pub fn needs() -> Vec<Need> {
    let need = |option, what, found: Result<(), String>, optional| Need {
        option,
        what,
        why_not: found.err(),
        optional,
    };
    vec![
        need("--disk", "io_uring", io_uring(), true),
        need("--net tap", "/dev/net/tun", Tap::available().map_err(|error| error.to_string()), false),
        need("--net user", "the program passt", passt(), false),
    ]
}

fn io_uring() -> Result<(), String> {
    let refused = |error: io::Error| format!("{error}; disks are worked on by threads, which is slower");
    IoUring::new(1).map(drop).map_err(refused)
}

fn passt() -> Result<(), String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|dir| is_program(&dir.join("passt")));
    if found { Ok(()) } else { Err(UserError::NotInstalled.to_string()) }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_files() {
        assert!(is_program(&env::current_exe().unwrap()));
        assert!(!is_program(Path::new("/")) && !is_program(Path::new("/nonexistent")));
        assert!(!is_program(Path::new("/proc/version")), "nobody may execute it");
    }

    #[test]
    fn what_is_missing_says_what_to_do() {
        for need in needs() {
            let said = need.why_not.as_deref().unwrap_or("install, load or slower");
            assert!(["install", "load", "ask", "slower"].iter().any(|word| said.contains(word)), "{need:?}");
        }
    }
}
