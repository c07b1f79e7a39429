//! The file of `--stats-json`: found out to be writable before the guest runs, written when it has ended.
//!
//! A run that never comes to its end leaves the file as it was. So it is opened without being emptied, and not replaced
//! by another: it may be a link, a device, a named pipe, or standard output by another name.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::stats::Statistics;
use crate::host::limit::Advice;
use crate::host::notice;
use crate::text::printable;

/// Statistics cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write statistics to {}: {error}{}", printable::path(path), Advice::of_writes(error))]
pub(super) struct StatisticsError {
    path: PathBuf,
    error: io::Error,
}

/// The file, as long as nothing was written to it.
#[derive(Debug)]
pub(super) struct StatisticsFile {
    file: File,
    path: PathBuf,
    /// It has contents of its own, which are replaced.
    replaces: bool,
    /// It was made here, and is of no use if nothing is written.
    made: bool,
}

impl StatisticsFile {
    /// Opens or makes the file. A named pipe is waited for until somebody reads it.
    pub(super) fn open(path: &Path) -> Result<Self, StatisticsError> {
        Self::try_open(path).map_err(|error| StatisticsError { path: path.to_owned(), error })
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        let (mut file, made) = open_or_make(path)?;
        let mut replaces = file.metadata()?.is_file();
        if let Some(ours) = same_as_output(&file)? {
            // Opened again it would have a position of its own, and overwrite what was printed.
            (file, replaces) = (ours, false);
        }
        Ok(Self { file, path: path.to_owned(), replaces, made })
    }

    /// Writes the statistics in place of what is in the file.
    pub(super) fn write(mut self, statistics: &Statistics<'_>) -> Result<(), StatisticsError> {
        let written = self.try_write(statistics);
        self.made &= written.is_err();
        written.map_err(|error| StatisticsError { path: self.path.clone(), error })
    }

    fn try_write(&mut self, statistics: &Statistics<'_>) -> io::Result<()> {
        let mut text = Vec::new();
        statistics.write_json(&mut text)?;
        if self.replaces {
            self.file.set_len(0)?;
        }
        notice::write(self.file.as_fd(), &text)
    }
}

impl Drop for StatisticsFile {
    fn drop(&mut self) {
        if self.made {
            // What is left is an empty or half a file; the user is told why.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens a file for writing, with what is in it, or makes it; whether it was made.
pub(super) fn open_or_make(path: &Path) -> io::Result<(File, bool)> {
    match File::options().write(true).open(path) {
        // A link to nowhere is made by the plain `create`, which may also find that somebody was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok((File::options().write(true).create(true).truncate(false).open(path)?, true))
        }
        opened => Ok((opened?, false)),
    }
}

/// Standard output or error, if `file` is the same.
fn same_as_output(file: &File) -> io::Result<Option<File>> {
    let wanted = file.metadata()?;
    let (stdout, stderr) = (io::stdout(), io::stderr());
    for stream in [stdout.as_fd(), stderr.as_fd()] {
        let Ok(ours) = stream.try_clone_to_owned().map(File::from) else { continue };
        let found = ours.metadata()?;
        if (found.dev(), found.ino(), found.rdev()) == (wanted.dev(), wanted.ino(), wanted.rdev()) {
            return Ok(Some(ours));
        }
    }
    Ok(None)
}
