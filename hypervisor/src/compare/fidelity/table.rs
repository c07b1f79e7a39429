//! The answers as text.

use std::fmt::{self, Write};

use super::{Answer, Fidelity, FidelityRow, Verdict};
use crate::compare::grid::Grid;
use crate::compare::overview::write_not_here;
use crate::compare::table::{View, wrapped};

/// Formats everything.
pub fn fidelity_text(fidelity: &Fidelity, view: &View) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, fidelity, view);
    out
}

const CAPTION: &str = "Sensitive instructions that do not trap at CPL 3, executed by a kernel that believes to have the \
                       machine: is the answer the machine's?";

fn write(out: &mut String, fidelity: &Fidelity, view: &View) -> fmt::Result {
    writeln!(out, "{}", wrapped("", CAPTION, view.width))?;
    writeln!(out, "{}", table(fidelity).text(view.width))?;
    if !fidelity.techniques.is_empty() {
        write_legend(out, fidelity, view)?;
    }
    write_not_here(out, &fidelity.unavailable, view)?;
    if view.details {
        writeln!(out)?;
        fidelity.rows.iter().try_for_each(|row| write_answers(out, row, view))?;
    }
    for problem in &fidelity.problems {
        writeln!(out, "NOT OK  {problem}")?;
    }
    Ok(())
}

fn table(fidelity: &Fidelity) -> Grid {
    let mut grid = Grid::new(fidelity.rows.iter().map(|row| row.about));
    for technique in &fidelity.techniques {
        let cell = |row: &FidelityRow| {
            let answer = row.techniques.iter().find(|(name, _)| name == technique);
            vec![answer.map_or("-", |(_, answer)| answer.verdict.word()).to_owned()]
        };
        grid.column(technique, fidelity.rows.iter().map(cell).collect());
    }
    grid
}

/// What the words mean that occur.
fn write_legend(out: &mut String, fidelity: &Fidelity, view: &View) -> fmt::Result {
    let meanings = [
        (Verdict::Right, "the machine's answer"),
        (Verdict::Wrong, "another answer, in silence"),
        (Verdict::Trapped, "an exception that the machine does not raise"),
        (Verdict::Ended, "the hypervisor ended the guest"),
        (Verdict::Absent, "an audit of the kernel, in this run, finds no such instruction"),
        (Verdict::Declared, "an audit finds it, declared by the kernel as wanted for what it does at CPL 3"),
        (Verdict::Undeclared, "an audit finds it, and the kernel does not say why"),
    ];
    for (verdict, meaning) in meanings {
        let mut answers = fidelity.rows.iter().flat_map(|row| &row.techniques);
        if answers.any(|(_, answer)| answer.verdict == verdict) {
            out.write_str(&wrapped("", &format!("{}: {meaning}", verdict.word()), view.width))?;
        }
    }
    Ok(())
}

fn write_answers(out: &mut String, row: &FidelityRow, view: &View) -> fmt::Result {
    for (technique, Answer { verdict, machine, here, .. }) in &row.techniques {
        let machine = if machine.is_empty() { String::new() } else { format!("; the machine: {machine}") };
        let line = format!("{} by {technique}: {}: {here}{machine}", row.about, verdict.word());
        out.write_str(&wrapped("", &line, view.width))?;
    }
    Ok(())
}
