//! Which jump fits at each privileged or sensitive instruction of an image: what `patch` does when it runs.

use std::fmt::Write;

use object::LittleEndian;
use object::elf::PT_LOAD;
use object::read::elf::{FileHeader, ProgramHeader};
use serde::Serialize;

use super::error::AuditError;
use super::regions::Regions;
use super::report::{Audit, Finding, Subject};
use crate::image::compressed::unpack;
use crate::image::{header, symbols};
use crate::patch::Tactic;
use crate::patch::survey::{Code, survey};
use crate::text::printable::printable;

/// One instruction, and how it would be patched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PatchableSite {
    /// Its address.
    pub address: u64,
    /// The function that it is in, if the image has symbols.
    pub function: Option<String>,
    /// Bytes from the function's beginning.
    pub offset: u64,
    /// The instruction, in NASM's syntax.
    pub instruction: String,
    /// How; none if no jump fits, and it goes on trapping.
    pub tactic: Option<Tactic>,
    /// Where the jump begins. Sites of one jump are one group.
    pub jump: Option<u64>,
}

/// How many are patched in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TacticSum {
    /// The way.
    pub tactic: Tactic,
    /// A description for people.
    pub name: &'static str,
    /// Jumps.
    pub groups: u64,
    /// Instructions.
    pub sites: u64,
}

/// What became of all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Patchable {
    /// By tactic, in order of preference.
    pub tactics: Vec<TacticSum>,
    /// Instructions that nothing fits.
    pub left: u64,
    /// Pages that their stubs would take, with those where the jumps only begin.
    pub pages: u64,
    /// All, by address.
    pub sites: Vec<PatchableSite>,
}

impl Patchable {
    fn sites(&self) -> u64 {
        self.sites.len() as u64
    }
}

/// Finds out for the instructions that `audit` found in `file`.
///
/// Those that may not be code are left out: when the image runs, they are patched at their first trap.
///
/// # Errors
/// If the file cannot be audited, or is not linked.
pub fn patchable(file: &[u8], audit: &Audit) -> Result<Patchable, AuditError> {
    if audit.subject == Subject::Object {
        return Err(AuditError::NotLinked);
    }
    let file = unpack(file).map_err(crate::image::error::ImageError::from)?;
    let header = header(&file)?;
    let regions = Regions::read(header, &file)?;
    let code: Vec<Code<'_>> =
        regions.found.iter().map(|region| Code { start: region.start, bytes: region.code }).collect();
    let segments = header.program_headers(LittleEndian, &*file).unwrap_or_default();
    let loaded = segments.iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
    let mapped: Vec<_> = loaded
        .map(|s| s.p_vaddr(LittleEndian)..s.p_vaddr(LittleEndian).saturating_add(s.p_memsz(LittleEndian)))
        .collect();
    let found: Vec<&Finding> = audit.findings.iter().filter(|finding| finding.certain).collect();
    let addresses: Vec<u64> = found.iter().map(|finding| finding.address).collect();
    let survey = survey(&code, &mapped, &symbols::functions(&file), &addresses);
    let site = |(finding, how): (&&Finding, &Option<(u64, Tactic)>)| PatchableSite {
        address: finding.address,
        function: finding.function.clone(),
        offset: finding.offset,
        instruction: finding.instruction.clone(),
        tactic: how.map(|(_, tactic)| tactic),
        jump: how.map(|(jump, _)| jump),
    };
    let sites: Vec<PatchableSite> = found.iter().zip(&survey.sites).map(site).collect();
    let sum = |tactic: Tactic| {
        let of: Vec<_> = sites.iter().filter(|site| site.tactic == Some(tactic)).collect();
        let mut jumps: Vec<_> = of.iter().map(|site| site.jump).collect();
        jumps.sort_unstable();
        jumps.dedup();
        TacticSum { tactic, name: tactic.name(), groups: jumps.len() as u64, sites: of.len() as u64 }
    };
    let left = sites.iter().filter(|site| site.tactic.is_none()).count() as u64;
    Ok(Patchable { tactics: Tactic::ALL.map(sum).to_vec(), left, pages: survey.pages as u64, sites })
}

/// Formats everything; at most `limit` sites.
pub fn patchable_text(found: &Patchable, name: &str, limit: usize) -> String {
    let mut out = format!("{}: {} privileged and sensitive instructions\n\n", printable(name), found.sites());
    // Writing to a String cannot fail.
    let _ = write(&mut out, found, limit);
    out
}

fn write(out: &mut String, found: &Patchable, limit: usize) -> std::fmt::Result {
    writeln!(out, "{:>7} {:>7} {:>7}", "jumps", "sites", "sites")?;
    let share = |sites: u64| 100.0 * sites as f64 / found.sites().max(1) as f64;
    for sum in &found.tactics {
        writeln!(out, "{:>7} {:>7} {:>6.1}%  {}", sum.groups, sum.sites, share(sum.sites), sum.name)?;
    }
    writeln!(
        out,
        "{:>7} {:>7} {:>6.1}%  left: no jump fits, it goes on trapping",
        "",
        found.left,
        share(found.left)
    )?;
    writeln!(out, "\nstubs: {} pages", found.pages)?;
    let width = found.sites.iter().take(limit).map(|site| site.instruction.len()).max().unwrap_or(0);
    if limit != 0 {
        writeln!(out)?;
    }
    for site in found.sites.iter().take(limit) {
        let function = printable(site.function.as_deref().unwrap_or("no function"));
        let how = site.tactic.map_or("left", Tactic::id);
        let PatchableSite { address, instruction, offset, .. } = site;
        writeln!(out, "    {address:#x}  {how:<9}  {instruction:<width$}  {function}+{offset:#x}")?;
    }
    match found.sites.len().saturating_sub(limit) {
        0 => Ok(()),
        rest if limit == 0 => writeln!(out, "--all lists all {rest}"),
        rest => writeln!(out, "    and {rest} more; --all lists them"),
    }
}
