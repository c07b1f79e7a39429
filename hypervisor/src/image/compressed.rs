//! Compressed images: a kernel as distributions ship it becomes the ELF file inside.
//!
//! A Linux bzImage is a small loader with the compressed kernel as its payload (Linux boot protocol, fields
//! `setup_sects`, `payload_offset` and `payload_length`); other kernels are ELF files compressed as a whole.
//! Nothing is executed of a bzImage's own code. The result is a stranger's bytes still.

mod lz4;

use std::borrow::Cow;
use std::io::Read;

/// No kernel is larger than this unpacked; something that claims to be is an attack or an accident.
const LARGEST: u64 = 1 << 30;
/// The largest window or dictionary that a stream may ask for: what the strongest settings in use need.
const LARGEST_WINDOW: usize = 128 << 20;

/// A compressed image that cannot be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The stream is damaged, or cut off.
    #[error("its {format} data is damaged ({reason}); copy it again")]
    Damaged {
        /// How it is compressed.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// It grows beyond all reason.
    #[error(
        "its {format} data unpacks to more than {}, for which there is no room; raise --mem, or unpack it first",
        crate::text::units::bytes(*room)
    )]
    TooLarge {
        /// How it is compressed.
        format: &'static str,
        /// The most bytes of output.
        room: u64,
    },
    /// A format that is not understood.
    #[error("it is compressed with {format}, which is not understood here; unpack it first")]
    Unsupported {
        /// How it is compressed.
        format: Cow<'static, str>,
    },
    /// The bzImage's header makes no sense.
    #[error("it is a Linux bzImage without a usable payload ({0}); use one of Linux 2.6.26 or later")]
    BzImage(&'static str),
}

/// The ELF file inside `file`, or `file` itself when it is not compressed.
pub fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    unpack_within(file, LARGEST)
}

/// The same, with room for `room` bytes.
pub fn unpack_within(file: &[u8], room: u64) -> Result<Cow<'_, [u8]>, UnpackError> {
    let payload = without_skippable(if is_bzimage(file) { bzimage_payload(file)? } else { file });
    let Some(format) = Format::of(payload) else { return Ok(Cow::Borrowed(payload)) };
    format.unpack(payload, room.min(LARGEST)).map(Cow::Owned)
}

/// Whether a file that begins like this is compressed in a way that is known here.
pub fn may_begin_with(first: &[u8]) -> bool {
    is_bzimage(first) || is_skippable(first) || Format::of(first).is_some()
}

/// A frame of a user's own, which decoders pass over: of Zstandard (RFC 8878, 3.1.2) and LZ4 alike.
fn is_skippable(data: &[u8]) -> bool {
    matches!(data, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// What comes after skippable frames.
fn without_skippable(mut data: &[u8]) -> &[u8] {
    while is_skippable(data)
        && let Some(size) = data.get(4..8).and_then(|size| <[u8; 4]>::try_from(size).ok())
        && let Some(rest) = data.get(8..).and_then(|rest| rest.get(u32::from_le_bytes(size) as usize..))
    {
        data = rest;
    }
    data
}

fn is_bzimage(file: &[u8]) -> bool {
    file.get(0x202..0x206) == Some(b"HdrS") && file.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

/// The payload of a bzImage: boot protocol 2.08 and later say where it is.
fn bzimage_payload(file: &[u8]) -> Result<&[u8], UnpackError> {
    let bytes =
        |at: usize| file.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).unwrap_or_default();
    let [low, high, ..] = bytes(0x206);
    if u16::from_le_bytes([low, high]) < 0x208 {
        return Err(UnpackError::BzImage("its boot protocol is older than 2.08"));
    }
    let [setup_sects, ..] = bytes(0x1f1);
    // The kernel's own convention: 0 stands for 4.
    let setup_sects = if setup_sects == 0 { 4 } else { usize::from(setup_sects) };
    let [offset, length] = [0x248, 0x24c].map(|at| u32::from_le_bytes(bytes(at)) as usize);
    let start = (setup_sects + 1) * 512 + offset;
    file.get(start..start + length).ok_or(UnpackError::BzImage("the file ends before its payload does"))
}

/// Compression formats, by their magic numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Xz,
    Zstd,
    /// The "legacy" frame, the only one that Linux's build uses.
    Lz4,
    /// The frame that the `lz4` program makes unless told otherwise.
    Lz4Frame,
    Other(&'static str),
}

impl Format {
    fn of(data: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 8] = [
            (&[0x1f, 0x8b], Format::Gzip),
            (b"\xfd7zXZ\0", Format::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4),
            (&[0x04, 0x22, 0x4d, 0x18], Format::Lz4Frame),
            (b"BZh", Format::Other("bzip2")),
            (&[0x5d, 0, 0], Format::Other("lzma")),
            (&[0x89, b'L', b'Z', b'O'], Format::Other("lzo")),
        ];
        MAGICS.iter().find(|(magic, _)| data.starts_with(magic)).map(|(_, format)| *format)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 | Self::Lz4Frame => "lz4",
            Self::Other(name) => name,
        }
    }

    /// Unpacks one stream; what follows it (Linux appends the unpacked size) is ignored.
    fn unpack(self, data: &[u8], room: u64) -> Result<Vec<u8>, UnpackError> {
        let format = self.name();
        let out = Output::new(room);
        let unpacked = match self {
            Self::Gzip => out.read_all(flate2::read::GzDecoder::new(data)),
            Self::Xz => unxz(data, out),
            Self::Zstd => unzstd(data, out),
            Self::Lz4 => lz4::legacy(data, out),
            Self::Lz4Frame => lz4::frame(data, out),
            Self::Other(format) => Err(Failure::Unsupported(format.into())),
        };
        unpacked.map_err(|failure| match failure {
            Failure::Full => UnpackError::TooLarge { format, room },
            Failure::Damaged(reason) => UnpackError::Damaged { format, reason },
            Failure::Unsupported(format) => UnpackError::Unsupported { format },
        })
    }
}

