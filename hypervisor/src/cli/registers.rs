//! The registers of a guest that did not end of its own will: as text, and as strings that JSON keeps whole.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::launch::LastState;
use crate::x86::registers::Regs;

/// What a vCPU was doing when its domain ended.
#[derive(Debug)]
pub(super) struct Registers<'a>(pub(super) &'a LastState);

/// Names and values, RIP and RFLAGS first, then in the order of their numbers in the instruction set.
fn named(regs: &Regs) -> [(&'static str, u64); 20] {
    [
        ("rip", regs.rip),
        ("rflags", regs.rflags),
        ("rax", regs.rax),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rbx", regs.rbx),
        ("rsp", regs.rsp),
        ("rbp", regs.rbp),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("fs.base", regs.fs_base),
        ("gs.base", regs.gs_base),
    ]
}

impl fmt::Display for Registers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(LastState { regs, place }) = self;
        writeln!(f, "\nRegisters at the end, in {}", place.as_deref().unwrap_or("code without a symbol"))?;
        for row in named(regs).chunks(4) {
            let cells: Vec<String> =
                row.iter().map(|(name, value)| format!("{name:>7} {value:016x}")).collect();
            writeln!(f, "{}", cells.join(" "))?;
        }
        Ok(())
    }
}

impl Serialize for Registers<'_> {
    /// `place`, and each register as "0x...": 64 bits do not fit JSON's numbers everywhere.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let registers = named(&self.0.regs).map(|(name, value)| (name, Some(format!("{value:#x}"))));
        serializer.collect_map([("place", self.0.place.clone())].into_iter().chain(registers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> LastState {
        let regs = Regs { rip: 0x4010_0000, r15: u64::MAX, gs_base: 7, ..Regs::default() };
        LastState { regs, place: Some("main+0x3 (a.rs:7)".to_owned()) }
    }

    #[test]
    fn every_register_is_shown_once() {
        let text = Registers(&last()).to_string();
        assert!(text.starts_with("\nRegisters at the end, in main+0x3 (a.rs:7)\n    rip 0000000040100000"));
        assert!(text.contains("r15 ffffffffffffffff"));
        assert_eq!(text.lines().skip(2).flat_map(str::split_whitespace).count(), 40);
        assert!(text.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn numbers_keep_all_their_bits_in_json() {
        let json = serde_json::to_value(Registers(&last())).unwrap();
        assert_eq!((&json["r15"], &json["gs.base"]), (&"0xffffffffffffffff".into(), &"0x7".into()));
        assert_eq!(json["place"], "main+0x3 (a.rs:7)");
        let nowhere = LastState { place: None, ..last() };
        assert!(serde_json::to_value(Registers(&nowhere)).unwrap()["place"].is_null());
    }
}
