//! The audit: which instructions of an image do not do at CPL 3 what they do at CPL 0.
//!
//! For someone who brings a kernel here: each finding says what, where and what to use in its place. Code is
//! swept linearly, symbol by symbol, so that data between functions cannot mislead for long; what a sweep
//! cannot know it marks as uncertain. Nothing is run, and nothing is printed here.

#![forbid(unsafe_code)]

mod advice;
mod code;
mod declared;
mod error;
mod policy;
mod regions;
mod relocation;
mod sweep;
mod text;

use serde::Serialize;

pub use declared::SECTION as DECLARATIONS;
pub use error::AuditError;
pub use policy::Policy;
pub use regions::Skipped;
pub use text::text;

pub use crate::x86::sensitive::{Class, Effect};

use declared::Declared;
use object::LittleEndian;
use object::elf::{ET_CORE, ET_DYN, ET_EXEC, ET_REL};
use object::read::elf::FileHeader;
use regions::Regions;
use relocation::Relocations;

use crate::image::compressed::unpack;
use crate::image::lines::Lines;
use crate::image::{Header, Image, ImageKind, header};

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

/// Audits an ELF file, compressed or not. It need not be an image for Paravane: a kernel to be ported is not,
/// nor is an object file of one.
///
/// # Errors
/// If the file is not ELF for x86-64, has no code, or is cut off so that code is missing.
pub fn audit(file: &[u8]) -> Result<Audit, AuditError> {
    let file = unpack(file).map_err(crate::image::error::ImageError::from)?;
    let header = header(&file)?;
    let (subject, hypercall_page) = subject(header, &file);
    let regions = Regions::read(header, &file)?;
    let relocations = Relocations::read(header, &file);
    let declared = Declared::read(header, &file, &relocations);
    let mut sweep = sweep::Sweep::new(hypercall_page, declared, &relocations);
    for piece in code::pieces(header, &file, &regions.found) {
        sweep.piece(&piece);
    }
    let mut audit = sweep.finish(subject, regions.skipped);
    if subject != Subject::Object
        && let Some(lines) = Lines::new(&file)
    {
        for finding in &mut audit.findings {
            finding.line = lines.at(finding.address).map(|at| format!("{}:{}", at.file, at.line));
        }
    }
    Ok(audit)
}

/// What the file is, and the page whose contents the hypervisor replaces.
fn subject(header: &Header, file: &[u8]) -> (Subject, Option<u64>) {
    match Image::parse(file).as_ref().map(Image::kind) {
        Ok(ImageKind::Pv(notes)) => (Subject::Paravirtual, notes.hypercall_page),
        Ok(ImageKind::Bare(_)) => (Subject::Bare, None),
        Err(_) if header.e_type(LittleEndian) == ET_REL => (Subject::Object, None),
        Err(_) => (Subject::Other, None),
    }
}

/// What a file without code is.
fn kind_of(header: &Header) -> &'static str {
    match header.e_type(LittleEndian) {
        ET_REL => "an object file",
        ET_EXEC => "an executable",
        ET_DYN => "a shared library or a position-independent program",
        ET_CORE => "a core dump",
        _ => "an ELF file of unknown type",
    }
}

#[cfg(test)]
mod tests;
