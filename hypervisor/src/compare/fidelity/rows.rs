//! The instructions, by the names that the guest gives them.

use crate::audit::{Class, Finding};

/// One of the seventeen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the guest and the tables call it.
    pub name: &'static str,
    /// Its mnemonics.
    pub about: &'static str,
    /// The class that the audit puts it into, and how its lines begin there.
    found: (Class, &'static str),
}

const fn row(name: &'static str, about: &'static str, class: Class, begins: &'static str) -> Row {
    Row { name, about, found: (class, begins) }
}

/// All of them, in the order of the table.
pub const ROWS: [Row; 17] = [
    row("popf", "POPF", Class::Flags, "popf"),
    row("pushf", "PUSHF", Class::Flags, "pushf"),
    row("sgdt", "SGDT", Class::StoreTables, "sgdt"),
    row("sidt", "SIDT", Class::StoreTables, "sidt"),
    row("sldt", "SLDT", Class::StoreTables, "sldt"),
    row("str", "STR", Class::StoreTables, "str"),
    row("smsw", "SMSW", Class::StoreTables, "smsw"),
    row("lar", "LAR", Class::ReadSegment, "lar"),
    row("lsl", "LSL", Class::ReadSegment, "lsl"),
    row("verr", "VERR", Class::ReadSegment, "verr"),
    row("verw", "VERW", Class::ReadSegment, "verw"),
    row("mov-segment", "MOV from CS, SS", Class::ReadSegment, "mov"),
    row("push-segment", "PUSH FS, GS", Class::ReadSegment, "push"),
    row("pop-segment", "POP FS, GS", Class::LoadSegment, "pop"),
    row("far-transfer", "far CALL, JMP, RET", Class::FarTransfer, ""),
    row("iretq", "IRETQ within a ring", Class::InterruptReturn, ""),
    row("cpuid", "CPUID", Class::Identify, ""),
];

impl Row {
    /// Whether the audit's finding is such an instruction.
    pub(super) fn is_of(&self, finding: &Finding) -> bool {
        let (class, begins) = self.found;
        finding.class == class && finding.instruction.starts_with(begins)
    }

    /// The one of that name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.name == name)
    }
}
