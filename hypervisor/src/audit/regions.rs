//! Finds the executable bytes of a file, and lists what cannot be swept.
//!
//! By its sections, or by its segments where it was stripped of sections. Headers may hold anything: code outside of
//! the file is an error, and whatever else is left out is listed, so that an audit never skips code silently.

use object::LittleEndian;
use object::elf::{
    ET_CORE, ET_DYN, ET_EXEC, ET_REL, PF_X, PT_LOAD, SHF_COMPRESSED, SHF_EXECINSTR, SHT_NOBITS,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use serde::Serialize;

use super::error::AuditError;
use crate::image::Header;

/// The executable bytes of one section or segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region<'a> {
    /// The section; `None` for a segment.
    pub section: Option<Section<'a>>,
    /// Virtual address of its first byte; in an object file, 0.
    pub start: u64,
    /// Its bytes.
    pub code: &'a [u8],
}

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    pub index: usize,
    pub name: &'a [u8],
}

/// Code, or something needed to find code, that the audit left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// What it is: a section's name, or which header.
    pub what: String,
    /// Why it was left out.
    pub why: &'static str,
}

impl Skipped {
    fn section(name: &[u8], why: &'static str) -> Self {
        Self { what: format!("section {}", String::from_utf8_lossy(name)), why }
    }
}

/// The regions of a file, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Regions<'a> {
    pub found: Vec<Region<'a>>,
    pub skipped: Vec<Skipped>,
    /// An executable section has a size and no bytes: the file holds only the debugging information of another one.
    debug_only: bool,
}

impl<'a> Regions<'a> {
    /// Reads the headers.
    ///
    /// # Errors
    /// If code lies outside the file, or if the file has none.
    pub fn read(header: &Header, file: &'a [u8]) -> Result<Self, AuditError> {
        let mut regions = Self::default();
        regions.sections(header, file)?;
        if regions.found.is_empty() {
            regions.segments(header, file)?;
        }
        regions.bound(file.len());
        match regions.found.is_empty() {
            false => Ok(regions),
            true if regions.debug_only => Err(AuditError::DebugOnly),
            true => Err(AuditError::NoCode { kind: kind_of(header) }),
        }
    }

    fn sections(&mut self, header: &Header, file: &'a [u8]) -> Result<(), AuditError> {
        let Ok(sections) = header.sections(LittleEndian, file) else {
            let (what, why) = ("section headers".to_owned(), "they lie outside the file or are damaged");
            self.skipped.push(Skipped { what, why });
            return Ok(());
        };
        for (index, section) in sections.enumerate() {
            let flags = section.sh_flags(LittleEndian);
            let size = section.sh_size(LittleEndian);
            if flags & u64::from(SHF_EXECINSTR) == 0 || size == 0 {
                continue;
            }
            let name = sections.section_name(LittleEndian, section).unwrap_or(b"without a name");
            if section.sh_type(LittleEndian) == SHT_NOBITS {
                self.debug_only = true;
                self.skipped.push(Skipped::section(name, "it has no bytes in the file"));
            } else if flags & u64::from(SHF_COMPRESSED) != 0 {
                self.skipped.push(Skipped::section(name, "it is compressed"));
            } else {
                let code = section.data(LittleEndian, file).map_err(|_| AuditError::CutOff {
                    what: format!("section {}", String::from_utf8_lossy(name)),
                    offset: section.sh_offset(LittleEndian),
                    size,
                    file: file.len(),
                })?;
                let start = section.sh_addr(LittleEndian);
                self.found.push(Region { section: Some(Section { index: index.0, name }), start, code });
            }
        }
        self.outside_sections(header, file);
        Ok(())
    }

    /// Lists how many executable bytes of segments are in no executable section.
    fn outside_sections(&mut self, header: &Header, file: &[u8]) {
        let Ok(segments) = header.program_headers(LittleEndian, file) else { return };
        let executable = |s: &&<Header as FileHeader>::ProgramHeader| {
            s.p_type(LittleEndian) == PT_LOAD && s.p_flags(LittleEndian) & PF_X != 0
        };
        let swept: u64 = self.found.iter().map(|r| r.code.len() as u64).sum();
        let held = segments.iter().filter(executable).map(|s| s.p_filesz(LittleEndian));
        let held = held.fold(0u64, u64::saturating_add);
        if !self.found.is_empty() && held > swept {
            let what = format!("{} executable bytes of segments", held - swept);
            self.skipped.push(Skipped { what, why: "they are in no executable section" });
        }
    }

    fn segments(&mut self, header: &Header, file: &'a [u8]) -> Result<(), AuditError> {
        let Ok(segments) = header.program_headers(LittleEndian, file) else {
            let (what, why) = ("program headers".to_owned(), "they lie outside the file or are damaged");
            self.skipped.push(Skipped { what, why });
            return Ok(());
        };
        for (index, segment) in segments.iter().enumerate() {
            let executable = segment.p_flags(LittleEndian) & PF_X != 0;
            if segment.p_type(LittleEndian) != PT_LOAD || !executable {
                continue;
            }
            let code = segment.data(LittleEndian, file).map_err(|()| AuditError::CutOff {
                what: format!("segment {index}"),
                offset: segment.p_offset(LittleEndian),
                size: segment.p_filesz(LittleEndian),
                file: file.len(),
            })?;
            if !code.is_empty() {
                self.found.push(Region { section: None, start: segment.p_vaddr(LittleEndian), code });
            }
        }
        Ok(())
    }

    /// Leaves out regions that end beyond the address space, and limits the work: headers may name the same bytes many
    /// times.
    fn bound(&mut self, file: usize) {
        let mut budget = file;
        let Self { found, skipped, .. } = self;
        found.retain(|region| {
            let why = if region.start.checked_add(region.code.len() as u64).is_none() {
                "it ends beyond the address space"
            } else if let Some(rest) = budget.checked_sub(region.code.len()) {
                budget = rest;
                return true;
            } else {
                "headers name more code than the file has bytes"
            };
            skipped.push(match region.section {
                Some(section) => Skipped::section(section.name, why),
                None => Skipped { what: format!("segment at {:#x}", region.start), why },
            });
            false
        });
    }
}

/// The kind of a file without code, for the message.
fn kind_of(header: &Header) -> &'static str {
    match header.e_type(LittleEndian) {
        ET_REL => "an object file",
        ET_EXEC => "an executable",
        ET_DYN => "a shared library or a position-independent program",
        ET_CORE => "a core dump",
        _ => "an ELF file of unknown type",
    }
}
