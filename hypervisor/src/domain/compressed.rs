//! Compressed images: a kernel as distributions ship it becomes the ELF file inside.
//!
//! A Linux bzImage is a small loader with the compressed kernel as its payload (Linux boot protocol, fields
//! `setup_sects`, `payload_offset` and `payload_length`); other kernels are ELF files compressed as a whole.
//! Nothing is executed of a bzImage's own code. The result is a stranger's bytes still.

use std::borrow::Cow;
use std::io::Read;

/// No kernel is larger than this unpacked; something that claims to be is an attack or an accident.
const LARGEST: usize = 1 << 30;
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
    #[error("its {format} data unpacks to more than {} MiB, which no kernel does", LARGEST >> 20)]
    TooLarge {
        /// How it is compressed.
        format: &'static str,
    },
    /// A format that is not understood.
    #[error("it is compressed with {format}, which is not understood here; unpack it first")]
    Unsupported {
        /// How it is compressed.
        format: &'static str,
    },
    /// The bzImage's header makes no sense.
    #[error("it is a Linux bzImage without a usable payload ({0}); use one of Linux 2.6.26 or later")]
    BzImage(&'static str),
}

/// The ELF file inside `file`, or `file` itself when it is not compressed.
pub fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    let payload = if is_bzimage(file) { bzimage_payload(file)? } else { file };
    let Some(format) = Format::of(payload) else { return Ok(Cow::Borrowed(payload)) };
    format.unpack(payload).map(Cow::Owned)
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
    Other(&'static str),
}

impl Format {
    fn of(data: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 7] = [
            (&[0x1f, 0x8b], Format::Gzip),
            (b"\xfd7zXZ\0", Format::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4),
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
            Self::Lz4 => "lz4",
            Self::Other(name) => name,
        }
    }

    /// Unpacks one stream; what follows it (Linux appends the unpacked size) is ignored.
    fn unpack(self, data: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let unpacked = match self {
            Self::Gzip => read_all(flate2::read::GzDecoder::new(data)),
            Self::Xz => unxz(data),
            Self::Zstd => unzstd(data),
            Self::Lz4 => unlz4(data),
            Self::Other(format) => return Err(UnpackError::Unsupported { format }),
        };
        let format = self.name();
        match unpacked {
            Err(reason) => Err(UnpackError::Damaged { format, reason }),
            Ok(data) if data.len() > LARGEST => Err(UnpackError::TooLarge { format }),
            Ok(data) => Ok(data),
        }
    }
}

/// Everything that a decoder has to give, up to one byte more than is allowed.
fn read_all(decoder: impl Read) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    decoder.take(LARGEST as u64 + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

fn unzstd(data: &[u8]) -> Result<Vec<u8>, String> {
    use ruzstd::decoding::StreamingDecoder;
    let decoder = StreamingDecoder::new_with_max_window_size(data, LARGEST_WINDOW as u64);
    read_all(decoder.map_err(|e| e.to_string())?)
}

fn unxz(mut data: &[u8]) -> Result<Vec<u8>, String> {
    const CHUNK: usize = 1 << 20;
    const FIRST_WINDOW: usize = 8 << 20;
    let mut decoder = xz4rust::XzDecoder::in_heap_with_alloc_dict_size(FIRST_WINDOW, LARGEST_WINDOW);
    let (mut out, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let step = decoder.decode(data, &mut chunk).map_err(|e| e.to_string())?;
        data = data.get(step.input_consumed()..).unwrap_or_default();
        out.extend_from_slice(chunk.get(..step.output_produced()).unwrap_or_default());
        if step.is_end_of_stream() || out.len() > LARGEST {
            return Ok(out);
        }
        if !step.made_progress() {
            return Err("unexpected end of file".into());
        }
    }
}

/// The legacy LZ4 frame: a magic number, then blocks with their sizes before them.
fn unlz4(data: &[u8]) -> Result<Vec<u8>, String> {
    /// What a block of the legacy frame unpacks to at most.
    const BLOCK: usize = 8 << 20;
    let mut rest = data.get(4..).unwrap_or_default();
    // Made once: a file of a million blocks of one byte must not cost a million times what a block may hold.
    let (mut out, mut space) = (Vec::new(), vec![0; BLOCK]);
    // Four bytes left are no block but the unpacked size that Linux appends.
    while rest.len() > 4 && out.len() <= LARGEST {
        let (size, blocks) = rest.split_first_chunk::<4>().ok_or("unexpected end of file")?;
        let (block, next) =
            blocks.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or("unexpected end of file")?;
        let len = lz4_flex::block::decompress_into(block, &mut space).map_err(|e| e.to_string())?;
        out.extend_from_slice(space.get(..len).unwrap_or_default());
        rest = next;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::domain::image::Image;
    use crate::domain::image_error::ImageError;
    use crate::domain::test_elf::Elf;

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
        assert_eq!(unpack(b"BZh91AY"), Err(UnpackError::Unsupported { format: "bzip2" }));
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
                proptest::prop_assert!(data.len() <= LARGEST);
            }
        }
    }
}
