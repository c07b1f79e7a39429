//! What an audit reports, as `--json` prints it.

use serde::Serialize;

use super::regions::Skipped;
use crate::x86::sensitive::{Class, Effect};

/// How many findings are listed one by one; all of them are counted.
pub const LISTED: usize = 50_000;

/// What the audited file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// An image with Xen notes.
    Paravirtual,
    /// An image with the notes of the bare boot protocol.
    Bare,
    /// An object file or a kernel module, whose addresses are offsets in its sections.
    Object,
    /// An ELF file that is not an image for Paravane yet.
    Other,
}

/// One privileged or sensitive instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its virtual address; in an object file, its offset in `section`.
    pub address: u64,
    /// The section that it is in; none if the file has no sections.
    pub section: Option<String>,
    /// The function that it is in, if the image has symbols.
    pub function: Option<String>,
    /// Bytes from the function's beginning.
    pub offset: u64,
    /// The source file and line that it comes from, if the image has line tables. Those of an object file are
    /// not read: they too have still to be relocated.
    pub line: Option<String>,
    /// The instruction, in NASM's syntax; operands that the linker has still to fill in by their symbols.
    pub instruction: String,
    /// What kind it is.
    pub class: Class,
    /// What becomes of it at CPL 3.
    pub effect: Effect,
    /// Whether this is surely code: it is in a function, and everything before it there was code.
    pub certain: bool,
    /// Why it is there, if the image declares it deliberate.
    pub deliberate: Option<String>,
}

/// One class that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassSummary {
    /// The class.
    pub class: Class,
    /// What becomes of it at CPL 3.
    pub effect: Effect,
    /// What it is, for people.
    pub name: &'static str,
    /// What to use in its place.
    pub instead: &'static str,
    /// How many of them there are.
    pub count: u64,
    /// How many of these are not certain to be code.
    pub uncertain: u64,
    /// How many the image declares deliberate.
    pub deliberate: u64,
    /// In how many functions they are; code outside of functions counts as one.
    pub functions: u64,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Bytes of executable code.
    pub code_bytes: u64,
    /// Of these, bytes that belong to a symbol.
    pub named_bytes: u64,
    /// Of these, bytes that no instruction begins with.
    pub undecodable_bytes: u64,
    /// Instructions decoded.
    pub instructions: u64,
    /// Functions, and labels in assembly.
    pub functions: u64,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// What was audited.
    pub subject: Subject,
    /// Classes found: what goes wrong silently first, then by number.
    pub classes: Vec<ClassSummary>,
    /// The instructions, by address; the first [`LISTED`] of them.
    pub findings: Vec<Finding>,
    /// How many there are in all.
    pub total: u64,
    /// How much was looked at.
    pub coverage: Coverage,
    /// What was not, and why.
    pub skipped: Vec<Skipped>,
}

impl Audit {
    /// How many instructions were found that have this effect.
    pub fn count(&self, effect: Effect) -> u64 {
        self.classes.iter().filter(|c| c.effect == effect).map(|c| c.count).sum()
    }
}
