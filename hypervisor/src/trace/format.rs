//! The file of a trace: what is in it, and how it is encoded.
//!
//! It begins with eight bytes of [`MAGIC`] and four of [`VERSION`] (little-endian). Frames follow: the length of the
//! payload, its CRC-32, the payload, which is one [`Frame`] as bincode encodes it (its standard configuration). The
//! first frame is the header, the last one says how much there was. A file without the last one was cut off.
//!
//! Causes are numbers that mean something to the program that wrote them only. So the header names them all, and any
//! version of the program can read the file.
//!
//! bincode is known to this module and to no other, because it is no longer maintained. What it is given to decode was
//! checked before for length and CRC, and is bounded by [`LARGEST_FRAME`] whatever lengths it claims to have.

use std::io::{self, Read, Write};

use bincode::config::{Configuration, Limit, standard};
use flate2::Crc;
use serde::{Deserialize, Serialize};

use crate::ledger::Cause;

/// How a trace begins.
pub const MAGIC: [u8; 8] = *b"PVtrace\n";
/// The version of the format. A change of any structure here is a new one.
pub const VERSION: u32 = 1;
/// No frame is larger.
pub const LARGEST_FRAME: usize = 512 << 10;
/// No trace has more vCPUs.
pub const MOST_VCPUS: u32 = 1024;

/// A payload.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Frame {
    /// What the trace is of.
    Header(Header),
    /// Exits of one vCPU.
    Exits(Exits),
    /// The end.
    End(Totals),
}

/// What a trace is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The program's version.
    pub program: String,
    /// The image.
    pub image: ImageFacts,
    /// The technique's name.
    pub technique: String,
    /// The engine's name.
    pub engine: String,
    /// How hypercalls entered the host.
    pub transport: String,
    /// When system time was 0: nanoseconds since 1970 began.
    pub began: u64,
    /// All causes, by number.
    pub causes: Vec<CauseName>,
}

/// Which image was run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// What it is called in messages.
    pub name: String,
    /// Where it was: the bytes of an absolute path; none for a guest that is built in.
    pub path: Option<Vec<u8>>,
    /// How many bytes it had.
    pub length: u64,
    /// Their CRC-32: against mistakes, not against malice.
    pub checksum: u32,
}

/// A cause by its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseName {
    /// As in the ledger.
    pub name: String,
    /// The kind of exit.
    pub group: String,
    /// The device, if it is an access to one.
    pub device: Option<String>,
}

/// Exits of one vCPU, in order.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exits {
    pub vcpu: u32,
    pub exits: Vec<Coded>,
    /// How many more there were after these that are not in the file.
    pub lost: u64,
}

/// An exit, with its time as a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Coded {
    /// Nanoseconds since the exit before it in its frame; since 0 for the first.
    pub since: u64,
    pub cause: u16,
    pub worked: u64,
    pub waited: u64,
    pub place: u64,
    pub mark: Option<u8>,
}

/// How much there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Exits in the file.
    pub exits: u64,
    /// Exits that are not in the file, because it could not be written fast enough.
    pub lost: u64,
}

impl ImageFacts {
    /// Those of this file.
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        let (length, checksum) = (bytes.len() as u64, checksum(bytes));
        Self { name: name.to_owned(), path: None, length, checksum }
    }

    /// Whether this is the file.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.length == bytes.len() as u64 && self.checksum == checksum(bytes)
    }
}

