//! The header of a qcow2 image (QEMU's docs/interop/qcow2.txt, "Header" and "Header extensions").

#![forbid(unsafe_code)]

use super::fault::Fault;
use super::reader::Reader;
use crate::backend::disk::image::SECTOR;

/// The first four bytes of every image.
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2, and the least of one of version 3.
const LENGTHS: [u64; 2] = [72, 104];
/// Entries of an L1 table and bytes of a refcount table at most: the limits of QEMU and of the library.
const MOST_L1_ENTRIES: u64 = 4 << 20;
const MOST_REFTABLE_BYTES: u64 = 8 << 20;
/// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;
/// The autoclear feature: bitmaps are up to date.
const BITMAPS: u64 = 1;

/// A header. Its fields are checked as far as that is possible without the tables.
#[derive(Debug)]
pub(super) struct Header {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// 0 to 6.
    pub refcount_order: u32,
    /// Offset of the L1 table, and its number of entries.
    pub l1: (u64, u64),
    /// Offset of the refcount table, and its bytes.
    pub reftable: (u64, u64),
    /// Offset of the snapshot table, and the number of snapshots.
    pub snapshots: (u64, u32),
    /// Offset of the bitmap directory, its bytes, and the number of bitmaps.
    pub bitmaps: Option<(u64, u64, u32)>,
    /// Guest data is in a separate file.
    pub data_file: bool,
}

pub(super) fn be32(bytes: &[u8], at: u64) -> u32 {
    field(bytes, at).map_or(0, u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: u64) -> u64 {
    field(bytes, at).map_or(0, u64::from_be_bytes)
}

/// A field; `None` past the end.
fn field<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    bytes.get(usize::try_from(at).ok()?..)?.first_chunk().copied()
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Header(what.into()))
}

impl Header {
    /// Reads an image's header.
    pub(super) fn read(reader: &Reader) -> Result<Self, Fault> {
        let base = reader.beginning(112)?;
        reader.inside("the header", 0, LENGTHS[0])?;
        if be32(&base, 0) != MAGIC {
            return wrong("it does not begin with QFI\\xfb");
        }
        let version = be32(&base, 4);
        let length = match version {
            2 => LENGTHS[0],
            3 => u64::from(be32(&base, 100)),
            _ => return Err(Fault::Unsupported(format!("version {version} of the format"))),
        };
        if version == 3 {
            reader.inside("the header", 0, LENGTHS[1])?;
        }
        let cluster_bits = be32(&base, 20);
        if !(9..=21).contains(&cluster_bits) {
            return wrong(format!("clusters have 512 bytes to 2 MiB, and not 2^{cluster_bits}"));
        }
        if be32(&base, 32) != 0 {
            return Err(Fault::Encrypted);
        }
        let cluster = 1u64 << cluster_bits;
        if version == 3 && (length < LENGTHS[1] || !length.is_multiple_of(8) || length > cluster) {
            return wrong(format!("it cannot be {length} bytes long"));
        }
        let first = reader.beginning(cluster)?;
        let incompatible = if version == 3 { be64(&base, 72) } else { 0 };
        let extensions =
            if version == 3 { Extensions::read(&first, cluster, length)? } else { Extensions::default() };
        extensions
            .can_be_used(incompatible, length > 104 && first.get(104).is_some_and(|kind| *kind != 0))?;
        let bitmaps = extensions.bitmaps.filter(|_| version == 3 && be64(&base, 88) & BITMAPS != 0);
        let header = Self {
            version,
            cluster_bits,
            refcount_order: if version == 3 { be32(&base, 96) } else { 4 },
            l1: (be64(&base, 40), be32(&base, 36).into()),
            reftable: (be64(&base, 48), u64::from(be32(&base, 56)) << cluster_bits),
            snapshots: (be64(&base, 64), be32(&base, 60)),
            bitmaps,
            data_file: incompatible & DATA_FILE != 0,
        };
        backing_name(&first, cluster)?;
        header.sizes(be64(&base, 24))?;
        if header.data_file && (!extensions.names_data_file || header.snapshots.1 > 0) {
            return wrong("with a file for its data, an image has that file's name and no snapshots");
        }
        Ok(header)
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether `offset` is a cluster boundary. Called for every entry, so it does not divide.
    pub fn is_aligned(&self, offset: u64) -> bool {
        offset & (self.cluster() - 1) == 0
    }

    /// Checks the sizes of the tables, and that `size`, the disk's, fits them.
    fn sizes(&self, size: u64) -> Result<(), Fault> {
        if self.refcount_order > 6 {
            return wrong(format!("refcounts have 1 to 64 bits, and not 2^{}", self.refcount_order));
        }
        if self.l1.1 > MOST_L1_ENTRIES || self.reftable.1 > MOST_REFTABLE_BYTES {
            return wrong("an L1 table has 32 MiB at most, and a refcount table 8 MiB");
        }
        if !size.is_multiple_of(SECTOR) {
            return wrong(format!("the disk's size, {size} bytes, is not a multiple of {SECTOR}"));
        }
        // An entry of the L1 table is for as many clusters as an L2 table has entries.
        let needed = size.div_ceil(1 << (2 * self.cluster_bits - 3));
        if needed > self.l1.1 {
            return wrong(format!("its L1 table, of {} entries, is too small for {size} bytes", self.l1.1));
        }
        Ok(())
    }
}

/// Whether the name of the backing file is in the first cluster, and is text.
fn backing_name(first: &[u8], cluster: u64) -> Result<(), Fault> {
    let (offset, len) = (be64(first, 8), u64::from(be32(first, 16)));
    if offset == 0 {
        return Ok(());
    }
    let end = offset.checked_add(len).filter(|end| *end < cluster && len <= 1023);
    let range = |end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?);
    let name = end.and_then(range).map(|range| first.get(range).unwrap_or_default());
    match name.map(std::str::from_utf8) {
        Some(Ok(_)) => Ok(()),
        _ => wrong("the name of the backing file is not text of 1023 bytes at most in the first cluster"),
    }
}

