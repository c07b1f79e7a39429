//! The audit: which instructions of an image do not do at CPL 3 what they do at CPL 0.
//!
//! For someone who brings a kernel here: each finding says what, where and what to use in its place. Code is
//! swept linearly, symbol by symbol, so that data between functions cannot mislead for long; what a sweep
//! cannot know it marks as uncertain. Nothing is run, and nothing is printed here.

mod class;
mod code;
mod declared;
mod policy;
mod sweep;
mod text;

use serde::Serialize;

pub use class::{Class, Effect};
pub use declared::SECTION as DECLARATIONS;
pub use policy::Policy;
pub use text::text;

use declared::Declared;

use crate::domain::compressed::unpack;
use crate::domain::image::{Image, ImageKind, header};
use crate::domain::image_error::ImageError;
use crate::domain::lines::Lines;

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
    /// An ELF file that is no image yet.
    Other,
}

/// One privileged or sensitive instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its virtual address.
    pub address: u64,
    /// The function that it is in, if the image has symbols.
    pub function: Option<String>,
    /// Bytes from the function's beginning.
    pub offset: u64,
    /// The source file and line that it comes from, if the image has line tables.
    pub line: Option<String>,
    /// The instruction, in NASM's syntax.
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
}

impl Audit {
    /// How many instructions were found that have this effect.
    pub fn count(&self, effect: Effect) -> u64 {
        self.classes.iter().filter(|c| c.effect == effect).map(|c| c.count).sum()
    }
}

/// Audits an ELF file, compressed or not. It need not be an image for Paravane: a kernel to be ported is not.
pub fn audit(file: &[u8]) -> Result<Audit, ImageError> {
    let file = unpack(file)?;
    let header = header(&file)?;
    let (subject, hypercall_page) = subject(&file);
    let mut sweep = sweep::Sweep::new(hypercall_page, Declared::read(header, &file));
    for piece in code::pieces(header, &file) {
        sweep.piece(&piece);
    }
    let mut audit = sweep.finish(subject);
    if let Some(lines) = Lines::new(&file) {
        for finding in &mut audit.findings {
            finding.line = lines.at(finding.address).map(|line| line.to_string());
        }
    }
    Ok(audit)
}

/// What the file is, and the page whose contents the hypervisor replaces.
fn subject(file: &[u8]) -> (Subject, Option<u64>) {
    match Image::parse(file).as_ref().map(Image::kind) {
        Ok(ImageKind::Pv(notes)) => (Subject::Paravirtual, notes.hypercall_page),
        Ok(ImageKind::Bare(_)) => (Subject::Bare, None),
        Err(_) => (Subject::Other, None),
    }
}

#[cfg(test)]
mod tests;
