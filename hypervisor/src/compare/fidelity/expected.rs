//! What each technique is documented to do with each instruction (docs/seventeen.md).
//!
//! Where a kernel runs deprivileged and its code is what the image holds, an instruction that does not trap asks the
//! wrong machine: `trap`, and `patch`, which changes only sites that trapped. Whatever reads each instruction before it
//! runs is right, and so is hardware.

use super::Verdict::{self, Absent, Declared, Right, Trapped, Wrong};

/// Techniques that run the image's code as it is, at CPL 3.
const AS_IT_IS: [&str; 3] = ["trap", "patch", "patch-adaptive"];

/// Whether this verdict is documented.
pub(super) fn is(technique: &str, row: &str, verdict: Verdict) -> bool {
    match technique {
        "pv" => matches!(verdict, Absent | Declared),
        name if AS_IT_IS.contains(&name) => {
            // A patch takes in the instructions after the one that trapped.
            let patched = name != "trap" && verdict == Right;
            patched || deprivileged(row).contains(&verdict)
        }
        _ => verdict == Right,
    }
}

/// At CPL 3, executed as it is.
fn deprivileged(row: &str) -> &'static [Verdict] {
    match row {
        // Where the host has UMIP switched on they fault, and Linux may answer for the processor (SDM vol. 3, 2.5).
        "sgdt" | "sidt" | "sldt" | "str" | "smsw" => &[Wrong, Trapped],
        // They load what the selector names, and fault where that is privileged: then they are emulated.
        "pop-segment" | "far-transfer" | "iretq" => &[Wrong, Trapped, Right],
        // Some hosts let the hypervisor answer.
        "cpuid" => &[Wrong, Right],
        _ => &[Wrong],
    }
}
