//! Direct I/O, around the host's page cache (O_DIRECT): the kernel's alignment rules, and what to do when a guest's
//! buffers break them.
//!
//! A guest learns the block size (BLK_SIZE) but no rule for addresses: virtio lets a buffer begin anywhere. Buffers
//! that are not aligned are copied through aligned ones. If blocks are larger than a sector and a driver writes less
//! than a block, the block is read, changed and written, and other writes to the disk wait.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError, RwLock};

use super::buffers;
use super::buffers::{Aligned, PIECE};
use super::image::SECTOR;

/// The alignment if the kernel does not tell it: a page, which every Linux device accepts.
const PAGE: usize = 4096;

/// The alignment that O_DIRECT requires: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Of addresses.
    pub memory: usize,
    /// Of offsets and lengths; [`PIECE`] at most.
    pub block: usize,
}

impl Alignment {
    /// The alignment of a file that is open with O_DIRECT.
    ///
    /// # Errors
    /// When it cannot be read with any alignment.
    pub fn of(file: &File) -> io::Result<Self> {
        let said = said(file);
        let found = said.filter(|a| {
            let sane = |n: usize| n.is_power_of_two() && n <= PIECE;
            sane(a.memory) && sane(a.block)
        });
        found.map_or_else(|| Self::tried(file), Ok)
    }

    /// Finds the alignment by trying, for kernels before 6.1 and file systems that do not tell it.
    fn tried(file: &File) -> io::Result<Self> {
        let mut buffer = Aligned::piece(PAGE);
        for block in [512, 1024, 2048, PAGE] {
            let bytes = buffer.get_mut(..block).unwrap_or_default();
            match file.read_at(bytes, 0) {
                Ok(_) => return Ok(Self { memory: PAGE, block }),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether the kernel accepts a transfer of these buffers to or from `offset`.
    pub fn fits(self, buffers: &[libc::iovec], offset: u64) -> bool {
        let (memory, block) = (self.memory.wrapping_sub(1), self.block.wrapping_sub(1));
        offset & block as u64 == 0
            && buffers.iter().all(|b| b.iov_base.addr() & memory == 0 && b.iov_len & block == 0)
    }

    /// A buffer with this alignment.
    pub fn piece(self) -> Aligned {
        Aligned::piece(self.memory.max(PAGE))
    }
}

/// The alignment that statx(2) reports.
fn said(file: &File) -> Option<Alignment> {
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let wanted = libc::STATX_DIOALIGN;
    // SAFETY: the descriptor is open, the path is a C string, and `found` is live.
    let failed = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, wanted, &raw mut found) != 0
    };
    if failed || found.stx_mask & wanted == 0 {
        return None;
    }
    let number = |n: u32| usize::try_from(n).ok().filter(|&n| n > 0);
    Some(Alignment { memory: number(found.stx_dio_mem_align)?, block: number(found.stx_dio_offset_align)? })
}

/// Does transfers that are not aligned.
pub(super) struct Direct {
    pub alignment: Alignment,
    /// Writes of whole blocks hold it for reading, writes of parts of a block for writing.
    blocks: RwLock<()>,
    /// Buffers not in use: as many as the threads that were here at the same time.
    spare: Mutex<Vec<Aligned>>,
}

impl Direct {
    pub fn new(file: &File) -> io::Result<Self> {
        let alignment = Alignment::of(file)?;
        Ok(Self { alignment, blocks: RwLock::new(()), spare: Mutex::default() })
    }

    /// Whether blocks are no larger than a sector, so that only addresses can be unaligned.
    pub fn takes_sectors(&self) -> bool {
        self.alignment.block as u64 <= SECTOR
    }

    /// Runs `write`, a write of whole blocks, while no write of a part of a block is under way.
    pub fn whole<R>(&self, write: impl FnOnce() -> R) -> R {
        let _shared = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        write()
    }

    /// Reads into unaligned buffers.
    pub fn read(&self, file: &File, buffers: &mut [libc::iovec], mut offset: u64) -> io::Result<()> {
        self.with_piece(move |piece| {
            let mut buffers = buffers;
            while !buffers.is_empty() {
                let (window, skip) = self.window(piece, offset, buffers::total(buffers))?;
                let have = fill(file, window, offset - skip as u64)?;
                let found = window.get(skip..have).filter(|bytes| !bytes.is_empty());
                let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
                // SAFETY: guest memory, which the caller keeps mapped.
                let done = unsafe { buffers::copy_to(buffers, found) };
                buffers = buffers::advance(buffers, done);
                offset += done as u64;
            }
            Ok(())
        })
    }

