//! qcow2 images with wrong tables are refused, with a line that says what to do, before anything is written to them.

use super::*;
use crate::testing::qcow2::*;

/// Writes an image to a scratch file.
pub fn stored(name: &str, image: &[u8]) -> Scratch {
    let scratch = Scratch::new(name, 0);
    std::fs::write(&scratch.0, image).unwrap();
    scratch
}

/// The message with which an image is refused.
#[track_caller]
fn refused(name: &str, bytes: &[u8], readonly: bool) -> String {
    let scratch = stored(&format!("damaged-{name}.qcow2"), bytes);
    let opened = Disk::open(&Options { readonly, ..scratch.options() });
    let why = opened.err().unwrap_or_else(|| panic!("{name} was opened")).to_string();
    assert!(std::fs::read(&scratch.0).unwrap() == bytes, "{name} was written to");
    assert!(!why.contains('\n'), "{why}");
    why
}

#[track_caller]
fn to_be_repaired(name: &str, bytes: &[u8], what: &str) {
    let why = refused(name, bytes, false);
    assert!(why.contains(what) && why.contains("qemu-img check -r all"), "{name}: {why}");
}

/// The small image with 8-byte values written at some offsets.
fn with(places: &[(usize, u64)]) -> Vec<u8> {
    let mut changed = image();
    places.iter().for_each(|&(at, value)| put(&mut changed, at, value.to_be_bytes()));
    changed
}

#[test]
fn the_small_image_is_accepted() {
    for readonly in [false, true] {
        let scratch = stored("damaged-none.qcow2", &image());
        let opened = Disk::open(&Options { readonly, ..scratch.options() });
        assert!(opened.is_ok(), "{:?}", opened.err());
    }
}

/// The library would overwrite the header with refcounts, and then recurse until the stack overflows.
#[test]
fn an_uncounted_header_is_not_overwritten() {
    let mut cut = image();
    cut.truncate(72);
    put(&mut cut, 4, 2u32.to_be_bytes());
    to_be_repaired("header-alone", &cut, "lies outside the file, which has 72 bytes");
    to_be_repaired(
        "no-refblock",
        &with(&[(REFTABLE, 0)]),
        "the header at offset 0x0 is in a cluster that the refcounts",
    );
    to_be_repaired("no-reftable", &with(&[(52, 0x0000_0200_0000_0000)]), "the refcounts say is free");
    to_be_repaired("no-counts", &with(&[(REFBLOCK, 0)]), "the refcounts say is free");
}

#[test]
fn uncounted_metadata_is_not_allocated() {
    for (what, at) in [
        ("the refcount table", REFTABLE),
        ("a refcount block", REFBLOCK),
        ("the L1 table", L1),
        ("an L2 table", L2),
        ("a guest's data", GUEST_DATA),
        ("an L2 table", SHARED_L2),
        ("a guest's data", SHARED_DATA),
        ("the table of snapshots", SNAPSHOTS),
        ("a snapshot's L1 table", SNAPSHOT_L1),
    ] {
        let mut changed = image();
        put(&mut changed, REFBLOCK + at / CLUSTER * 2, [0, 0]);
        to_be_repaired("uncounted", &changed, &format!("{what} at offset {at:#x} is in a cluster that"));
    }
    let mut changed = image();
    put(&mut changed, REFBLOCK + SHARED_DATA / CLUSTER * 2, [0, 1]);
    to_be_repaired("counted-once", &changed, "more users than its refcount, 1, says");
}

