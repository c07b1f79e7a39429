//! The words of an autopsy, for people.

use std::fmt::{Display, Formatter, Result, Write};

use super::backtrace::KEPT;
use super::{Account, Autopsy, Place};

/// How parts of the text are set off on a terminal; empty elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Begins the name of a function.
    name: &'static str,
    /// Begins what is less important.
    faint: &'static str,
    /// Ends either.
    end: &'static str,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { name: "", faint: "", end: "" };
    /// For a terminal.
    pub const TERMINAL: Self = Self { name: "\x1b[1m", faint: "\x1b[2m", end: "\x1b[0m" };
}

impl Autopsy {
    /// The text, with a line feed at the end of each line.
    pub fn text(&self, style: Style) -> String {
        let mut text = String::new();
        for account in &self.vcpus {
            // A String takes everything.
            let _ = tell(&mut text, account, style);
        }
        text
    }
}

fn tell(to: &mut String, account: &Account, style: Style) -> Result {
    let Account { vcpu, doing, backtrace, skipped, exception, notes } = account;
    if let Some((what, place)) = exception {
        writeln!(to, "  its kernel's last exception: {what}")?;
        line(to, place, style)?;
    }
    match doing {
        &"" => writeln!(to, "  vCPU {vcpu}:")?,
        doing => writeln!(to, "  vCPU {vcpu} {doing}:")?,
    }
    for (depth, place) in backtrace.iter().enumerate() {
        if depth == KEPT && *skipped > 0 {
            writeln!(to, "    ... {skipped} more ...")?;
        }
        line(to, place, style)?;
    }
    for note in notes {
        writeln!(to, "  {note}")?;
    }
    Ok(())
}

fn line(to: &mut String, place: &Place, Style { name, faint, end }: Style) -> Result {
    let Place { address, function, line } = place;
    write!(to, "    {faint}{address:#x}{end}")?;
    if let Some(function) = function {
        write!(to, " {name}{function}{end}")?;
    }
    if let Some(line) = line {
        write!(to, " {faint}({line}){end}")?;
    }
    writeln!(to)
}

impl Display for Autopsy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.text(Style::PLAIN))
    }
}
