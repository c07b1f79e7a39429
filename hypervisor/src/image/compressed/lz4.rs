//! LZ4, in its two frame formats: the "legacy" one of Linux's build, and the one of the `lz4` program.
//!
//! Checksums are not looked at: what is inside is checked as an image, and a guest may say anything anyhow.

use super::{CUT_OFF, Failure, Output};

/// What a block of the legacy frame unpacks to at most.
const LEGACY_BLOCK: usize = 8 << 20;
/// How far back a linked block refers.
const HISTORY: usize = 64 << 10;

/// Takes `N` bytes.
fn take<const N: usize>(data: &mut &[u8]) -> Result<[u8; N], Failure> {
    let (bytes, rest) = data.split_first_chunk::<N>().ok_or(CUT_OFF)?;
    *data = rest;
    Ok(*bytes)
}

/// Takes `len` bytes.
fn take_slice<'a>(data: &mut &'a [u8], len: usize) -> Result<&'a [u8], Failure> {
    let (bytes, rest) = data.split_at_checked(len).ok_or(CUT_OFF)?;
    *data = rest;
    Ok(bytes)
}

fn damaged(error: impl ToString) -> Failure {
    Failure::Damaged(error.to_string())
}

/// The legacy frame: a magic number, then blocks with their sizes before them.
pub(super) fn legacy(data: &[u8], mut out: Output) -> Result<Vec<u8>, Failure> {
    let mut rest = data.get(4..).unwrap_or_default();
    // Made once: a file of a million blocks of one byte must not cost a million times what a block may hold.
    let mut space = vec![0; LEGACY_BLOCK];
    // The last four bytes are not a block but the unpacked size that Linux appends.
    while rest.len() > 4 {
        let size = u32::from_le_bytes(take(&mut rest)?);
        let block = take_slice(&mut rest, size as usize)?;
        let len = lz4_flex::block::decompress_into(block, &mut space).map_err(damaged)?;
        out.push(space.get(..len).unwrap_or_default())?;
    }
    Ok(out.bytes)
}

/// One frame (LZ4 Frame Format 1.6.4): a descriptor, blocks, and an end mark.
pub(super) fn frame(data: &[u8], mut out: Output) -> Result<Vec<u8>, Failure> {
    let mut rest = data.get(4..).unwrap_or_default();
    let [flags, sizes] = take(&mut rest)?;
    if flags >> 6 != 1 {
        return Err(Failure::Damaged(format!("version {} of the frame", flags >> 6)));
    }
    let flag = |bit: u8| flags & 1 << bit != 0;
    let (linked, block_checksums, content_size, dictionary) = (!flag(5), flag(4), flag(3), flag(0));
    if dictionary {
        return Err(Failure::Unsupported("lz4 with a dictionary of its own".into()));
    }
    if content_size {
        take::<8>(&mut rest)?;
    }
    take::<1>(&mut rest)?;
    // 4 to 7: 64 KiB, 256 KiB, 1 MiB, 4 MiB.
    let largest = match sizes >> 4 & 7 {
        number @ 4..=7 => 1usize << (8 + 2 * number),
        _ => return Err(Failure::Damaged("blocks of no size".into())),
    };
    let mut space = vec![0; largest];
    loop {
        let size = u32::from_le_bytes(take(&mut rest)?);
        if size == 0 {
            return Ok(out.bytes);
        }
        let block = take_slice(&mut rest, (size & !(1 << 31)) as usize)?;
        if size >> 31 != 0 {
            out.push(block)?;
        } else {
            let from = if linked { out.bytes.len().saturating_sub(HISTORY) } else { out.bytes.len() };
            let history = out.bytes.get(from..).unwrap_or_default();
            let len =
                lz4_flex::block::decompress_into_with_dict(block, &mut space, history).map_err(damaged)?;
            out.push(space.get(..len).unwrap_or_default())?;
        }
        if block_checksums {
            take::<4>(&mut rest)?;
        }
    }
}