#[test]
fn overlaps_are_refused() {
    let (copied, l1) = (|at: usize| at as u64 | COPIED, L1 as u64);
    for (name, places) in [
        ("data-in-header", vec![(L2 + 24, 0x200 | COPIED)]),
        ("data-in-l1", vec![(L2 + 24, copied(L1))]),
        ("data-in-l2", vec![(L2 + 24, copied(L2))]),
        ("data-in-refblock", vec![(L2 + 24, copied(REFBLOCK))]),
        ("data-in-snapshots", vec![(L2 + 24, copied(SNAPSHOTS))]),
        ("l2-in-l1", vec![(L1, copied(L1))]),
        ("l2-in-refblock", vec![(L1, copied(REFBLOCK))]),
        ("l1-in-reftable", vec![(40, REFTABLE as u64)]),
        ("reftable-in-l1", vec![(48, l1)]),
        ("refblock-twice", vec![(REFTABLE + 8, REFBLOCK as u64)]),
        ("snapshots-in-l2", vec![(64, L2 as u64)]),
        ("compressed-in-l1", vec![(L2 + 24, 1 << 62 | l1 | 100)]),
    ] {
        let why = refused(name, &with(&places), false);
        assert!(why.contains("qemu-img check -r all"), "{name}: {why}");
        assert!(
            recount(&with(&places)).is_err() || name == "data-in-header",
            "{name} is right, says the recount"
        );
    }
    // Two entries for one cluster, both marked as writable in place; and one for a cluster that a snapshot shares.
    to_be_repaired("twice", &with(&[(L2 + 24, copied(GUEST_DATA))]), "more users than its refcount");
    to_be_repaired(
        "shared",
        &with(&[(SHARED_L2, copied(SHARED_DATA))]),
        "is marked as not shared, and its refcount is 2",
    );
    to_be_repaired(
        "shared-l2",
        &with(&[(L1 + 8, copied(SHARED_L2))]),
        "is marked as not shared, and its refcount is 2",
    );
}

#[test]
fn offsets_outside_the_file_are_refused() {
    let far = 0x0010_0000;
    for (name, at) in
        [("l1", 40), ("reftable", 48), ("snapshots", 64), ("refblock", REFTABLE), ("snapshot-l1", SNAPSHOTS)]
    {
        to_be_repaired(name, &with(&[(at, far)]), "lies outside the file");
    }
    for readonly in [false, true] {
        for (name, at, value) in [
            ("l1-far", 40, far),
            ("l1-end", 40, 0xffff_ffff_ffff_fe00),
            ("l2-far", L1, far | COPIED),
            ("data-far", L2, far | COPIED),
            ("data-at-end", L2, (CLUSTERS * CLUSTER) as u64 | COPIED),
            ("compressed-far", L2, 1 << 62 | far),
        ] {
            let why = refused(name, &with(&[(at, value)]), readonly);
            assert!(why.contains("lies outside the file"), "{name}: {why}");
        }
        let why = refused("l1-unaligned", &with(&[(40, L1 as u64 + 8)]), readonly);
        assert!(why.contains("does not begin at a multiple of the cluster size"), "{why}");
        for (name, at, value) in
            [("l1", L1, 1 << 62), ("l2", L2, 4), ("compressed", L2, 3 << 62 | GUEST_DATA as u64)]
        {
            let why = refused(name, &with(&[(at, value)]), readonly);
            assert!(why.contains("reserved bits are set"), "{name}: {why}");
        }
    }
    to_be_repaired("refblock-unaligned", &with(&[(REFTABLE, 0x404)]), "reserved bits are set");
}

/// With every field of the header at the ends of its range, the check ends soon and takes no more memory than the
/// image needs.
#[test]
fn headers_that_lie_about_sizes() {
    for (name, at, value) in [
        ("cluster-bits-8", 20, 8u32),
        ("cluster-bits-22", 20, 22),
        ("cluster-bits-huge", 20, u32::MAX),
        ("l1-size", 36, u32::MAX),
        ("l1-size-small", 36, 1),
        ("reftable-clusters", 56, u32::MAX),
        ("snapshots", 60, u32::MAX),
        ("snapshots-most", 60, 65536),
        ("refcount-order", 96, 7),
        ("refcount-order-huge", 96, u32::MAX),
        ("header-length-0", 100, 0),
        ("header-length", 100, 513),
        ("backing-length", 8, 0),
        ("size", 24, u32::MAX),
        ("odd-size", 28, 1001),
    ] {
        let mut changed = image();
        put(&mut changed, at, value.to_be_bytes());
        if name == "backing-length" {
            put(&mut changed, 8, 200u64.to_be_bytes());
            put(&mut changed, 16, 1024u32.to_be_bytes());
        }
        let why = refused(name, &changed, false);
        assert!(why.starts_with("cannot use disk"), "{name}: {why}");
    }
}

