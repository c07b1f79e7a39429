//! `paravane compare --fidelity`: whether each technique answers as a machine does.

use serde::Serialize;

use super::print;
use super::progress::ProgressLine;
use super::status;
use crate::compare::{Fidelity, FidelitySettings, Machine, View, fidelity, fidelity_text};
use crate::image::builtin;
use crate::launch;
use crate::technique::Technique;

/// What `--fidelity` is asked for.
pub(super) struct Asked {
    /// By which techniques.
    pub(super) techniques: Vec<&'static Technique>,
    /// Whether they were named.
    pub(super) named: bool,
    /// On which machines: a table each.
    pub(super) machines: Vec<Machine>,
    /// Whether JSON is wanted.
    pub(super) json: bool,
}

/// The JSON of several engines.
#[derive(Serialize)]
struct Engines {
    schema: u32,
    engines: Vec<Fidelity>,
}

/// Boots the guest by every technique; the exit status of the process.
pub(super) fn run(asked: Asked, view: &View) -> anyhow::Result<u8> {
    let Asked { techniques, named, machines, json } = asked;
    let mut line = ProgressLine::stderr();
    let total = techniques.len() * machines.len();
    let mut done = 0;
    let mut results = Vec::new();
    for machine in machines {
        let settings =
            FidelitySettings { techniques: techniques.clone(), named, machine, image: builtin::FIDELITY };
        results.push(fidelity(&settings, launch::run, |technique| {
            line.show(done, total, &format!("the seventeen by {technique} on {}", machine.engine.name()));
            done += 1;
        }));
    }
    drop(line);
    let ok = results.iter().all(Fidelity::ok);
    if json {
        for problem in results.iter().flat_map(|result| &result.problems) {
            eprintln!("paravane: {problem}");
        }
        let text = match &results[..] {
            [one] => serde_json::to_string_pretty(one)?,
            _ => serde_json::to_string_pretty(&Engines { schema: 1, engines: results })?,
        };
        print(&format!("{text}\n"))?;
    } else {
        let texts: Vec<String> = results.iter().map(|result| fidelity_text(result, view)).collect();
        print(&texts.join("\n"))?;
    }
    Ok(if ok { 0 } else { status::HOST_ERROR })
}
