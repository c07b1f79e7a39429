//! Checks an image's tables before the library gets the image.
//!
//! The library trusts refcounts and tables. It gives a cluster with refcount 0 to the next write, whatever is in the
//! cluster. If the refcounts of the file's first clusters are missing, it writes new ones to cluster 0, over the
//! header, and then recurses without end. So an image is opened for writing only if all of this is true:
//!
//! 1. every table, and every cluster that an entry refers to, begins at a cluster boundary and lies inside the file;
//! 2. the refcount of each is at least the number of its users, and no table shares its cluster with anything;
//! 3. what is marked as not shared (COPIED), and is therefore written in place, has refcount 1.
//!
//! Refcounts that are too high only waste space; a program that is killed leaves some. For an image that is only read,
//! only point 1 is checked: nothing is allocated in it, and a wrong table harms only its reader.
//!
//! What may not be done here: recursion; a write; a loop or an allocation whose size the file sets without a limit.

#![forbid(unsafe_code)]

use std::fs::File;

use super::fault::Fault;
use super::header::Header;
use super::reader::Reader;
use super::snapshots_and_bitmaps;
use super::tables::Tables;

/// Checks an image. `direct`: the file was opened with O_DIRECT; `writable`: it will be written to.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(file: &File, direct: bool, writable: bool) -> Result<Header, Fault> {
    let reader = Reader::new(file, direct)?;
    let header = Header::read(&reader)?;
    let mut tables = Tables::new(&reader, &header);
    if writable {
        tables.refcounts()?;
        snapshots_and_bitmaps::snapshots(&mut tables)?;
        snapshots_and_bitmaps::bitmaps(&mut tables)?;
    }
    let (offset, entries) = header.l1;
    tables.l1("the L1 table", offset, entries, true)?;
    let l2_tables = tables.l2_tables()?;
    l2_tables.iter().try_for_each(|table| tables.data(table))?;
    drop(tables);
    Ok(header)
}
