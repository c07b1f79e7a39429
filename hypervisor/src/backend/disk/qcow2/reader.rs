//! Reads an image's tables to check them.
//!
//! Every offset and length comes from the file and is not trusted. Nothing outside the file is read, and at most
//! [`MOST_BYTES`], so that the check takes a bounded time, however the tables refer to one another.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::fault::Fault;

/// Bytes of tables at most that are read from one image: enough for 16 TiB of data in clusters of 64 KiB.
const MOST_BYTES: u64 = 2 << 30;
/// Bytes that are read at a time.
const PIECE: u64 = 256 << 10;

/// An image's file.
pub(super) struct Reader {
    file: File,
    len: u64,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

impl Reader {
    /// A reader for `file`; `direct`: it was opened with O_DIRECT.
    pub fn new(file: &File, direct: bool) -> io::Result<Self> {
        // Tables are not aligned as O_DIRECT requires, so they are read through the page cache. Not opened by the path,
        // which may lead to another file by now.
        let file = if direct {
            File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?
        } else {
            file.try_clone()?
        };
        // The metadata of a block device has no length, but its end has a position.
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

    /// Fills `bytes` from `offset`.
    pub fn read(&self, what: &'static str, offset: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let count = bytes.len() as u64;
        self.inside(what, offset, count)?;
        let Some(left) = self.left.get().checked_sub(count) else {
            return Err(Fault::TooLarge("they have more than 2 GiB"));
        };
        self.left.set(left);
        Ok(self.file.read_exact_at(bytes, offset)?)
    }

    /// The first bytes of the file, at most `most`.
    pub fn beginning(&self, most: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; usize::try_from(most.min(self.len)).unwrap_or(0)];
        self.read("the header", 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Calls `each` with the index and the value of every nonzero entry of a table with `count` entries of 64 bits.
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
