//! Reads an image's tables, for who looks whether they are right.
//!
//! What is read is nobody's yet: every offset and length comes out of the file. Nothing outside it is read, and no more
//! of it than [`MOST_BYTES`], so that an image takes a bounded time, however its tables refer to one another.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::fault::Fault;

/// Bytes of tables that are read for one image: those of 16 TiB of data in clusters of 64 KiB.
const MOST_BYTES: u64 = 2 << 30;
/// Bytes that are read at a time.
const PIECE: u64 = 256 << 10;

/// An image's file, to be read.
pub(super) struct Reader {
    file: File,
    len: u64,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

impl Reader {
    /// For an image's file; `direct`: it was opened with O_DIRECT.
    pub fn new(file: &File, direct: bool) -> io::Result<Self> {
        // Through the page cache, as tables do not begin where O_DIRECT wants reads to. The path may lead to another
        // file by now.
        let file = if direct {
            File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?
        } else {
            file.try_clone()?
        };
        // A block device's metadata has no length; its end has a position.
        let len = (&file).seek(SeekFrom::End(0))?;
        Ok(Self { file, len, left: Cell::new(MOST_BYTES) })
    }

    /// The file's length, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fails if `bytes` bytes of `what` at `offset` are not inside the file.
    pub fn inside(&self, what: &'static str, offset: u64, bytes: u64) -> Result<(), Fault> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(Fault::Outside { what, offset, len: self.len }) }
    }

    /// Fills `bytes` with what is at `offset`.
    pub fn read(&self, what: &'static str, offset: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let count = bytes.len() as u64;
        self.inside(what, offset, count)?;
        let Some(left) = self.left.get().checked_sub(count) else {
            return Err(Fault::TooLarge("they have more than 2 GiB"));
        };
        self.left.set(left);
        Ok(self.file.read_exact_at(bytes, offset)?)
    }

    /// The first bytes of the file, `most` at most.
    pub fn beginning(&self, most: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; usize::try_from(most.min(self.len)).unwrap_or(0)];
        self.read("the header", 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Calls `each` with the number and the value of every entry that is not zero, of a table of `count` entries of 64
    /// bits each.
    pub fn entries(
        &self,
        what: &'static str,
        offset: u64,
        count: u64,
        mut each: impl FnMut(u64, u64) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let len = count.saturating_mul(8);
        self.inside(what, offset, len)?;
        let mut buffer = vec![0; usize::try_from(len.min(PIECE)).unwrap_or(0)];
        let mut at = 0;
        while at < len {
            let part = usize::try_from(len - at).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = buffer.get_mut(..part).unwrap_or_default();
            self.read(what, offset + at, bytes)?;
            for (number, entry) in (at / 8..).zip(bytes.as_chunks::<8>().0) {
                match u64::from_be_bytes(*entry) {
                    0 => {}
                    value => each(number, value)?,
                }
            }
            at += part as u64;
        }
        Ok(())
    }
}
