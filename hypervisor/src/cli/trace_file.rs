//! The file of `run --trace`: found out to be writable before the guest runs, and emptied when the first byte comes.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::stats_file::open_or_make;
use crate::host::limit::Advice;
use crate::host::notice::notice;
use crate::text::printable;
use crate::trace::record::{Destination, Outcome};

/// A trace cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceFileError {
    /// The file cannot be opened.
    #[error("cannot write a trace to {}: {error}{}", printable::path(path), Advice::of_files(error))]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// It would fill somebody's screen.
    #[error("cannot write a trace to {}: it is a terminal, and a trace is no text; give a file", printable::path(.0))]
    Terminal(PathBuf),
    /// The rest of it is missing.
    #[error(
        "the trace in {} ends early, after {exits} exits: {error}{}; free room or give another file",
        printable::path(path),
        Advice::of_writes(error)
    )]
    Write {
        /// Which file.
        path: PathBuf,
        /// How many exits are in it.
        exits: u64,
        /// What the host says.
        error: io::Error,
    },
}

struct TraceFile {
    file: File,
    path: PathBuf,
    /// It has contents of its own, which are replaced.
    replaces: bool,
    /// It was made here, and is of no use if nothing is written.
    made: bool,
}

/// Opens or makes the file for the trace of an image. A named pipe is waited for until somebody reads it.
pub(super) fn open(path: &Path, image: Option<&Path>) -> Result<Destination, TraceFileError> {
    let cannot = |error| TraceFileError::Open { path: path.to_owned(), error };
    let (file, made) = open_or_make(path).map_err(cannot)?;
    if file.is_terminal() {
        return Err(TraceFileError::Terminal(path.to_owned()));
    }
    let replaces = file.metadata().map_err(cannot)?.is_file();
    // Whoever reads the trace may do so elsewhere. A path that cannot be made absolute is of no use to anybody.
    let image =
        image.and_then(|path| std::path::absolute(path).ok()).map(|path| path.into_os_string().into_vec());
    Ok(Destination { file: Box::new(TraceFile { file, path: path.to_owned(), replaces, made }), image })
}

/// Says what of the run is not in the file.
pub(super) fn conclude(path: &Path, outcome: &Outcome) -> Result<(), TraceFileError> {
    let (exits, lost) = (outcome.totals.exits, outcome.totals.lost);
    if let Some(error) = &outcome.error {
        let error = error
            .raw_os_error()
            .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error);
        return Err(TraceFileError::Write { path: path.to_owned(), exits, error });
    }
    if lost != 0 {
        let path = printable::path(path);
        notice(format_args!(
            "{lost} of {} exits are not in {path}, which was written too slowly; give a file on a faster disk",
            exits.saturating_add(lost)
        ));
    }
    Ok(())
}

impl Write for TraceFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.replaces) {
            self.file.set_len(0)?;
        }
        self.made = false;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        if self.made {
            // What is left is an empty file; the user is told why.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