    /// Writes from unaligned buffers.
    pub fn write(&self, file: &File, buffers: &mut [libc::iovec], mut offset: u64) -> io::Result<()> {
        self.with_piece(move |piece| {
            let mut buffers = buffers;
            while !buffers.is_empty() {
                let left = buffers::total(buffers);
                let (window, skip) = self.window(piece, offset, left)?;
                let part = (window.len() - skip).min(usize::try_from(left).unwrap_or(usize::MAX));
                let start = offset - skip as u64;
                let copy = |window: &mut [u8]| {
                    let to = window.get_mut(skip..skip + part).unwrap_or_default();
                    // SAFETY: guest memory, which the caller keeps mapped.
                    unsafe { buffers::copy_from(buffers, to) }
                };
                let done = if part == window.len() {
                    let done = copy(window);
                    self.whole(|| file.write_all_at(window, start))?;
                    done
                } else {
                    let _alone = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
                    if fill(file, window, start)? < window.len() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let done = copy(window);
                    file.write_all_at(window, start)?;
                    done
                };
                buffers = buffers::advance(buffers, done);
                offset += done as u64;
            }
            Ok(())
        })
    }

    /// The beginning of `piece`, for the whole blocks around `offset`; and the position of `offset` in it.
    fn window<'a>(&self, piece: &'a mut [u8], offset: u64, left: u64) -> io::Result<(&'a mut [u8], usize)> {
        let block = self.alignment.block;
        let skip = (offset & (block as u64).wrapping_sub(1)) as usize;
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let len = (skip + wanted).checked_next_multiple_of(block).unwrap_or(PIECE).min(PIECE);
        let window = piece.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((window, skip))
    }

    fn with_piece<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = spare().pop();
        let mut piece = kept.unwrap_or_else(|| self.alignment.piece());
        let result = f(&mut piece);
        spare().push(piece);
        result
    }
}

/// Reads until `bytes` is full or the file ends; returns how many bytes.
fn fill(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The file's end is not a multiple of a block, so that the next offset is not aligned.
            Err(error) if done > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use crate::backend::disk::direct::*;

    /// With blocks of any size, on a file without alignment requirements: written data is in its place, and its
    /// neighbours do not change.
    #[test]
    fn writes_of_partial_blocks_keep_their_neighbours() {
        let path = std::env::temp_dir().join(format!("paravane-direct-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut expected: Vec<u8> = (0..PIECE * 3).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&expected, 0).unwrap();
        for block in [512, 4096, PIECE] {
            let direct = Direct {
                alignment: Alignment { memory: PAGE, block },
                blocks: RwLock::new(()),
                spare: Mutex::default(),
            };
            for (at, len) in [(0, 512), (512, 512), (3584, 1024), (4096, PIECE), (PIECE - 512, PIECE + 1024)]
            {
                let mut data: Vec<u8> = (0..len).map(|n| (n % 13 + block / 512) as u8).collect();
                let base = data.as_mut_ptr();
                let pieces = || {
                    let cut = len / 3;
                    [(0, cut), (cut, len - cut)].map(|(from, len)| libc::iovec {
                        iov_base: base.wrapping_add(from).cast(),
                        iov_len: len,
                    })
                };
                direct.write(&file, &mut pieces(), at as u64).unwrap();
                expected[at..at + len].copy_from_slice(&data);
                let mut found = vec![0; expected.len()];
                file.read_exact_at(&mut found, 0).unwrap();
                assert!(found == expected, "{len} bytes at {at}, blocks of {block}");
                data.fill(0);
                direct.read(&file, &mut pieces(), at as u64).unwrap();
                assert!(data == expected[at..at + len], "{len} bytes at {at}, blocks of {block}");
            }
            let mut byte = 0u8;
            let mut past = [libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 }];
            let error = direct.read(&file, &mut past, expected.len() as u64).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn alignment_is_checked() {
        let alignment = Alignment { memory: 512, block: 4096 };
        let at = |address: usize, len| {
            [libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: len }]
        };
        assert!(alignment.fits(&at(0x1200, 8192), 4096));
        assert!(!alignment.fits(&at(0x1201, 8192), 4096));
        assert!(!alignment.fits(&at(0x1200, 512), 4096));
        assert!(!alignment.fits(&at(0x1200, 4096), 512));
    }
}
