//! What an audit reports, as `--json` prints it.

use serde::Serialize;

use super::regions::Skipped;
use crate::x86::sensitive::{Class, Effect};

/// How many findings are listed; all of them are counted.
pub const LISTED: usize = 50_000;

/// The kind of file that was audited.
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
    /// Its source file and line, if the image has line tables. Those of an object file are not read, because they are
    /// not relocated yet.
    pub line: Option<String>,
    /// The instruction, in NASM's syntax. Operands that the linker has still to fill in are shown by their symbols.
    pub instruction: String,
    /// Its class.
    pub class: Class,
    /// What it does at CPL 3.
    pub effect: Effect,
    /// Whether this is certainly code: it is in a function, and everything before it in that function decoded.
    pub certain: bool,
    /// The reason, if the image declares it deliberate.
    pub deliberate: Option<String>,
}

/// One class that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassSummary {
    /// The class.
    pub class: Class,
    /// What it does at CPL 3.
    pub effect: Effect,
    /// A description for people.
    pub name: &'static str,
    /// What to use in its place.
    pub instead: &'static str,
    /// How many of them there are.
    pub count: u64,
    /// How many of these may not be code.
    pub uncertain: u64,
    /// How many the image declares deliberate.
    pub deliberate: u64,
    /// How many functions contain them; code outside of functions counts as one.
    pub functions: u64,
}

/// How much code was audited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Bytes of executable code.
    pub code_bytes: u64,
    /// Of these, bytes that belong to a symbol.
    pub named_bytes: u64,
    /// Of these, bytes at which no valid instruction begins.
    pub undecodable_bytes: u64,
    /// Instructions decoded.
    pub instructions: u64,
    /// Functions, and labels in assembly.
    pub functions: u64,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// The kind of file.
    pub subject: Subject,
    /// The classes found, by effect, the silent ones first, then by count.
    pub classes: Vec<ClassSummary>,
    /// The instructions, by address; the first [`LISTED`] of them.
    pub findings: Vec<Finding>,
    /// How many there are in all.
    pub total: u64,
    /// How much code was audited.
    pub coverage: Coverage,
    /// What was not audited, and why.
    pub skipped: Vec<Skipped>,
}

impl Audit {
    /// How many instructions with this effect were found.
    pub fn count(&self, effect: Effect) -> u64 {
        self.classes.iter().filter(|c| c.effect == effect).map(|c| c.count).sum()
    }
}
