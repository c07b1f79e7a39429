//! What guests see of the processor on each engine, and where it is more than they should: what CPUID cannot hide.

use serde::Serialize;

use super::trial::Trial;
use crate::engine::kvm::{HostKind, host_kind};
use crate::host::host_cpuid::{can_trap, xcr0};
use crate::x86::guest_cpuid::available;

/// What the CPUID instruction shows to a guest's programs on one engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The engine.
    pub engine: &'static str,
    /// The widest vector registers, which the engine keeps for the guest.
    pub vectors: &'static str,
    /// What is shown that should be hidden; nothing if nothing is.
    pub not_hidden: Option<String>,
}

/// Looks at every engine that works.
pub fn shown(engines: &[Trial]) -> Vec<Shown> {
    let vectors = vectors(available(xcr0()));
    let working = engines.iter().filter(|trial| trial.works());
    working
        .map(|trial| {
            let not_hidden = match trial.name {
                "kvm" => on_kvm(host_kind()),
                _ => on_processes(can_trap(), xcr0() & !available(xcr0())),
            };
            Shown { engine: trial.name, vectors, not_hidden }
        })
        .collect()
}

fn vectors(state: u64) -> &'static str {
    match state {
        _ if state & 0x80 != 0 => "AVX-512",
        _ if state & 4 != 0 => "AVX",
        _ => "SSE",
    }
}

/// Software KVM's table of CPUID only adds to what its host has.
fn on_kvm(kind: HostKind) -> Option<String> {
    (kind == HostKind::Software).then(|| {
        "privileged features of the host (SMEP, SMAP, TSX and the like), because software KVM does not mask them; \
         they have no registers that programs could use"
            .to_owned()
    })
}

/// Without trapping, programs see all that the host has.
fn on_processes(traps: bool, other: u64) -> Option<String> {
    if traps {
        return None;
    }
    let names = [(3, "MPX"), (9, "protection keys"), (11, "CET"), (17, "AMX")];
    let present: Vec<_> =
        names.into_iter().filter(|(bit, _)| other >> bit & 1 != 0).map(|(_, name)| name).collect();
    let which =
        if present.is_empty() { String::new() } else { format!(", {} included", present.join(" and ")) };
    Some(format!("all features of the host{which}, because CPUID cannot be made to trap here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_hidden_is_named() {
        assert_eq!(on_processes(true, 1 << 17), None);
        let said = on_processes(false, 1 << 17 | 1 << 18 | 1 << 9).unwrap();
        assert!(said.contains("protection keys and AMX included"), "{said}");
        assert!(!on_processes(false, 0).unwrap().contains("included"));
        assert_eq!(on_kvm(HostKind::Hardware), None);
        assert!(on_kvm(HostKind::Software).unwrap().contains("does not mask"));
        assert_eq!([0xe7, 7, 3].map(vectors), ["AVX-512", "AVX", "SSE"]);
    }
}
