//! Checks snapshots and bitmaps, which use clusters of an image but are ignored by the library.

#![forbid(unsafe_code)]

use super::fault::Fault;
use super::tables::Tables;

/// QEMU's limits: the number of snapshots and the bytes of their table; the number of bitmaps, the bytes of their
/// directory, and of the table of one bitmap.
const MOST_SNAPSHOTS: u32 = 65536;
const MOST_SNAPSHOT_BYTES: u64 = 64 << 20;
const MOST_BITMAPS: u32 = 65535;
const MOST_DIRECTORY_BYTES: u64 = 64 << 20;
const MOST_BITMAP_TABLE_BYTES: u64 = 64 << 20;

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    bytes.map_or(0, |bytes| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Enters the snapshot table and the snapshots' L1 tables.
pub(super) fn snapshots(tables: &mut Tables) -> Result<(), Fault> {
    const WHAT: &str = "the table of snapshots";
    let (offset, count) = tables.header.snapshots;
    if count > MOST_SNAPSHOTS {
        return Err(Fault::TooLarge("there are more than 65536 snapshots"));
    }
    let mut at = offset;
    for _ in 0..count {
        let mut entry = [0; 40];
        tables.reader.read(WHAT, at, &mut entry)?;
        // Extra data, identity and name follow.
        let more = number::<4>(&entry, 36) + number::<2>(&entry, 12) + number::<2>(&entry, 14);
        at = at.saturating_add(40 + more.next_multiple_of(8));
        if at - offset > MOST_SNAPSHOT_BYTES {
            return Err(Fault::TooLarge("the table of snapshots has more than 64 MiB"));
        }
        tables.l1("a snapshot's L1 table", number::<8>(&entry, 0), number::<4>(&entry, 8), false)?;
    }
    // The last entry may end with its name, without padding to a multiple of 8.
    tables.table(WHAT, offset, (at - offset).saturating_sub(if count > 0 { 7 } else { 0 }))
}

/// Enters the bitmap directory, the bitmaps' tables and their data.
pub(super) fn bitmaps(tables: &mut Tables) -> Result<(), Fault> {
    const WHAT: &str = "the directory of bitmaps";
    let Some((offset, bytes, count)) = tables.header.bitmaps else { return Ok(()) };
    if count > MOST_BITMAPS || bytes > MOST_DIRECTORY_BYTES {
        return Err(Fault::TooLarge("the directory of bitmaps has more than 64 MiB"));
    }
    tables.table(WHAT, offset, bytes)?;
    let mut at = 0;
    for _ in 0..count {
        let mut entry = [0; 24];
        if at + 24 > bytes {
            return Err(Fault::Header(format!(
                "its {count} bitmaps are more than their directory has room for"
            )));
        }
        tables.reader.read(WHAT, offset + at, &mut entry)?;
        // Extra data and the name follow.
        at += (24 + number::<4>(&entry, 20) + number::<2>(&entry, 18)).next_multiple_of(8);
        bitmap(tables, number::<8>(&entry, 0), number::<4>(&entry, 8))?;
    }
    Ok(())
}

fn bitmap(tables: &mut Tables, offset: u64, entries: u64) -> Result<(), Fault> {
    const WHAT: &str = "the table of a bitmap";
    const DATA: &str = "a part of a bitmap";
    if entries * 8 > MOST_BITMAP_TABLE_BYTES {
        return Err(Fault::TooLarge("the table of a bitmap has more than 64 MiB"));
    }
    tables.table(WHAT, offset, entries * 8)?;
    let (reader, cluster) = (tables.reader, tables.header.cluster());
    reader.entries(WHAT, offset, entries, |_, value| {
        // Bit 0 without an offset: all of this part is ones.
        let at = value & 0x00ff_ffff_ffff_fe00;
        if value & !0x00ff_ffff_ffff_fe01 != 0 {
            return Err(Fault::Reserved { table: WHAT, value });
        }
        if at == 0 { Ok(()) } else { tables.table(DATA, at, cluster) }
    })
}