/// What is of interest of a header's extensions.
#[derive(Default)]
struct Extensions<'a> {
    bitmaps: Option<(u64, u64, u32)>,
    names_data_file: bool,
    backing_format: Option<&'a [u8]>,
    /// Names of features: 48 bytes each, kind, bit and text.
    names: &'a [u8],
}

impl<'a> Extensions<'a> {
    fn read(first: &'a [u8], cluster: u64, mut at: u64) -> Result<Self, Fault> {
        let mut found = Self::default();
        while at + 8 <= cluster {
            let (kind, len) = (be32(first, at), u64::from(be32(first, at + 4)));
            if at + 8 + len > cluster {
                break;
            }
            let range =
                usize::try_from(at + 8).unwrap_or(usize::MAX)..usize::try_from(at + 8 + len).unwrap_or(0);
            let data = first.get(range).unwrap_or_default();
            match kind {
                0 => return Ok(found),
                0x2385_2875 => found.bitmaps = Some((be64(data, 16), be64(data, 8), be32(data, 0))),
                0x4441_5441 => found.names_data_file = std::str::from_utf8(data).is_ok(),
                0xe279_2aca => found.backing_format = Some(data),
                0x6803_f857 => found.names = data,
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        wrong("its extensions do not end in the first cluster")
    }

    /// Whether the image has no feature that is not supported; `compressed`: its kind of compression has a number that
    /// is not 0.
    fn can_be_used(&self, incompatible: u64, compressed: bool) -> Result<(), Fault> {
        let unsupported = |what: &str| Err(Fault::Unsupported(what.to_owned()));
        if incompatible & CORRUPT != 0 {
            return Err(Fault::Corrupt);
        }
        if incompatible & DIRTY != 0 {
            return Err(Fault::Dirty);
        }
        if compressed || incompatible & COMPRESSION != 0 {
            return unsupported("a compression other than zlib");
        }
        if incompatible & EXTENDED_L2 != 0 {
            return unsupported("extended L2 entries (subclusters)");
        }
        let unknown = incompatible & !DATA_FILE;
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            return unsupported(&format!("the feature {bit}{}", self.name(bit)));
        }
        match self.backing_format {
            None | Some(b"raw" | b"file" | b"qcow2") => Ok(()),
            Some(other) => {
                let text = String::from_utf8_lossy(other);
                unsupported(&format!("a backing file of the format \"{}\"", text.escape_debug()))
            }
        }
    }

    /// What the image calls an incompatible feature.
    fn name(&self, bit: u32) -> String {
        let mut names = self.names.as_chunks::<48>().0.iter();
        let found = names.find_map(|name| match name {
            [0, number, text @ ..] if u32::from(*number) == bit => Some(text),
            _ => None,
        });
        let text = found.map(|text| String::from_utf8_lossy(text)).unwrap_or_default();
        let text = text.trim_end_matches('\0').escape_debug().to_string();
        if text.is_empty() { text } else { format!(" ({text})") }
    }
}