impl CauseName {
    /// Those of all causes, by number.
    pub fn all() -> Vec<Self> {
        let name = |cause: Cause| Self {
            name: cause.to_string(),
            group: cause.group().to_owned(),
            device: cause.device().map(str::to_owned),
        };
        Cause::all().map(name).collect()
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

type Bounded = Configuration<bincode::config::LittleEndian, bincode::config::Varint, Limit<LARGEST_FRAME>>;

const fn bounded() -> Bounded {
    standard().with_limit::<LARGEST_FRAME>()
}

/// Writes what the file begins with.
pub(super) fn write_start(mut to: impl Write) -> io::Result<()> {
    to.write_all(&MAGIC)?;
    to.write_all(&VERSION.to_le_bytes())
}

/// Writes a frame in one piece. `buffer` is overwritten.
pub(super) fn write_frame(mut to: impl Write, frame: &Frame, buffer: &mut Vec<u8>) -> io::Result<()> {
    const PREFIX: usize = 8;
    buffer.clear();
    buffer.extend_from_slice(&[0; PREFIX]);
    bincode::serde::encode_into_std_write(frame, buffer, standard()).map_err(io::Error::other)?;
    let (prefix, payload) = buffer.split_at_mut(PREFIX);
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let (first, second) = prefix.split_at_mut(4);
    first.copy_from_slice(&length.to_le_bytes());
    second.copy_from_slice(&checksum(payload).to_le_bytes());
    to.write_all(buffer)
}

/// A file does not begin as a trace does.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host cannot read it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not a trace; make one with: paravane run --trace FILE")]
    NotATrace,
    /// Another program wrote it.
    #[error(
        "it has version {0} of the format, and this program reads version {VERSION}; read it with the paravane that wrote it"
    )]
    Version(u32),
    /// Its first frame is damaged.
    #[error("it is damaged at its beginning ({0}), so that nothing of it can be read")]
    Damaged(Damage),
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The file ends before it says that it does.
    #[error("it ends in the middle: the run was ended hard, or the file was cut off")]
    CutOff,
    /// A length that nobody writes.
    #[error("a length makes no sense")]
    Length,
    /// Bytes were changed.
    #[error("a checksum is wrong")]
    Checksum,
    /// The checksum is right, and nobody writes such a frame.
    #[error("a frame makes no sense")]
    Nonsense,
    /// Something follows the end.
    #[error("something follows its end")]
    PastTheEnd,
    /// The host cannot read on.
    #[error("it cannot be read on: {0}")]
    Io(#[from] io::Error),
}

/// Reads what the file begins with.
pub(super) fn read_start(mut from: impl Read) -> Result<(), StartError> {
    let mut magic = [0; MAGIC.len()];
    let mut version = [0; 4];
    if fill(&mut from, &mut magic)? < magic.len() || magic != MAGIC {
        return Err(StartError::NotATrace);
    }
    if fill(&mut from, &mut version)? < version.len() {
        return Err(StartError::Damaged(Damage::CutOff));
    }
    match u32::from_le_bytes(version) {
        VERSION => Ok(()),
        other => Err(StartError::Version(other)),
    }
}

/// Reads a frame; `None` where the file ends. `buffer` is overwritten.
pub(super) fn read_frame(mut from: impl Read, buffer: &mut Vec<u8>) -> Result<Option<Frame>, Damage> {
    let (mut length, mut crc) = ([0; 4], [0; 4]);
    match fill(&mut from, &mut length)? {
        0 => return Ok(None),
        4 if fill(&mut from, &mut crc)? == 4 => {}
        _ => return Err(Damage::CutOff),
    }
    let length = u32::from_le_bytes(length);
    let length = usize::try_from(length).ok().filter(|length| (1..=LARGEST_FRAME).contains(length));
    buffer.clear();
    buffer.resize(length.ok_or(Damage::Length)?, 0);
    if fill(&mut from, buffer)? < buffer.len() {
        return Err(Damage::CutOff);
    }
    if checksum(buffer) != u32::from_le_bytes(crc) {
        return Err(Damage::Checksum);
    }
    match bincode::serde::decode_from_slice::<Frame, _>(buffer, bounded()) {
        Ok((frame, used)) if used == buffer.len() => Ok(Some(frame)),
        _ => Err(Damage::Nonsense),
    }
}

/// Reads until `buffer` is full or the file ends; how much it read.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
