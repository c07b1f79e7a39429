//! Reads a snapshot, and believes nothing of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use zerocopy::{FromBytes, IntoBytes};

use super::format::{
    Body, CHUNK_BYTES, CHUNK_FRAMES, Chunk, Damage, Header, MAGIC, MEMORY_AT, Tail, VERSION, checksum,
    decode, frame_at,
};
use crate::machine::memory::{Backing, MachineMemory, Mfn, PAGE_SIZE};
use crate::text::printable;

/// A snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host cannot read it.
    #[error("cannot read the snapshot {}: {error}", printable::path(path))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// It is something else.
    #[error("{} is not a snapshot; make one with: paravane run --snapshot-to FILE", printable::path(path))]
    NotASnapshot {
        /// Which file.
        path: PathBuf,
    },
    /// Another program wrote it.
    #[error(
        "the snapshot {} has version {version} of the format, and this program reads version {VERSION}; restore it \
         with the paravane that wrote it",
        printable::path(path)
    )]
    Version {
        /// Which file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// It is damaged.
    #[error("the snapshot {} is damaged: {damage}", printable::path(path))]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        damage: Damage,
    },
}

/// A snapshot whose header was read.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    path: PathBuf,
    body: Body,
}

/// What a snapshot says, decoded.
#[derive(Debug)]
pub struct Contents<S> {
    /// Which frames are in the file.
    chunks: Vec<Chunk>,
    /// What was saved beside memory.
    pub state: S,
}

impl Snapshot {
    /// Opens a file, and reads its header.
    ///
    /// # Errors
    /// When it is not a whole snapshot of this version.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        let damaged = |damage| OpenError::Damaged { path: path.to_owned(), damage };
        let file = File::open(path).map_err(io)?;
        let mut header = [0; size_of::<Header>()];
        let have = read_up_to(&file, &mut header, 0).map_err(io)?;
        if header.get(..MAGIC.len()).filter(|_| have >= MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(OpenError::NotASnapshot { path: path.to_owned() });
        }
        let header = Header::read_from_bytes(&header).map_err(|_| damaged(Damage::CutOff))?;
        if have < size_of::<Header>() {
            return Err(damaged(Damage::CutOff));
        }
        if header.version.get() != VERSION {
            return Err(OpenError::Version { path: path.to_owned(), version: header.version.get() });
        }
        if checksum(header.body.as_bytes()) != header.checksum.get() {
            return Err(damaged(Damage::Header));
        }
        let body = header.body.checked().ok_or_else(|| damaged(Damage::Layout))?;
        if file.metadata().map_err(io)?.len() < body.end() {
            return Err(damaged(Damage::CutOff));
        }
        Ok(Self { file, path: path.to_owned(), body })
    }

    /// Frames of machine memory.
    pub fn frames(&self) -> u64 {
        self.body.frames.get()
    }

    /// What this error means for this file.
    fn damaged(&self, damage: Damage) -> OpenError {
        OpenError::Damaged { path: self.path.clone(), damage }
    }
    fn io(&self, error: io::Error) -> OpenError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.damaged(Damage::CutOff);
        }
        OpenError::Io { path: self.path.clone(), error }
    }

    /// Reads what was saved beside memory.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn contents<S: DeserializeOwned>(&self) -> Result<Contents<S>, OpenError> {
        let bytes = self.part(self.body.state_at(), self.body.state_len.get())?;
        if checksum(&bytes) != self.body.state_checksum.get() {
            return Err(self.damaged(Damage::StateChecksum));
        }
        let Tail { chunks, state } = decode(&bytes).map_err(|damage| self.damaged(damage))?;
        let in_order = chunks.windows(2).all(|pair| matches!(pair, [a, b] if a.index < b.index));
        let frames = self.frames();
        let inside = |chunk: &Chunk| {
            let first = chunk.index.checked_mul(CHUNK_FRAMES);
            first.is_some_and(|first| {
                first < frames && (0..CHUNK_FRAMES).all(|n| !chunk.has(n) || first + n < frames)
            })
        };
        if !in_order || !chunks.iter().all(inside) {
            return Err(self.damaged(Damage::State));
        }
        Ok(Contents { chunks, state })
    }

    /// The kernel's ELF file; empty if there is none.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn image(&self) -> Result<Vec<u8>, OpenError> {
        let bytes = self.part(self.body.image_at(), self.body.image_len.get())?;
        if checksum(&bytes) == self.body.image_checksum.get() {
            Ok(bytes)
        } else {
            Err(self.damaged(Damage::Image))
        }
    }

    /// A part of the file, which is as long as its header says.
    fn part(&self, at: u64, len: u64) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| self.damaged(Damage::Layout))?];
        self.file.read_exact_at(&mut bytes, at).map_err(|error| self.io(error))?;
        Ok(bytes)
    }

    /// Gives fresh memory of as many frames what was saved, but for the frames of `without`.
    ///
    /// Private memory has the file mapped into it: a page is read when it is first used, shared with everybody who has
    /// the same file mapped, and copied when it is first written. A memfd, which other processes map, gets a copy.
    ///
    /// # Errors
    /// When the memory's checksum is wrong, or the host refuses.
    pub fn load<S>(
        &self,
        contents: &Contents<S>,
        memory: &MachineMemory,
        without: &Range<u64>,
    ) -> Result<(), OpenError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let copies = memory.backing() == Backing::Memfd;
        for chunk in &contents.chunks {
            let first = chunk.index * CHUNK_FRAMES;
            let mut crc = flate2::Crc::new();
            for (frame, count) in chunk.runs() {
                // A run is within a chunk.
                let bytes = buffer.get_mut(..count as usize * PAGE_SIZE as usize).unwrap_or_default();
                let mfn = first + frame;
                self.file.read_exact_at(bytes, frame_at(mfn)).map_err(|error| self.io(error))?;
                crc.update(bytes);
                let ours = mfn < without.end && mfn + count > without.start;
                if ours {
                    return Err(self.damaged(Damage::State));
                }
                if copies {
                    let outside = |_| self.damaged(Damage::State);
                    memory.fill(Mfn(mfn).maddr(), bytes).map_err(outside)?;
                }
            }
            if crc.sum() != chunk.checksum {
                return Err(self.damaged(Damage::Memory { at: Mfn(first).maddr().0 }));
            }
        }
        if copies {
            return Ok(());
        }
        let all = self.frames().min(memory.frames());
        for frames in [0..without.start.min(all), without.end.min(all)..all] {
            let frames = Mfn(frames.start)..Mfn(frames.end);
            memory.map_from(&self.file, MEMORY_AT, frames).map_err(|error| self.io(error))?;
        }
        Ok(())
    }
}

/// Reads until `buffer` is full or the file ends; how much it read.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
