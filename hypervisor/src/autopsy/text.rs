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
        let mut accounts = self.vcpus.as_slice();
        // Idle vCPUs are alike, and there may be 64 of them.
        while let [first, rest @ ..] = accounts {
            let alike = rest.iter().take_while(|other| other.is_like(first)).count();
            let (likewise, rest) = rest.split_at(alike);
            // A String takes everything.
            let _ = tell(&mut text, first, likewise, style);
            accounts = rest;
        }
        text
    }
}

impl Account {
    /// Whether all is the same but the number.
    fn is_like(&self, other: &Self) -> bool {
        Self { vcpu: other.vcpu, ..self.clone() } == *other
    }
}

fn tell(to: &mut String, account: &Account, likewise: &[Account], style: Style) -> Result {
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
    match likewise {
        [] => Ok(()),
        [one] => writeln!(to, "  the same: vCPU {}", one.vcpu),
        [first, .., last] => {
            writeln!(
                to,
                "  the same: {} more, from vCPU {} to vCPU {}",
                likewise.len(),
                first.vcpu,
                last.vcpu
            )
        }
    }
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
