//! The report as text: for each class its instructions, where they are and what to use in their place, then the totals.

use std::fmt::{self, Write};

use super::policy::Policy;
use super::report::{Audit, ClassSummary, Finding, Subject};
use crate::text::printable::printable;
use crate::x86::sensitive::Effect;

/// Formats everything; of each class at most `limit` findings.
pub fn text(audit: &Audit, name: &str, policy: &Policy, limit: usize) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, audit, name, policy, limit);
    out
}

fn write(out: &mut String, audit: &Audit, name: &str, policy: &Policy, limit: usize) -> fmt::Result {
    let coverage = &audit.coverage;
    writeln!(out, "{}: {}", printable(name), subject(audit.subject))?;
    writeln!(
        out,
        "{} instructions in {}; {} bytes of code, {} of them in no function, {} undecodable",
        coverage.instructions,
        functions(coverage.functions),
        coverage.code_bytes,
        coverage.code_bytes.saturating_sub(coverage.named_bytes),
        coverage.undecodable_bytes,
    )?;
    write_skipped(out, audit)?;
    for effect in Effect::ALL {
        let mut classes = audit.classes.iter().filter(|c| c.effect == effect).peekable();
        if classes.peek().is_some() {
            writeln!(out, "\nAt CPL 3 this {}:", effect.describe())?;
        }
        classes.try_for_each(|class| write_class(out, audit, class, limit))?;
    }
    write_summary(out, audit, policy)
}

/// How many of the things that were left out are listed.
const SKIPPED: usize = 20;

fn write_skipped(out: &mut String, audit: &Audit) -> fmt::Result {
    for skipped in audit.skipped.iter().take(SKIPPED) {
        writeln!(out, "not audited: {}: {}", printable(&skipped.what), skipped.why)?;
    }
    match audit.skipped.len().saturating_sub(SKIPPED) {
        0 => Ok(()),
        more => writeln!(out, "not audited: {more} more; --json lists them"),
    }
}

fn write_class(out: &mut String, audit: &Audit, class: &ClassSummary, limit: usize) -> fmt::Result {
    writeln!(out, "\n  {}: {}: {}", class.class.id(), class.name, count(class))?;
    writeln!(out, "  instead: {}", class.instead)?;
    let mut findings = audit.findings.iter().filter(|f| f.class == class.class);
    let shown: Vec<&Finding> = findings.by_ref().take(limit).collect();
    let width = shown.iter().map(|f| f.instruction.len()).max().unwrap_or(0);
    for finding in &shown {
        write_finding(out, audit.subject, finding, width)?;
    }
    let rest = class.count.saturating_sub(shown.len() as u64);
    if rest != 0 {
        writeln!(out, "    and {rest} more")?;
    }
    Ok(())
}

fn count(class: &ClassSummary) -> String {
    let mut text = format!("{} in {}", class.count, functions(class.functions));
    for (n, what) in [(class.deliberate, "deliberate"), (class.uncertain, "perhaps not code")] {
        if n != 0 {
            text += &format!(", {n} {what}");
        }
    }
    text
}

fn functions(n: u64) -> String {
    if n == 1 { "1 function".to_owned() } else { format!("{n} functions") }
}

fn write_finding(out: &mut String, subject: Subject, finding: &Finding, width: usize) -> fmt::Result {
    let Finding { address, instruction, function, offset, line, .. } = finding;
    let section = finding.section.as_deref().filter(|_| subject == Subject::Object);
    match section {
        Some(section) => write!(out, "    {}+{address:#x}", printable(section))?,
        None => write!(out, "    {address:#x}")?,
    }
    let function = printable(function.as_deref().unwrap_or("no function"));
    write!(out, "  {instruction:<width$}  {function}+{offset:#x}")?;
    if let Some(line) = line {
        write!(out, "  {}", printable(line))?;
    }
    if !finding.certain {
        write!(out, "  (perhaps not code)")?;
    }
    match &finding.deliberate {
        Some(reason) => writeln!(out, "\n      deliberate, the image says: {}", printable(reason)),
        None => writeln!(out),
    }
}

fn write_summary(out: &mut String, audit: &Audit, policy: &Policy) -> fmt::Result {
    writeln!(out, "\n{:>8} {:>11} {:>8}", "found", "deliberate", "matter")?;
    for effect in Effect::ALL {
        let sum = |f: &dyn Fn(&ClassSummary) -> u64| -> u64 {
            audit.classes.iter().filter(|c| c.effect == effect).map(f).sum()
        };
        let (found, deliberate) = (sum(&|c| c.count), sum(&|c| c.deliberate));
        let matter = sum(&|c| policy.matter(c));
        writeln!(out, "{found:>8} {deliberate:>11} {matter:>8}  {}", effect.describe())?;
    }
    Ok(())
}

const fn subject(subject: Subject) -> &'static str {
    match subject {
        Subject::Paravirtual => "a paravirtual kernel (it has Xen's notes)",
        Subject::Bare => "a bare-PC kernel (it has the notes of the bare boot protocol)",
        Subject::Object => "an object file: addresses are offsets in its sections",
        Subject::Other => "an ELF file, not an image for Paravane yet",
    }
}
