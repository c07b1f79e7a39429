//! Files that a qcow2 image names: its backing file, that one's, and a file for its data.
//!
//! What the user gave is one path; these come out of the image, so that each is checked and locked as a disk of its own
//! would be, before imago reads a byte of it. A backing file that somebody writes to meanwhile breaks the image, and
//! nobody would notice.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use imago::format::Format as Kind;
use imago::format::gate::ImplicitOpenGate;
use imago::{FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::check::check;
use super::storage::Storage;
use crate::backend::disk::file;
use crate::backend::disk::file::Locked;
use crate::backend::disk::open_error::OpenError;
use crate::backend::disk::options::Options;

/// Files of one image at most: each is opened within the opening of the one before.
const MOST: usize = 64;

/// Opens what images name, and holds it.
#[derive(Clone)]
pub(super) struct ReferencedFiles {
    /// The image that the user named.
    options: Options,
    /// Whether what the image at hand names for its own data may be written.
    writable: bool,
    found: Rc<RefCell<Found>>,
}

#[derive(Default)]
struct Found {
    /// Device and inode of every file.
    places: Vec<(u64, u64)>,
    locks: Vec<Locked>,
    /// Why one was not opened; imago would make text of it.
    refused: Option<OpenError>,
}

impl ReferencedFiles {
    /// For the image that `options` name and `file` is.
    ///
    /// # Errors
    /// When that one cannot be used.
    pub fn new(file: &Locked, options: &Options) -> Result<Self, OpenError> {
        let files = Self { options: options.clone(), writable: !options.readonly, found: Rc::default() };
        files.check(file, &options.path)?;
        Ok(files)
    }

    /// The locks of all files that were opened, to be held as long as the image is.
    pub fn locks(&self) -> Vec<Locked> {
        std::mem::take(&mut self.found.borrow_mut().locks)
    }

    /// Why the image could not be opened, when imago says `error`.
    pub fn why(&self, error: io::Error) -> OpenError {
        let image = self.options.path.clone();
        match self.found.borrow_mut().refused.take() {
            Some(refused) => OpenError::Referenced { image, error: Box::new(refused) },
            None => OpenError::Image { path: image, error },
        }
    }

    /// Whether a file may be a part of the image.
    fn check(&self, file: &Locked, path: &Path) -> Result<(), OpenError> {
        let opened = |error| OpenError::Open { path: path.to_owned(), error };
        let meta = file.0.metadata().map_err(opened)?;
        let (place, places) = ((meta.dev(), meta.ino()), &mut self.found.borrow_mut().places);
        if places.len() >= MOST || places.contains(&place) {
            return Err(OpenError::Endless(path.to_owned()));
        }
        places.push(place);
        Ok(())
    }

    fn open(&self, path: &Path, writable: bool) -> Result<Storage, OpenError> {
        // One that is there already would be found to be in use, by us.
        if let Ok(meta) = std::fs::metadata(path)
            && self.found.borrow().places.contains(&(meta.dev(), meta.ino()))
        {
            return Err(OpenError::Endless(path.to_owned()));
        }
        let file =
            file::open(&Options { path: path.to_owned(), readonly: !writable, ..self.options.clone() })?;
        self.check(&file, path)?;
        let storage = Storage::new(&file, path);
        let storage = storage.map_err(|error| OpenError::Open { path: path.to_owned(), error })?;
        self.found.borrow_mut().locks.push(file);
        Ok(storage)
    }

    /// Looks at the image that was opened last, which is about to be read. None of these is written to.
    fn check_last(&self, path: &Path) -> Result<(), OpenError> {
        let found = self.found.borrow();
        let Some(last) = found.locks.last() else { return Ok(()) };
        let checked = check(&last.0, self.options.direct, false);
        checked.map(drop).map_err(|fault| OpenError::fault(path, fault))
    }

    /// Notes why an image is refused, for [`ReferencedFiles::why`].
    fn refuse(&self, refused: OpenError) -> io::Error {
        let text = refused.to_string();
        self.found.borrow_mut().refused.get_or_insert(refused);
        io::Error::other(text)
    }
}

impl ImplicitOpenGate<Storage> for ReferencedFiles {
    fn open_format<F: FormatDriverBuilder<Storage>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<Storage>> {
        // A backing file: only read, and so is its data's.
        let below = Self { writable: false, ..self.clone() };
        if F::FORMAT == Kind::Qcow2 {
            // imago opens a backing file and, next, what is in it.
            let path = builder.get_image_path().unwrap_or_default();
            self.check_last(&path).map_err(|refused| self.refuse(refused))?;
        }
        builder.open(below).map(FormatAccess::new)
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        let writable = options.get_writable() && self.writable;
        let path = options.get_filename().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        self.open(&path, writable).map_err(|refused| self.refuse(refused))
    }
}
