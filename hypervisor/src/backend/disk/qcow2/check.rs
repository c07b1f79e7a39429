//! Whether an image's tables may be believed. Done before the library gets the image.
//!
//! The library believes refcounts and tables. It gives a cluster that is counted as free to the next write, whatever
//! the cluster holds; and where the refcounts of the file's first clusters are missing, it puts new ones into cluster
//! 0, over the header, and then calls itself without end. So nobody writes to an image before all of the following is
//! known:
//!
//! 1. every table, and every cluster that an entry names, begins where a cluster may and lies inside the file;
//! 2. every one of them is counted, as often as it is used, and no table shares its cluster with anything;
//! 3. what is marked as not shared (COPIED), and is therefore written in place, has one user.
//!
//! Refcounts that are too high lose room and nothing else; a program that is killed leaves some. If an image is only
//! read, only point 1 is checked: nothing is allocated there, and a wrong table gives wrong data to its own reader
//! alone.
//!
//! What may not be done here: recursion; a write; a loop or an allocation whose size the file sets without a limit.

use std::fs::File;

use super::fault::Fault;
use super::header::Header;
use super::reader::Reader;
use super::snapshots_and_bitmaps;
use super::tables::Tables;

/// Looks at an image. `direct`: the file was opened with O_DIRECT; `writable`: it will be written to.
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
