//! The file of a snapshot: what is in it, and how it is encoded.
//!
//! ```text
//! page 0                 the header
//! page 1 ...             the frames of machine memory, in order; holes for those that hold zeroes
//! after the last frame   which frames are not zero, and the state: serde's types as bincode encodes them
//! after that             the kernel's ELF file, for messages
//! ```
//!
//! A frame lies at a page boundary of the file, so that it can be mapped. The header is written last. Each part has a
//! CRC-32: memory one for each [`CHUNK_FRAMES`] frames, over those that are not zero.
//!
//! serde and bincode are known to this module and to no other of the room. What bincode is given to decode was checked
//! before for length and CRC, and is no longer than [`LARGEST_STATE`] whatever lengths it claims to have. Decoded it
//! may be larger: a list of what each frame may have (chunks, pins) takes up to sixteen times its bytes, with the room
//! that it grows into. Other lists are bounded by who declares them (`pv::state::at_most`).

use bincode::config::{Configuration, Limit, standard};
use flate2::Crc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::machine::memory::PAGE_SIZE;

/// How a snapshot begins.
pub const MAGIC: [u8; 8] = *b"PVsnap\r\n";
/// The version of the format. A change of any structure in the file is a new one, those of the state included.
pub const VERSION: u32 = 1;
/// Where the first frame lies.
pub const MEMORY_AT: u64 = PAGE_SIZE;
/// Frames that have a checksum together: 1 MiB.
pub const CHUNK_FRAMES: u64 = 256;
/// Bytes of such frames.
pub const CHUNK_BYTES: usize = CHUNK_FRAMES as usize * PAGE_SIZE as usize;
/// No state is larger.
pub const LARGEST_STATE: usize = 64 << 20;
/// No kernel's file is larger.
pub const LARGEST_IMAGE: u64 = 1 << 30;
/// No snapshot has more frames: 4 TiB. For each of them this program has some bytes of its own.
pub const MOST_FRAMES: u64 = 1 << 30;

/// The words of a chunk's map.
pub(super) const WORDS: usize = (CHUNK_FRAMES / 64) as usize;

/// What is wrong with a file that begins as a snapshot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file ends before it says that it does.
    #[error("it ends in the middle: it was cut off")]
    CutOff,
    /// The header's bytes were changed.
    #[error("its header's checksum is wrong")]
    Header,
    /// The header's checksum is right, and nobody writes such a header.
    #[error("its header makes no sense")]
    Layout,
    /// The state's bytes were changed.
    #[error("the checksum of the saved state is wrong")]
    StateChecksum,
    /// The state's checksum is right, and nobody writes such a state.
    #[error("the saved state makes no sense")]
    State,
    /// The memory's bytes were changed.
    #[error("the checksum of the guest's memory is wrong in the MiB at {at:#x}")]
    Memory {
        /// Machine address.
        at: u64,
    },
    /// The bytes of the kernel's file were changed.
    #[error("the checksum of the kernel's file in it is wrong")]
    Image,
}

/// The first page of the file; the rest of the page is zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub version: U32,
    /// Of what follows.
    pub checksum: U32,
    pub body: Body,
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Body {
    /// Frames of machine memory.
    pub frames: U64,
    pub state_len: U64,
    pub image_len: U64,
    pub state_checksum: U32,
    pub image_checksum: U32,
}

impl Header {
    pub fn new(body: Body) -> Self {
        Self { magic: MAGIC, version: VERSION.into(), checksum: checksum(body.as_bytes()).into(), body }
    }
}

impl Body {
    /// What it says, if anybody writes that.
    pub fn checked(self) -> Option<Self> {
        let fits = self.frames.get() <= MOST_FRAMES
            && self.state_len.get() <= LARGEST_STATE as u64
            && self.image_len.get() <= LARGEST_IMAGE;
        fits.then_some(self)
    }
    /// Where the state begins. This and what follows cannot overflow once the body was checked.
    pub fn state_at(&self) -> u64 {
        MEMORY_AT + self.frames.get() * PAGE_SIZE
    }
    pub fn image_at(&self) -> u64 {
        self.state_at() + self.state_len.get()
    }
    pub fn end(&self) -> u64 {
        self.image_at() + self.image_len.get()
    }
}

/// Where a frame lies in the file.
pub(super) const fn frame_at(mfn: u64) -> u64 {
    MEMORY_AT + mfn * PAGE_SIZE
}

/// Frames of one MiB that are not all zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chunk {
    /// Which MiB.
    pub index: u64,
    /// A bit for each frame that is in the file.
    pub map: [u64; WORDS],
    /// Of those frames, in order.
    pub checksum: u32,
}

impl Chunk {
    /// Whether the frame, counted from the chunk's first, is in the file.
    pub fn has(&self, frame: u64) -> bool {
        let word = usize::try_from(frame / 64).ok().and_then(|n| self.map.get(n));
        word.is_some_and(|word| word >> (frame % 64) & 1 != 0)
    }
    pub fn set(&mut self, frame: u64) {
        if let Some(word) = usize::try_from(frame / 64).ok().and_then(|n| self.map.get_mut(n)) {
            *word |= 1 << (frame % 64);
        }
    }
    /// The runs of frames that are in the file: first and count, from the chunk's first.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..CHUNK_FRAMES).find(|frame| self.has(*frame))?;
            let end = (first..CHUNK_FRAMES).find(|frame| !self.has(*frame)).unwrap_or(CHUNK_FRAMES);
            next = end;
            Some((first, end - first))
        })
    }
}

/// What is encoded after memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tail<S> {
    /// In order.
    pub chunks: Vec<Chunk>,
    pub state: S,
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

type Bounded = Configuration<bincode::config::LittleEndian, bincode::config::Varint, Limit<LARGEST_STATE>>;

const fn bounded() -> Bounded {
    standard().with_limit::<LARGEST_STATE>()
}

/// The bytes of the tail. `None` if there are more than a reader would take.
pub(super) fn encode<S: Serialize>(tail: &Tail<S>) -> Option<Vec<u8>> {
    let bytes = bincode::serde::encode_to_vec(tail, standard()).ok()?;
    (bytes.len() <= LARGEST_STATE).then_some(bytes)
}

pub(super) fn decode<S: DeserializeOwned>(bytes: &[u8]) -> Result<Tail<S>, Damage> {
    match bincode::serde::decode_from_slice(bytes, bounded()) {
        Ok((tail, used)) if used == bytes.len() => Ok(tail),
        _ => Err(Damage::State),
    }
}
