//! The audit: finds the instructions of an image that trap or misbehave at CPL 3.
//!
//! For authors who port a kernel: each finding names the instruction, its location and what to use in its place. Code
//! is swept linearly, symbol by symbol, so that data between functions cannot mislead the decoder for long; findings
//! that may not be code are marked as uncertain. Pure functions of the file, on any thread. What may not be done here:
//! running anything, printing.

#![forbid(unsafe_code)]

mod advice;
mod code;
mod declarations;
mod error;
mod patchable;
mod policy;
mod regions;
mod relocation;
mod report;
mod sweep;
mod text;

pub use declarations::SECTION as DECLARATIONS;
pub use error::AuditError;
pub use patchable::{Patchable, PatchableSite, TacticSum, patchable, patchable_text};
pub use policy::Policy;
pub use regions::Skipped;
pub use report::{Audit, ClassSummary, Coverage, Finding, LISTED, Subject};
pub use text::text;

pub use crate::x86::sensitive::{Class, Effect};

use declarations::Declared;
use object::LittleEndian;
use object::elf::ET_REL;
use object::read::elf::FileHeader;
use regions::Regions;
use relocation::Relocations;

use crate::image::compressed::unpack;
use crate::image::lines::Lines;
use crate::image::{Header, Image, ImageKind, header};

/// The instruction that `code`, at `rip`, begins with, what it does at CPL 3, and what to use in its place; `None` if
/// it is none that needs a replacement.
pub fn remedy(code: &[u8], rip: u64) -> Option<(String, &'static str, &'static str)> {
    let instruction = iced_x86::Decoder::with_ip(64, code, rip, iced_x86::DecoderOptions::NONE).decode();
    let class = Class::of(&instruction)?;
    Some((instruction.to_string(), class.effect().describe(), advice::instead(class)))
}

/// Audits an ELF file, compressed or not. It can be any kernel or object file, not only an image for Paravane.
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

/// The kind of file, and the address of the page whose contents the hypervisor replaces.
fn subject(header: &Header, file: &[u8]) -> (Subject, Option<u64>) {
    match Image::parse(file).as_ref().map(Image::kind) {
        Ok(ImageKind::Pv(notes)) => (Subject::Paravirtual, notes.hypercall_page),
        Ok(ImageKind::Bare(_)) => (Subject::Bare, None),
        Err(_) if header.e_type(LittleEndian) == ET_REL => (Subject::Object, None),
        Err(_) => (Subject::Other, None),
    }
}

#[cfg(test)]
mod tests;
