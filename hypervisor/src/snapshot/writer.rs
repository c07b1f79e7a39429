//! Writes a snapshot, of a domain that stands still.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use zerocopy::IntoBytes;

use super::format::{
    Body, CHUNK_BYTES, CHUNK_FRAMES, Chunk, Header, LARGEST_IMAGE, Tail, WORDS, checksum, encode, frame_at,
};
use crate::host::limit::Advice;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Mfn, PAGE_SIZE};
use crate::text::printable;

/// What goes into a snapshot.
pub struct Parts<'a, S> {
    /// The memory.
    pub memory: &'a MachineMemory,
    /// Frames that are not saved: the engine's own.
    pub without: Range<u64>,
    /// Whatever else there is to say.
    pub state: &'a S,
    /// The kernel's ELF file.
    pub image: &'a [u8],
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of memory in the file, which is larger by its holes.
    pub memory: u64,
    /// Bytes of everything else.
    pub rest: u64,
}

/// A snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The host refuses it.
    #[error("cannot write the snapshot {}: {error}{}", printable::path(path), Advice::of_writes(error))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// There is more than a reader would take.
    #[error("the guest's state is too large for a snapshot")]
    TooLarge,
    /// Memory is not as large as it says: a bug of this program.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Memory(#[from] BadMachineAddress),
}

/// Writes a snapshot to `path`, in place of what is there.
///
/// # Errors
/// When that does not work; what was at `path` is then still there.
pub fn write<S: Serialize>(path: &Path, parts: &Parts<'_, S>) -> Result<Summary, WriteError> {
    let named = |error| WriteError::Io { path: path.to_owned(), error };
    let temporary = Temporary::beside(path).map_err(named)?;
    let summary = fill(&temporary.file, parts, named)?;
    temporary.become_the_file(path).map_err(named)?;
    Ok(summary)
}

/// A file that goes away unless it gets its name.
struct Temporary {
    file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    /// It holds all that the guest knows: for the user alone.
    fn beside(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let place = path.with_file_name(hidden);
        // What an earlier process of that number left.
        let _ = std::fs::remove_file(&place);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?;
        Ok(Self { file, path: Some(place) })
    }

    fn become_the_file(mut self, path: &Path) -> io::Result<()> {
        if let Some(temporary) = &self.path {
            // A host that crashes after the rename may otherwise keep the name without what is in the file.
            self.file.sync_all()?;
            std::fs::rename(temporary, path)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn fill<S: Serialize>(
    file: &File,
    parts: &Parts<'_, S>,
    named: impl Fn(io::Error) -> WriteError,
) -> Result<Summary, WriteError> {
    let Parts { memory, without, state, image } = parts;
    let frames = memory.frames();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut chunks = Vec::new();
    for index in 0..frames.div_ceil(CHUNK_FRAMES) {
        let chunk = read_chunk(memory, index, without, &mut buffer)?;
        for (first, count) in chunk.runs() {
            let bytes = run(&buffer, first, count);
            file.write_all_at(bytes, frame_at(index * CHUNK_FRAMES + first)).map_err(&named)?;
        }
        if chunk.map != [0; WORDS] {
            chunks.push(chunk);
        }
    }
    let saved: u32 = chunks.iter().flat_map(|chunk| chunk.map).map(u64::count_ones).sum();
    let tail = encode(&Tail { chunks, state }).ok_or(WriteError::TooLarge)?;
    let image = Some(*image).filter(|image| image.len() as u64 <= LARGEST_IMAGE).unwrap_or_default();
    let body = Body {
        frames: frames.into(),
        state_len: (tail.len() as u64).into(),
        image_len: (image.len() as u64).into(),
        state_checksum: checksum(&tail).into(),
        image_checksum: checksum(image).into(),
    };
    let body = body.checked().ok_or(WriteError::TooLarge)?;
    file.write_all_at(&tail, body.state_at()).map_err(&named)?;
    file.write_all_at(image, body.image_at()).map_err(&named)?;
    file.write_all_at(Header::new(body).as_bytes(), 0).map_err(&named)?;
    Ok(Summary {
        memory: u64::from(saved) * PAGE_SIZE,
        rest: (size_of::<Header>() + tail.len() + image.len()) as u64,
    })
}

/// Reads the frames of a MiB, and says which of them are not zero.
fn read_chunk(
    memory: &MachineMemory,
    index: u64,
    without: &Range<u64>,
    buffer: &mut [u8],
) -> Result<Chunk, BadMachineAddress> {
    let first = index * CHUNK_FRAMES;
    let count = CHUNK_FRAMES.min(memory.frames() - first);
    let bytes = run_mut(buffer, count);
    memory.read(Mfn(first).maddr(), bytes)?;
    let mut chunk = Chunk { index, map: [0; WORDS], checksum: 0 };
    let mut crc = flate2::Crc::new();
    for (frame, page) in (0..).zip(bytes.as_chunks::<{ PAGE_SIZE as usize }>().0) {
        if !without.contains(&(first + frame)) && !is_zero(page) {
            chunk.set(frame);
            crc.update(page);
        }
    }
    chunk.checksum = crc.sum();
    Ok(chunk)
}

/// Without a branch for each word, so that it is as fast as reading.
fn is_zero(page: &[u8; PAGE_SIZE as usize]) -> bool {
    page.as_chunks::<64>().0.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

fn run(buffer: &[u8], first: u64, count: u64) -> &[u8] {
    let page = PAGE_SIZE as usize;
    // Within a chunk: both are at most 256.
    buffer.get(first as usize * page..(first + count) as usize * page).unwrap_or_default()
}

fn run_mut(buffer: &mut [u8], count: u64) -> &mut [u8] {
    buffer.get_mut(..count as usize * PAGE_SIZE as usize).unwrap_or_default()
}
