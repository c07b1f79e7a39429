//! The file of `--html`: found out to be writable before anything is measured, and written in the end.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::cli::paths::Paths;
use crate::cli::stats_file::open_or_make;
use crate::compare::{check_shape, html};
use crate::host::limit::Advice;
use crate::text::printable::{self, path};

/// A page cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write a page to {}: {error}{}", printable::path(path), Advice::of_writes(error))]
pub(super) struct PageError {
    path: PathBuf,
    error: io::Error,
}

/// The file, as long as nothing was written to it.
#[derive(Debug)]
pub(super) struct Page {
    file: File,
    path: PathBuf,
}

impl Page {
    /// Opens or makes the file; it is not emptied yet.
    pub(super) fn open(path: &Path) -> Result<Self, PageError> {
        let (file, _) = open_or_make(path).map_err(|error| PageError { path: path.to_owned(), error })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the page of a result in place of what is in the file.
    pub(super) fn write(mut self, result: &impl Serialize) -> Result<(), PageError> {
        let written = html(result).map_err(io::Error::from).and_then(|page| {
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            self.file.write_all(page.as_bytes())
        });
        written.map_err(|error| PageError { path: self.path, error })
    }
}

/// The page of a result that was recorded; the exit status of the process.
pub(super) fn of_recorded(file: &Path, page: &Path) -> anyhow::Result<u8> {
    let mut paths = Paths::default();
    paths.read("RESULT", file);
    paths.write("--html", page);
    paths.check()?;
    let text = super::read(file)?;
    super::changes::parsed(file, &text)?;
    let result: serde_json::Value = serde_json::from_str(&text)?;
    check_shape(&result).with_context(|| path(file).to_string())?;
    Page::open(page)?.write(&result)?;
    Ok(0)
}
