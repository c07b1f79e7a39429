//! Files that a qcow2 image names: its backing file, that one's, and a file for its data.
//!
//! What the user gave is one path; these come out of the image, so that each is checked and locked as a disk of its own
//! would be. A backing file that somebody writes to meanwhile is an image that is broken, and nobody would notice.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use imago::file::File as Storage;
use imago::format::gate::ImplicitOpenGate;
use imago::{FormatAccess, FormatDriverBuilder, Storage as _, StorageOpenOptions};

use super::image::{self, Locked};
use super::{OpenError, Options};

/// Files of one image at most: each is opened within the opening of the one before.
const MOST: usize = 64;
/// Bytes of what the versions' headers have in common, up to how the image is encrypted.
const HEADER: usize = 36;

/// Opens what images name, and holds it.
#[derive(Clone)]
pub(super) struct Behind {
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

impl Behind {
    /// For the image that `options` name and `file` is.
    ///
    /// # Errors
    /// When that one cannot be used.
    pub fn new(file: &Locked, options: &Options) -> Result<Self, OpenError> {
        let behind = Self { options: options.clone(), writable: !options.readonly, found: Rc::default() };
        behind.check(file, &options.path)?;
        Ok(behind)
    }

    /// The locks of all files that were opened, to be held as long as the image is.
    pub fn locks(&self) -> Vec<Locked> {
        std::mem::take(&mut self.found.borrow_mut().locks)
    }

    /// Why the image could not be opened, when imago says `error`.
    pub fn why(&self, error: io::Error) -> OpenError {
        let image = self.options.path.clone();
        match self.found.borrow_mut().refused.take() {
            Some(refused) => OpenError::Behind { image, error: Box::new(refused) },
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
        let encrypted = image::beginning(&file.0).is_some_and(|header| is_encrypted(&header));
        if encrypted { Err(OpenError::Encrypted(path.to_owned())) } else { Ok(()) }
    }

    fn open(&self, path: &Path, writable: bool) -> Result<(), OpenError> {
        // One that is there already would be found to be in use, by us.
        if let Ok(meta) = std::fs::metadata(path)
            && self.found.borrow().places.contains(&(meta.dev(), meta.ino()))
        {
            return Err(OpenError::Endless(path.to_owned()));
        }
        let file = image::open(path, &Options { readonly: !writable, ..self.options.clone() })?;
        self.check(&file, path)?;
        self.found.borrow_mut().locks.push(file);
        Ok(())
    }
}

/// Whether this is the header of an image that is encrypted: magic number, version and, last, `crypt_method`, of which 0
/// is none.
fn is_encrypted(header: &[u8; HEADER]) -> bool {
    match header {
        [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2 | 3, .., a, b, c, d] => [*a, *b, *c, *d] != [0; 4],
        _ => false,
    }
}

impl ImplicitOpenGate<Storage> for Behind {
    fn open_format<F: FormatDriverBuilder<Storage>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<Storage>> {
        // A backing file: only read, and so is its data's.
        let below = Self { writable: false, ..self.clone() };
        builder.open(below).map(FormatAccess::new)
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        let writable = options.get_writable() && self.writable;
        let path = options.get_filename().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        if let Err(refused) = self.open(&path, writable) {
            let text = refused.to_string();
            self.found.borrow_mut().refused.get_or_insert(refused);
            return Err(io::Error::other(text));
        }
        Storage::open(options.write(writable))
    }
}
