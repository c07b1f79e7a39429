//! Files that a command is given. Kind, size and first bytes are checked before the rest is read, and no more is read
//! than there is room for.
//!
//! A pipe or a process substitution is read as far as there is room. What may not be done here: judging the contents. A
//! file that cannot be an image is handed on as far as it was read; the image reader then says what is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::image;
use crate::text::units;

/// No image is larger as a file; debug information is most of those that come near.
const LARGEST_IMAGE: u64 = 1 << 30;
/// What is read of a file to see whether it can be an image.
const FIRST: u64 = 4096;

/// A file that is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputFileError {
    /// The host refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is nothing in it to read.
    #[error("it is a directory; give a file")]
    Directory,
    /// It is as large as a disk, or has no end.
    #[error("it is a {0} device; copy what you want of it to a file (dd, head -c) and give that")]
    Device(&'static str),
    /// There is no room for it.
    #[error("it has {}, and {room}", match .size { Some(size) => units::bytes(*size), None => "no end in sight".into() })]
    TooLarge {
        /// Bytes, if it says.
        size: Option<u64>,
        /// What there is room for, and what to do.
        room: String,
    },
    /// What an image would load is more than the guest has.
    #[error("it loads {}, and the guest has {} of memory; raise --mem", units::bytes(*loaded), units::bytes(*mem))]
    Loads {
        /// Bytes in memory.
        loaded: u64,
        /// Bytes of the guest's memory.
        mem: u64,
    },
}

/// A file that is open and is worth reading.
struct InputFile {
    file: File,
    size: Option<u64>,
}

impl InputFile {
    fn open(path: &Path) -> Result<Self, InputFileError> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(InputFileError::Directory);
        }
        if kind.is_block_device() {
            return Err(InputFileError::Device("block"));
        }
        if kind.is_char_device() && metadata.rdev() != libc::makedev(1, 3) {
            return Err(InputFileError::Device("character"));
        }
        Ok(Self { file, size: kind.is_file().then_some(metadata.len()) })
    }

    /// Refuses what has more than `limit` bytes.
    fn must_fit(&self, limit: u64, room: impl Fn() -> String) -> Result<(), InputFileError> {
        match self.size {
            Some(size) if size > limit => Err(InputFileError::TooLarge { size: Some(size), room: room() }),
            _ => Ok(()),
        }
    }

    /// Adds up to `limit` bytes, all in all, to those that were read.
    fn read(&mut self, bytes: &mut Vec<u8>, limit: u64) -> io::Result<()> {
        let more = limit.saturating_sub(bytes.len() as u64);
        let expected = self.size.unwrap_or(0).saturating_sub(bytes.len() as u64).min(more);
        bytes.try_reserve_exact(usize::try_from(expected).unwrap_or(usize::MAX))?;
        (&mut self.file).take(more).read_to_end(bytes).map(drop)
    }

    /// All of it, which may not be more than `limit`: it may have grown meanwhile, or tell no size.
    fn read_all(
        mut self,
        mut bytes: Vec<u8>,
        limit: u64,
        room: impl Fn() -> String,
    ) -> Result<Vec<u8>, InputFileError> {
        self.read(&mut bytes, limit.saturating_add(1))?;
        if bytes.len() as u64 > limit {
            return Err(InputFileError::TooLarge { size: None, room: room() });
        }
        Ok(bytes)
    }
}

/// A file that goes into a guest's memory of `mem` bytes as it is.
pub(super) fn module(path: &Path, mem: u64) -> Result<Vec<u8>, InputFileError> {
    let room =
        || format!("the guest has {} of memory; raise --mem, or give a smaller file", units::bytes(mem));
    let input = InputFile::open(path)?;
    input.must_fit(mem, room)?;
    input.read_all(Vec::new(), mem, room)
}

