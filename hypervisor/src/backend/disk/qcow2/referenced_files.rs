//! Files that a qcow2 image refers to: its backing file, the backing file of that one, and so on; and a data file.
//!
//! The user names one path; the others come from the image. Each is checked and locked like a disk before imago reads
//! it: if another program wrote to a backing file meanwhile, that would silently break the image.

#![forbid(unsafe_code)]

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

/// Files of one image at most: opening is recursive.
const MOST: usize = 64;

/// Opens the files that images refer to, and keeps their locks.
#[derive(Clone)]
pub(super) struct ReferencedFiles {
    /// The image that the user has named.
    options: Options,
    /// Whether the data file of the current image may be written.
    writable: bool,
    found: Rc<RefCell<Found>>,
}

#[derive(Default)]
struct Found {
    /// Device and inode of every file.
    places: Vec<(u64, u64)>,
    locks: Vec<Locked>,
    /// Why a file was refused. imago only passes text on.
    refused: Option<OpenError>,
}

impl ReferencedFiles {
    /// For the image in `file`, which was opened by `options`.
    ///
    /// # Errors
    /// When the image cannot be used.
    pub fn new(file: &Locked, options: &Options) -> Result<Self, OpenError> {
        let files = Self { options: options.clone(), writable: !options.readonly, found: Rc::default() };
        files.check(file, &options.path)?;
        Ok(files)
    }

    /// The locks of all files that were opened, to be held as long as the image is open.
    pub fn locks(&self) -> Vec<Locked> {
        std::mem::take(&mut self.found.borrow_mut().locks)
    }

    /// Why the image could not be opened, when imago returns `error`.
    pub fn why(&self, error: io::Error) -> OpenError {
        let image = self.options.path.clone();
        match self.found.borrow_mut().refused.take() {
            Some(refused) => OpenError::Referenced { image, error: Box::new(refused) },
            None => OpenError::Image { path: image, error },
        }
    }

    /// Checks that a file may be a part of the image.
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
        // A file that is already a part of the image would be reported as locked.
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

    /// Checks the image that was opened last, before imago reads it. Backing files are never written to.
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
        // A backing file is only read, and so is its data file.
        let below = Self { writable: false, ..self.clone() };
        if F::FORMAT == Kind::Qcow2 {
            // imago opens the backing file first, and then the image in it.
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