/// Why a decoder stopped.
#[derive(Debug)]
enum Failure {
    Full,
    Damaged(String),
    Unsupported(Cow<'static, str>),
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::Damaged(reason.into())
    }
}

const CUT_OFF: &str = "unexpected end of file";

/// What was unpacked so far; never more than there is room for, and refused where the host has no memory for it.
#[derive(Debug)]
struct Output {
    bytes: Vec<u8>,
    room: usize,
}

impl Output {
    fn new(room: u64) -> Self {
        Self { bytes: Vec::new(), room: usize::try_from(room).unwrap_or(usize::MAX) }
    }
    fn push(&mut self, more: &[u8]) -> Result<(), Failure> {
        if more.len() > self.room - self.bytes.len() || self.bytes.try_reserve(more.len()).is_err() {
            return Err(Failure::Full);
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }
    /// Everything that a decoder has to give.
    fn read_all(mut self, decoder: impl Read) -> Result<Vec<u8>, Failure> {
        let limit = (self.room as u64).saturating_add(1);
        decoder.take(limit).read_to_end(&mut self.bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::OutOfMemory => Failure::Full,
            _ => Failure::Damaged(e.to_string()),
        })?;
        if self.bytes.len() > self.room { Err(Failure::Full) } else { Ok(self.bytes) }
    }
}

fn unzstd(data: &[u8], out: Output) -> Result<Vec<u8>, Failure> {
    use ruzstd::decoding::StreamingDecoder;
    let decoder = StreamingDecoder::new_with_max_window_size(data, LARGEST_WINDOW as u64);
    out.read_all(decoder.map_err(|e| Failure::Damaged(e.to_string()))?)
}

