//! Files that are named twice on one command line, where one would destroy the other.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::text::printable;

/// Two options that cannot both have the file that they are given.
#[derive(Debug, thiserror::Error)]
#[error("{first} and {second} are both given {}; {advice}", printable::path(path))]
pub(super) struct Clash {
    first: &'static str,
    second: &'static str,
    path: PathBuf,
    advice: &'static str,
}

/// The paths of a command line, by option.
#[derive(Debug, Default)]
pub(super) struct Paths<'a> {
    named: Vec<Named<'a>>,
}

#[derive(Debug)]
struct Named<'a> {
    option: &'static str,
    path: &'a Path,
    written: bool,
    disk: bool,
}

/// What a path leads to: a file that is there, or where one would be made.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File { device: u64, inode: u64 },
    Name(PathBuf),
}

impl<'a> Paths<'a> {
    /// Adds a file that is only read.
    pub fn read(&mut self, option: &'static str, path: &'a Path) {
        self.named.push(Named { option, path, written: false, disk: false });
    }

    /// Adds a disk, which other options may read before the guest runs.
    pub fn disk(&mut self, path: &'a Path, readonly: bool) {
        self.named.push(Named { option: "--disk", path, written: !readonly, disk: true });
    }

    /// Adds a file that is made or written, or a socket.
    pub fn write(&mut self, option: &'static str, path: &'a Path) {
        self.named.push(Named { option, path, written: true, disk: false });
    }

    /// # Errors
    /// When something that is written to was also given to another option.
    pub fn check(&self) -> Result<(), Clash> {
        let places: Vec<_> = self.named.iter().filter_map(|one| Some((one, place(one.path)?))).collect();
        for (at, (one, here)) in places.iter().enumerate() {
            let mut others =
                places.iter().skip(at + 1).filter(|(other, there)| here == there && clash(one, other));
            if let Some((other, _)) = others.next() {
                let advice = if one.disk && other.disk {
                    "make a copy, or add \",readonly\" to both"
                } else {
                    "give each a file of its own"
                };
                let (first, second) = (one.option, other.option);
                return Err(Clash { first, second, path: other.path.to_owned(), advice });
            }
        }
        Ok(())
    }
}

/// A disk that is written is only in the way of another disk, or of what is written otherwise.
fn clash(one: &Named, other: &Named) -> bool {
    match (one.disk, other.disk) {
        (true, false) => other.written,
        (false, true) => one.written,
        _ => one.written || other.written,
    }
}

/// `None` for a device like /dev/null, which may be named as often as one likes.
fn place(path: &Path) -> Option<Place> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_char_device() => None,
        Ok(meta) => Some(Place::File { device: meta.dev(), inode: meta.ino() }),
        Err(_) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).canonicalize();
            // If the directory does not exist, the open that follows reports it.
            Some(Place::Name(parent.ok()?.join(path.file_name()?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cannot_be_two_things() {
        let dir = std::env::temp_dir().join(format!("paravane-paths-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        let [disk, link, new, again] = ["disk", "link", "new", "sub/../new"].map(|name| dir.join(name));
        std::fs::write(&disk, "").unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let check = |first: &Path, second: &Path, written: bool| {
            let mut paths = Paths::default();
            paths.disk(first, false);
            if written {
                paths.write("--console", second)
            } else {
                paths.read("--initrd", second)
            }
            paths.check().map_err(|error| error.to_string())
        };
        let message = check(&disk, &link, true).unwrap_err();
        assert!(message.starts_with("--disk and --console are both given "), "{message}");
        assert!(check(&new, &again, true).is_err(), "though it does not exist");
        assert_eq!(check(&disk, &link, false), Ok(()), "nobody writes");
        assert_eq!(check(&disk, &new, true), Ok(()));
        assert_eq!(check(Path::new("/dev/null"), Path::new("/dev/null"), true), Ok(()));
        assert_eq!(check(Path::new("/no/such/a"), Path::new("/no/such/a"), true), Ok(()));
        let twice = |readonly: [bool; 2]| {
            let mut paths = Paths::default();
            readonly.into_iter().for_each(|readonly| paths.disk(&disk, readonly));
            paths.check().map_err(|error| error.to_string())
        };
        assert_eq!(twice([true, true]), Ok(()));
        let message = twice([true, false]).unwrap_err();
        assert!(
            message.starts_with("--disk and --disk are both") && message.contains("to both"),
            "{message}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}
