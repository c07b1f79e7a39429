//! `paravane compare A.json B.json`: two recorded results, and what changed.

use std::path::Path;

use anyhow::Context;

use super::CompareArgs;
use crate::cli::{print, status};
use crate::compare::{Changes, Recorded, changes_text};
use crate::text::printable::path;

/// Shows what changed; the exit status of the process.
pub(super) fn run(args: &CompareArgs, first: &Path, second: &Path, width: usize) -> anyhow::Result<u8> {
    let changes = Changes::between(&read(first)?, &read(second)?, args.tolerance);
    let out = match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&changes)?),
        false => format!("{} -> {}\n\n{}", path(first), path(second), changes_text(&changes, width)),
    };
    print(&out)?;
    Ok(if changes.any_worse() { status::WORSE } else { 0 })
}

fn read(file: &Path) -> anyhow::Result<Recorded> {
    parsed(file, &super::read(file)?)
}

/// What is in a file, if it is a result.
pub(super) fn parsed(file: &Path, text: &str) -> anyhow::Result<Recorded> {
    Recorded::parse(text).with_context(|| path(file).to_string())
}