fn unxz(mut data: &[u8], mut out: Output) -> Result<Vec<u8>, Failure> {
    use xz4rust::XzError;
    const CHUNK: usize = 1 << 20;
    const FIRST_WINDOW: usize = 8 << 20;
    let mut decoder = xz4rust::XzDecoder::in_heap_with_alloc_dict_size(FIRST_WINDOW, LARGEST_WINDOW);
    let mut chunk = vec![0; CHUNK];
    loop {
        let step = decoder.decode(data, &mut chunk).map_err(|e| match e {
            XzError::Sha256NotSupported => Failure::Unsupported("xz with the check SHA-256".into()),
            XzError::UnsupportedCheckType(check) => {
                Failure::Unsupported(format!("xz with check {check}").into())
            }
            XzError::DictionaryTooLarge(bytes) => {
                let bytes = crate::text::units::bytes(bytes);
                Failure::Unsupported(format!("xz with a dictionary of {bytes}").into())
            }
            other => Failure::Damaged(other.to_string()),
        })?;
        data = data.get(step.input_consumed()..).unwrap_or_default();
        out.push(chunk.get(..step.output_produced()).unwrap_or_default())?;
        if step.is_end_of_stream() {
            return Ok(out.bytes);
        }
        if !step.made_progress() {
            return Err(CUT_OFF.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::image::Image;
    use crate::image::compressed::*;
    use crate::image::error::ImageError;
    use crate::testing::elf::Elf;

    /// `xz --check=crc32 --x86 --lzma2=dict=4KiB`, of a few words.
    const XZ: [u8; 80] = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01, 0x04, 0x00, 0x21,
        0x01, 0x00, 0x00, 0xda, 0x33, 0xad, 0x03, 0x01, 0x00, 0x19, 0x7f, 0x45, 0x4c, 0x46, 0x2c, 0x20, 0x62,
        0x75, 0x74, 0x20, 0x6f, 0x6e, 0x6c, 0x79, 0x20, 0x62, 0x79, 0x20, 0x69, 0x74, 0x73, 0x20, 0x6e, 0x61,
        0x6d, 0x65, 0x00, 0x00, 0x00, 0x88, 0x76, 0xd7, 0x19, 0x00, 0x01, 0x2e, 0x1a, 0x7d, 0x45, 0xe3, 0xd6,
        0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    fn elf() -> Vec<u8> {
        Elf::pv(0x4000_0000, 0, 0x10_0000, &[]).bytes()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for part in data.chunks(8 << 20) {
            let block = lz4_flex::block::compress(part);
            out.extend((block.len() as u32).to_le_bytes());
            out.extend(block);
        }
        out
    }

    /// A bzImage around a payload, with the unpacked size behind it as Linux's build leaves it.
    fn bzimage(payload: &[u8], unpacked: usize) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[0x1f1] = 1;
        file[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        file[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        file[0x248..0x24c].copy_from_slice(&7u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        file.extend([0xcc; 7]);
        file.extend(payload);
        file.extend((unpacked as u32).to_le_bytes());
        file.extend(b"the rest of the file");
        file
    }

    #[test]
    fn every_format_comes_out_as_it_went_in() {
        let elf = elf();
        for packed in [gzip(&elf), zstd(&elf), lz4(&elf)] {
            assert_eq!(unpack(&packed).as_deref(), Ok(&elf[..]));
            assert_eq!(unpack(&bzimage(&packed, elf.len())).as_deref(), Ok(&elf[..]));
            assert_eq!(Image::parse(&packed).unwrap().elf(), elf);
        }
        assert_eq!(unpack(&bzimage(&elf, elf.len())).unwrap()[..elf.len()], elf, "not compressed");
    }

    #[test]
    fn xz_with_the_filter_that_linux_uses() {
        assert_eq!(unpack(&XZ).as_deref(), Ok(&b"\x7fELF, but only by its name"[..]));
        assert!(matches!(unpack(&XZ[..60]), Err(UnpackError::Damaged { format: "xz", .. })));
    }

    /// 1 MB became 1 GiB, for a guest of 64 MiB.
    #[test]
    fn no_more_is_unpacked_than_there_is_room_for() {
        let zeroes = vec![0; 3 << 20];
        for (packed, format) in [
            (gzip(&zeroes), "gzip"),
            (zstd(&zeroes), "zstd"),
            (lz4(&zeroes), "lz4"),
            (frame(&zeroes, 0x60), "lz4"),
        ] {
            assert_eq!(unpack_within(&packed, 1 << 20), Err(UnpackError::TooLarge { format, room: 1 << 20 }));
            assert_eq!(unpack_within(&packed, 3 << 20).as_deref(), Ok(&zeroes[..]));
        }
        assert!(matches!(unpack_within(&XZ, 8), Err(UnpackError::TooLarge { format: "xz", room: 8 })));
    }

    /// An LZ4 frame (LZ4 Frame Format 1.6.4) of blocks that are packed, one that is not, and these flags.
    fn frame(data: &[u8], flags: u8) -> Vec<u8> {
        let mut out = vec![0x04, 0x22, 0x4d, 0x18, flags, 0x70];
        if flags & 8 != 0 {
            out.extend((data.len() as u64).to_le_bytes());
        }
        out.push(0);
        for (n, part) in data.chunks(1 << 20).enumerate() {
            let packed = lz4_flex::block::compress(part);
            let (size, block) =
                if n == 1 { (part.len() as u32 | 1 << 31, part) } else { (packed.len() as u32, &*packed) };
            out.extend(size.to_le_bytes());
            out.extend(block);
            out.extend(if flags & 0x10 != 0 { &[9; 4][..] } else { &[] });
        }
        out.extend([0; 4]);
        out
    }

    #[test]
    fn lz4_in_the_frame_that_the_program_makes() {
        let data = [elf(), (0..3 << 20).map(|i: u32| (i ^ i >> 7) as u8).collect()].concat();
        for flags in [0x60, 0x68, 0x78, 0x40, 0x64] {
            assert_eq!(unpack(&frame(&data, flags)).as_deref(), Ok(&data[..]), "{flags:#x}");
        }
        let whole = frame(&data, 0x60);
        assert!(matches!(unpack(&whole[..whole.len() / 2]), Err(UnpackError::Damaged { format: "lz4", .. })));
        assert!(matches!(unpack(&frame(&data, 0x20)), Err(UnpackError::Damaged { .. })), "version 0");
        // `lz4 -BD` links its blocks: the second one here refers to the first.
        let linked = [
            &[0x04, 0x22, 0x4d, 0x18, 0x40, 0x40, 0xc0][..],
            &[9, 0, 0, 0, 0x80, b'a', b'b', b'c', b'd', b'e', b'f', b'g', b'h'],
            &[10, 0, 0, 0, 0x00, 8, 0, 0x60, b'u', b'v', b'w', b'x', b'y', b'z'],
            &[0; 4],
        ];
        assert_eq!(unpack(&linked.concat()).as_deref(), Ok(&b"abcdefghabcduvwxyz"[..]));
    }

    #[test]
    fn frames_of_a_user_s_own_are_passed_over() {
        let elf = elf();
        for packed in [zstd(&elf), frame(&elf, 0x60)] {
            for number in [0x50, 0x5f] {
                let skippable = [&[number, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"12345"].concat();
                let twice = [&skippable[..], &skippable, &packed].concat();
                assert!(may_begin_with(&twice[..64]));
                assert_eq!(unpack(&twice).as_deref(), Ok(&elf[..]));
                assert!(matches!(Image::parse(&skippable[..10]), Err(ImageError::NotElf { .. })));
            }
        }
    }

    /// A format that cannot be unpacked is named, not reported as damaged.
    #[test]
    fn xz_s_other_checks_and_dictionaries_are_named() {
        let mut sha256 = XZ;
        // Stream flags: the check's number, and their CRC32 (xz file format, 2.1.1.2).
        sha256[7..12].copy_from_slice(&[0x0a, 0xe1, 0xfb, 0x0c, 0xa1]);
        let why = unpack(&sha256).unwrap_err();
        assert_eq!(why, UnpackError::Unsupported { format: "xz with the check SHA-256".into() });
    }

    /// Each of its blocks once cost as much as the largest that there can be.
    #[test]
    fn a_file_of_tiny_blocks() {
        const BLOCKS: usize = 100_000;
        let block = lz4_flex::block::compress(b"x");
        let mut file = vec![0x02, 0x21, 0x4c, 0x18];
        for _ in 0..BLOCKS {
            file.extend((block.len() as u32).to_le_bytes());
            file.extend(&block);
        }
        assert_eq!(unpack(&file).unwrap().len(), BLOCKS);
    }

    #[test]
    fn damage_is_told() {
        let elf = elf();
        for (packed, format) in [(gzip(&elf), "gzip"), (zstd(&elf), "zstd"), (lz4(&elf), "lz4")] {
            let cut = &packed[..packed.len() / 2];
            assert!(matches!(unpack(cut), Err(UnpackError::Damaged { format: f, .. }) if f == format));
        }
        assert_eq!(unpack(b"BZh91AY"), Err(UnpackError::Unsupported { format: "bzip2".into() }));
        let mut old = bzimage(&elf, 0);
        old[0x206] = 7;
        assert!(matches!(unpack(&old), Err(UnpackError::BzImage(_))));
        let mut short = bzimage(&elf, 0);
        short[0x24f] = 0xff;
        assert!(matches!(Image::parse(&short), Err(ImageError::Unpack(UnpackError::BzImage(_)))));
    }

    #[test]
    fn what_is_inside_must_be_an_image_too() {
        assert!(matches!(Image::parse(&gzip(b"#!/bin/sh")), Err(ImageError::NotElf { .. })));
        assert_eq!(Image::parse(&gzip(b"")).unwrap_err(), ImageError::Empty);
        assert!(matches!(Image::parse(&gzip(&gzip(b"x"))), Err(ImageError::NotElf { .. })), "once only");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn mutated_streams_never_panic(
            which in 0usize..5,
            changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0u8..=255), 1..8),
        ) {
            let data = [&elf()[..400], &[7; 700]].concat();
            let mut packed = [gzip(&data), zstd(&data), lz4(&data), bzimage(&lz4(&data), 1100), XZ.to_vec()][which].clone();
            for (at, byte) in changes {
                let at = at.index(packed.len());
                packed[at] = byte;
            }
            if let Ok(data) = unpack(&packed) {
                proptest::prop_assert!(data.len() as u64 <= LARGEST);
            }
        }
    }
}
