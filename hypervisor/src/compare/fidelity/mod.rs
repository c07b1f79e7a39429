//! Whether a technique answers as a machine would: the sensitive instructions that do not trap.
//!
//! Popek and Goldberg's condition (1974) is that every instruction that shows or changes the machine's state traps where
//! it is not privileged. x86 has some that do not: Robin and Irvine (2000) count seventeen. A guest that executes each of
//! them, as a kernel that has the machine would, says what it got; this room boots it by every technique and makes a
//! table of it. A paravirtual kernel has none of them, which is not asserted: its image is audited in the same run.
//!
//! What may not be done here: trusting the guest's lines. They are parsed like any guest's output.

mod expected;
mod parse;
mod rows;
mod table;

pub use rows::{ROWS, Row};
pub use table::fidelity_text;

use serde::{Serialize, Serializer};

use super::comparison::NotHere;
use super::order;
use super::result::EngineFacts;
use super::sample::{Machine, config, last_words};
use crate::audit::{Audit, audit};
use crate::engine::EngineInfo;
use crate::image::GuestKind;
use crate::launch::{Config, Report};
use crate::machine::console::CaptureSink;
use crate::machine::end::DomainEnd;
use crate::technique::Technique;
use parse::Said;

/// What to look at.
#[derive(Clone, Debug)]
pub struct FidelitySettings {
    /// By which techniques.
    pub techniques: Vec<&'static Technique>,
    /// Whether they were named, so that one that cannot be used here is a failure.
    pub named: bool,
    /// On what machine.
    pub machine: Machine,
    /// The guest: a bare image.
    pub image: &'static [u8],
}

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The machine's answer.
    Right,
    /// Another answer, in silence.
    Wrong,
    /// An exception that the machine does not raise.
    Trapped,
    /// The hypervisor ended the guest.
    Ended,
    /// The kernel has no such instruction.
    Absent,
    /// The kernel has it on purpose, and declares that it wants the answer that is not the machine's.
    Declared,
    /// The kernel has it, and does not say why.
    Undeclared,
}

impl Verdict {
    /// What tables call it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Trapped => "trapped",
            Self::Ended => "ended",
            Self::Absent => "absent",
            Self::Declared => "declared",
            Self::Undeclared => "present",
        }
    }
}

/// One instruction by one technique.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What became of it.
    pub verdict: Verdict,
    /// Whether that is what the technique is documented to do.
    pub documented: bool,
    /// What a machine answers.
    pub machine: String,
    /// What was answered.
    pub here: String,
}

/// One instruction by every technique.
#[derive(Clone, Debug, Serialize)]
pub struct FidelityRow {
    /// Its name.
    pub name: &'static str,
    /// Its mnemonics.
    pub about: &'static str,
    /// The answers by technique.
    #[serde(serialize_with = "as_map")]
    pub techniques: Vec<(&'static str, Answer)>,
}

/// All answers.
#[derive(Clone, Debug, Serialize)]
pub struct Fidelity {
    /// Version of this shape.
    pub schema: u32,
    /// Version of this program.
    pub version: &'static str,
    /// The engine that was asked for.
    pub asked: &'static str,
    /// What ran the guest of each technique that booted one, by technique.
    #[serde(serialize_with = "as_map")]
    pub engines: Vec<(&'static str, EngineFacts)>,
    /// The instructions.
    pub rows: Vec<FidelityRow>,
    /// Techniques that cannot be used on this host, and why.
    pub unavailable: Vec<NotHere>,
    /// What is wrong, if anything is.
    pub problems: Vec<String>,
    /// The techniques, in the order in which they are read.
    #[serde(skip)]
    techniques: Vec<&'static str>,
}

impl Fidelity {
    /// Whether every technique answered as it is documented to.
    pub fn ok(&self) -> bool {
        self.problems.is_empty()
    }

    fn begin(settings: &FidelitySettings) -> Self {
        let rows =
            ROWS.iter().map(|row| FidelityRow { name: row.name, about: row.about, techniques: Vec::new() });
        Self {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            asked: settings.machine.engine.name(),
            engines: Vec::new(),
            rows: rows.collect(),
            unavailable: Vec::new(),
            problems: Vec::new(),
            techniques: Vec::new(),
        }
    }