/// The messages for images that are dirty, corrupt, or have unknown features.
#[test]
fn features_have_names() {
    for readonly in [false, true] {
        for (bits, said) in [
            (1u64, ["was not closed properly", "repair it, or a copy of it: qemu-img check -r all"]),
            (2, ["is marked as corrupt", "qemu-img check -r all"]),
            (3, ["is marked as corrupt", "qemu-img check -r all"]),
            (
                8,
                [
                    "uses a compression other than zlib, and Paravane does not support that",
                    "qemu-img convert",
                ],
            ),
            (16, ["uses extended L2 entries (subclusters), and", "qemu-img convert"]),
            (1 << 40, ["uses the feature 40 (new\\u{1b}thing), and", "qemu-img convert"]),
        ] {
            let mut changed = with(&[(72, bits)]);
            put(&mut changed, 104, 0x6803_f857u32.to_be_bytes());
            put(&mut changed, 108, 48u32.to_be_bytes());
            put(&mut changed, 112, *b"\x00\x28new\x1bthing");
            let why = refused("feature", &changed, readonly);
            assert!(said.iter().all(|part| why.contains(part)), "{why}");
            assert!(!why.contains("nrecognized"), "{why}");
        }
    }
    let mut version = image();
    put(&mut version, 4, 4u32.to_be_bytes());
    assert!(
        refused("version", &version, true)
            .contains("uses version 4 of the format, and Paravane does not support that")
    );
}

/// The header is not overwritten, even if the library believes that its cluster is free.
#[test]
fn a_write_into_the_header_is_an_error() {
    let scratch = stored("header-kept.qcow2", &image());
    let options = scratch.options();
    let lock = file::open(&options).unwrap();
    let disk = Qcow2Image::open(lock, &options).unwrap();
    // A program that ignores locks frees all clusters, after which the library would allocate cluster 0.
    let file = File::options().write(true).open(&scratch.0).unwrap();
    file.write_all_at(&[0; CLUSTER], REFBLOCK as u64).unwrap();
    let mut data = [7u8; CLUSTER];
    let mut buffers = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: CLUSTER }];
    assert!(disk.write(&mut buffers, 5 * CLUSTER as u64).is_err() || disk.flush().is_err());
    drop(disk);
    let (now, was) = (std::fs::read(&scratch.0).unwrap(), image());
    assert!(now[..CLUSTER] == was[..CLUSTER], "the header was written over");
}

/// An image that replaced the checked one would not have been checked.
#[test]
fn the_opened_image_is_the_checked_one() {
    let scratch = stored("swapped.qcow2", &image());
    let options = scratch.options();
    let lock = file::open(&options).unwrap();
    std::fs::remove_file(&scratch.0).unwrap();
    std::fs::write(&scratch.0, b"something else").unwrap();
    let disk = Qcow2Image::open(lock, &options).unwrap();
    let mut data = [0u8; CLUSTER];
    let mut buffers = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: CLUSTER }];
    disk.read(&mut buffers, 0).unwrap();
    assert!(data == [0xd1; CLUSTER]);
}

#[test]
fn the_small_image_is_consistent() {
    assert_eq!(recount(&image()), Ok(()));
    let mut wrong = image();
    put(&mut wrong, REFBLOCK, [0, 0]);
    assert!(recount(&wrong).is_err());
}
