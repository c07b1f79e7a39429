//! The files that programs can open: an archive in memory, which the kernel was started with.
//!
//! It is a cpio archive of the "new ASCII" kind, as Linux takes it, or one ELF program. That program is then every file
//! in `/bin`, and `/proc/self/exe`, and tells by its name what it is asked for.
#![forbid(unsafe_code)]

/// Bytes of a cpio header: a magic number, then thirteen numbers of eight hexadecimal digits.
const HEADER: usize = 110;
const MAGIC: [&[u8]; 2] = [b"070701", b"070702"];
/// Which of the numbers are the file's size and the size of its name, terminator included.
const SIZE: usize = 6;
const NAME_SIZE: usize = 11;

/// Files by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Archive(&'static [u8]);

impl Archive {
    /// The files in `bytes`.
    pub const fn new(bytes: &'static [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A file by its absolute path.
    pub fn find(&self, path: &[u8]) -> Option<&'static [u8]> {
        let wanted = plain(path);
        if self.0.starts_with(b"\x7fELF") {
            return (wanted.starts_with(b"bin/") || wanted == b"proc/self/exe").then_some(self.0);
        }
        self.files().find(|(name, _)| plain(name) == wanted).map(|(_, bytes)| bytes)
    }

    /// The files of a cpio archive, as far as it can be read.
    pub fn files(&self) -> impl Iterator<Item = (&'static [u8], &'static [u8])> + use<> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (file, after) = first(rest)?;
            rest = after;
            (file.0 != b"TRAILER!!!").then_some(file)
        })
    }
}

/// A path without what leads to the root.
fn plain(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b".").unwrap_or(path);
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    &path[start..]
}

type File = (&'static [u8], &'static [u8]);

/// The first file, and what comes after it.
fn first(archive: &'static [u8]) -> Option<(File, &'static [u8])> {
    let header =
        archive.get(..HEADER).filter(|header| MAGIC.iter().any(|magic| header.starts_with(magic)))?;
    let number = |index: usize| {
        let digits = str::from_utf8(header.get(6 + index * 8..14 + index * 8)?).ok()?;
        usize::from_str_radix(digits, 16).ok()
    };
    let (size, name_size) = (number(SIZE)?, number(NAME_SIZE)?);
    let name = archive.get(HEADER..HEADER.checked_add(name_size)?)?.strip_suffix(b"\0")?;
    let start = (HEADER + name_size).next_multiple_of(4);
    let end = start.checked_add(size)?;
    let bytes = archive.get(start..end)?;
    Some(((name, bytes), archive.get(end.next_multiple_of(4)..).unwrap_or_default()))
}