/// An image, of which a guest with `mem` bytes of memory is to be made; or the first bytes of a file that is not an
/// image.
pub(super) fn image(path: &Path, mem: u64) -> Result<Vec<u8>, InputFileError> {
    let room = || {
        let limit = units::bytes(LARGEST_IMAGE);
        format!("an image may have {limit}; take its debug information out (strip --strip-debug)")
    };
    let mut input = InputFile::open(path)?;
    let mut bytes = Vec::new();
    input.read(&mut bytes, FIRST)?;
    if !image::may_begin_with(&bytes) {
        return Ok(bytes);
    }
    if !image::is_elf(&bytes) {
        // What is packed is smaller than what comes out, all of which has to fit.
        let room = || format!("the guest has {} of memory; raise --mem", units::bytes(mem));
        let limit = LARGEST_IMAGE.min(mem);
        input.must_fit(limit, room)?;
        return input.read_all(bytes, limit, room);
    }
    input.must_fit(LARGEST_IMAGE, room)?;
    match image::loaded_bytes(&bytes) {
        Some(loaded) if loaded > mem => Err(InputFileError::Loads { loaded, mem }),
        _ => input.read_all(bytes, LARGEST_IMAGE, room),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use super::*;
    use crate::testing::elf::Elf;

    const MIB: u64 = 1 << 20;

    /// A file of 6 GiB that takes no room on the disk, and begins with these bytes.
    fn huge(name: &str, begin: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("paravane-input-file-{}-{name}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(begin).unwrap();
        file.set_len(6 << 30).unwrap();
        path
    }

    /// 6 GiB were read for a guest of 64 MiB.
    #[test]
    fn a_file_that_does_not_fit_is_not_read() {
        let path = huge("module", b"");
        let why = module(&path, 64 * MIB).unwrap_err().to_string();
        assert!(why.contains("6 GiB") && why.contains("64 MiB") && why.contains("--mem"), "{why}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_cannot_be_an_image_is_read_no_further_than_it_takes_to_see_that() {
        let path = huge("zeroes", b"");
        assert_eq!(image(&path, 64 * MIB).unwrap(), vec![0; FIRST as usize]);
        std::fs::remove_file(path).unwrap();
        let path = huge("elf", &Elf::pv(0x4000_0000, 0, 0x10_0000, &[]).bytes());
        let why = image(&path, 64 * MIB).unwrap_err().to_string();
        assert!(why.contains("6 GiB") && why.contains("strip"), "{why}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_packed_image_that_is_larger_than_the_guest_is_not_read() {
        let path = huge("gzip", &[0x1f, 0x8b, 8]);
        let why = image(&path, 64 * MIB).unwrap_err().to_string();
        assert!(why.contains("6 GiB") && why.contains("64 MiB"), "{why}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_image_that_loads_more_than_there_is_is_not_read() {
        let path = huge("loads", &Elf::pv(0x4000_0000, 0, 0x10_0000, &[]).bytes());
        File::options().write(true).open(&path).unwrap().set_len(512 * MIB).unwrap();
        assert!(matches!(image(&path, 0x4000), Err(InputFileError::Loads { loaded: 0x5800, mem: 0x4000 })));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_has_no_end_is_named_or_bounded() {
        for read in [module, image] {
            assert!(matches!(read(Path::new("/dev/zero"), MIB), Err(InputFileError::Device("character"))));
            assert!(matches!(read(Path::new("/"), MIB), Err(InputFileError::Directory)));
            assert_eq!(read(Path::new("/dev/null"), MIB).unwrap(), b"");
        }
        let (reader, mut writer) = io::pipe().unwrap();
        let feeder = std::thread::spawn(move || while writer.write_all(&[7; 4096]).is_ok() {});
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let why = module(&path, MIB).unwrap_err().to_string();
        assert!(why.contains("no end in sight"), "{why}");
        drop(reader);
        feeder.join().unwrap();
    }

    #[test]
    fn a_pipe_that_fits_is_read_whole() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"a module").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        assert_eq!(module(&path, MIB).unwrap(), b"a module");
    }
}