    fn answer(&mut self, technique: &'static str, row: &'static str, said: Said) {
        let documented = expected::is(technique, row, said.verdict);
        let Said { verdict, machine, here } = said;
        if !documented {
            let word = verdict.word();
            self.problems.push(format!("{technique}: {row}: {word}, which is not documented: {here}"));
        }
        if let Some(found) = self.rows.iter_mut().find(|found| found.name == row) {
            found.techniques.push((technique, Answer { verdict, documented, machine, here }));
        }
    }
}

/// Has every instruction executed by every technique, booting guests by means of `boot`.
pub fn fidelity<E: std::fmt::Display>(
    settings: &FidelitySettings,
    mut boot: impl FnMut(Config) -> Result<Report, E>,
    mut on_progress: impl FnMut(&'static str),
) -> Fidelity {
    let mut result = Fidelity::begin(settings);
    for technique in &settings.techniques {
        if let Err(why) = (technique.available)() {
            if settings.named {
                result.problems.push(format!("{}: not on this host: {why}", technique.name));
            }
            result.unavailable.push(NotHere { technique: technique.name, why });
            continue;
        }
        on_progress(technique.name);
        let done = match technique.runs {
            GuestKind::Pv => audited(technique, &mut result),
            GuestKind::Bare => booted(technique, settings, &mut boot, &mut result),
        };
        match done {
            Ok(()) => result.techniques.push(technique.name),
            Err(why) => result.problems.push(format!("{}: {why}", technique.name)),
        }
    }
    result.techniques = order::reading(&result.techniques);
    result
}

/// What the audit finds in the technique's kernel.
fn audited(technique: &'static Technique, result: &mut Fidelity) -> Result<(), String> {
    let Audit { findings, total, .. } = audit(technique.builtin()).map_err(|error| error.to_string())?;
    if findings.len() as u64 != total {
        return Err("the audit found more instructions than it lists".to_owned());
    }
    for row in &ROWS {
        let found: Vec<_> = findings.iter().filter(|finding| row.is_of(finding)).collect();
        let verdict = match found.iter().any(|finding| finding.deliberate.is_none()) {
            true => Verdict::Undeclared,
            false if found.is_empty() => Verdict::Absent,
            false => Verdict::Declared,
        };
        let first = found.iter().find_map(|finding| finding.deliberate.as_deref());
        let reason = first.map_or_else(String::new, |why| format!(": {why}"));
        let here = format!("{} in the kernel's code{reason}", found.len());
        result.answer(technique.name, row.name, Said { verdict, machine: String::new(), here });
    }
    Ok(())
}

/// What the guest says. An instruction that ends it is left out the next time.
fn booted<E: std::fmt::Display>(
    technique: &'static Technique,
    settings: &FidelitySettings,
    boot: &mut impl FnMut(Config) -> Result<Report, E>,
    result: &mut Fidelity,
) -> Result<(), String> {
    let mut known: Vec<(&'static str, Said)> = Vec::new();
    let mut engine = None;
    loop {
        let console = CaptureSink::default();
        let skip: Vec<&str> = known.iter().map(|(row, _)| *row).collect();
        let skip = if skip.is_empty() { String::new() } else { format!(" skip={}", skip.join(",")) };
        let sink = Box::new(console.clone());
        let mut config = config(technique, &settings.machine, &format!("fidelity{skip}"), sink);
        config.image = settings.image.into();
        config.image_name = "built-in fidelity guest".to_owned();
        let report = boot(config).map_err(|e| format!("the guest could not be started: {e}"))?;
        let text = console.text();
        let said = parse::parse(&text)?;
        engine.get_or_insert(report.engine);
        for (row, said) in said.answers {
            if known.iter().all(|(known, _)| *known != row) {
                known.push((row, said));
            }
        }
        if said.done && report.end == DomainEnd::PowerOff {
            break;
        }
        // Each turn adds a row, so that there are no more turns than rows.
        let Some(row) = said.begun.filter(|row| known.iter().all(|(known, _)| known != row)) else {
            return Err(format!(
                "the guest did not finish: {}; its last words: {}",
                report.end,
                last_words(&text)
            ));
        };
        let here = report.end.to_string();
        known.push((row, Said { verdict: Verdict::Ended, machine: String::new(), here }));
    }
    let missing: Vec<&str> =
        ROWS.iter().map(|row| row.name).filter(|row| known.iter().all(|(known, _)| known != row)).collect();
    if !missing.is_empty() {
        return Err(format!("the guest says nothing of {}", missing.join(", ")));
    }
    result.engines.extend(engine.map(|info: EngineInfo| (technique.name, EngineFacts::of(&info))));
    for (row, said) in known {
        result.answer(technique.name, row, said);
    }
    Ok(())
}

fn as_map<T: Serialize, S: Serializer>(
    techniques: &[(&'static str, T)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(techniques.iter().map(|(name, value)| (name, value)))
}

#[cfg(test)]
mod tests;
