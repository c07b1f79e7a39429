//! Images of every kind that qemu-img makes are accepted, hold their data, and are consistent afterwards.

use std::process::Command;

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage as _, StorageOpenOptions};

use super::*;

const BYTES: usize = 1 << 20;

/// Data of which some parts can be compressed, some cannot, and some are zeroes.
fn content() -> Vec<u8> {
    let mut seed = 1u32;
    let mut noise = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    let block = |n: usize| -> Vec<u8> {
        match n % 4 {
            0 => (0..4096).map(|_| noise()).collect(),
            1 => vec![n as u8; 4096],
            2 => (0..4096usize).map(|i| (i / 64 + n) as u8).collect(),
            _ => vec![0; 4096],
        }
    };
    (0..BYTES / 4096).flat_map(block).collect()
}

fn open(scratch: &Scratch, readonly: bool) -> Qcow2Image {
    let options = Options { readonly, format: Some(Format::Qcow2), ..scratch.options() };
    let lock = file::open(&options).unwrap();
    Qcow2Image::open(lock, &options).unwrap_or_else(|why| panic!("{why}"))
}

fn buffers(data: &mut [u8]) -> [libc::iovec; 1] {
    [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }]
}

fn holds(scratch: &Scratch, expected: &[u8]) {
    for readonly in [true, false] {
        let mut found = vec![0xee; BYTES];
        open(scratch, readonly).read(&mut buffers(&mut found), 0).unwrap();
        assert!(found == expected, "something else is read");
    }
}

/// Writes to many parts of the disk, updates `expected`, and checks the image.
fn used(scratch: &Scratch, expected: &mut [u8]) {
    holds(scratch, expected);
    let disk = open(scratch, false);
    let places = [(0, 512), (100_352, 70_144), (BYTES / 2, BYTES / 4), (BYTES - 1024, 1024)];
    for (byte, (offset, len)) in (1u8..).zip(places) {
        let mut data = vec![byte; len];
        disk.write(&mut buffers(&mut data), offset as u64).unwrap();
        expected[offset..][..len].copy_from_slice(&data);
    }
    disk.zero(200_192, 300_032, true).unwrap();
    expected[200_192..500_224].fill(0);
    disk.flush().unwrap();
    drop(disk);
    holds(scratch, expected);
    loses_nothing(scratch);
}

/// Checks an image, and accepts leaked clusters: those of bitmaps, which are out of date after a program that does
/// not support them has written to the image.
fn loses_nothing(scratch: &Scratch) {
    let checked =
        Command::new("qemu-img").args(["check", "-q", "-f", "qcow2", scratch.0.to_str().unwrap()]).output();
    // 0: all is well; 3: leaked clusters (qemu-img(1)).
    let checked = checked.unwrap();
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{checked:?}");
}

/// Makes an image of [`content`]; `None` if qemu-img is not installed.
fn made(name: &str, args: &[&str]) -> Option<Scratch> {
    let (raw, scratch) = (Scratch::new(&format!("{name}.raw"), 0), Scratch::new(&format!("{name}.qcow2"), 0));
    std::fs::write(&raw.0, content()).unwrap();
    let files = [raw.0.to_str().unwrap(), scratch.0.to_str().unwrap()];
    qemu_img(&[&["convert", "-f", "raw", "-O", "qcow2"], args, &files].concat())?;
    Some(scratch)
}

#[test]
fn every_kind_of_image_is_accepted() {
    let mut kinds: Vec<Vec<String>> = Vec::new();
    let mut kind = |args: &[&str]| kinds.push(args.iter().map(|arg| (*arg).to_owned()).collect());
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        kind(&["-o", &format!("refcount_bits={bits}")]);
        kind(&["-o", &format!("refcount_bits={bits},cluster_size=512")]);
    }
    for size in ["512", "1k", "4k", "64k", "1M", "2M"] {
        kind(&["-o", &format!("cluster_size={size}")]);
        kind(&["-c", "-o", &format!("cluster_size={size}")]);
    }
    for more in ["compat=0.10", "lazy_refcounts=on"] {
        kind(&["-o", more]);
        kind(&["-c", "-o", more]);
    }
    for mode in ["metadata", "falloc", "full"] {
        kind(&["-o", &format!("preallocation={mode}")]);
        kind(&["-o", &format!("preallocation={mode},cluster_size=4k")]);
    }
    for (n, args) in kinds.iter().enumerate() {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let Some(scratch) = made(&format!("kind-{n}"), &args) else { return };
        used(&scratch, &mut content());
        is_consistent(&scratch);
    }
}

#[test]
fn snapshots_stay_and_bitmaps_do_no_harm() {
    for (n, options) in ["cluster_size=64k", "cluster_size=512", "compat=0.10"].iter().enumerate() {
        let Some(scratch) = made(&format!("named-{n}"), &["-o", options]) else { return };
        let (path, mut now) = (scratch.0.to_str().unwrap(), content());
        for round in 0..3u8 {
            qemu_img(&["snapshot", "-c", &format!("s{round}"), path]);
            if *options != "compat=0.10" {
                qemu_img(&["bitmap", "--add", path, &format!("b{round}")]);
                holds(&scratch, &now);
                qemu_img(&["bitmap", "--add", "-g", "64k", path, &format!("c{round}")]);
            }
            used(&scratch, &mut now);
        }
        qemu_img(&["snapshot", "-d", "s1", path]);
        used(&scratch, &mut now);
        qemu_img(&["snapshot", "-a", "s0", path]);
        used(&scratch, &mut content());
    }
}

#[test]
fn backing_files_and_external_data_files() {
    let Some(base) = made("chain-base", &["-c"]) else { return };
    let over = [Scratch::new("chain-over.qcow2", 0), Scratch::new("chain-top.qcow2", 0)];
    let [middle, top] = over.each_ref().map(|scratch| scratch.0.to_str().unwrap());
    let mut now = content();
    let create = |below: &str, path: &str, more: &str| {
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, "-o", more, path])
    };
    create(base.0.to_str().unwrap(), middle, "cluster_size=4k");
    used(&over[0], &mut now);
    create(middle, top, "compat=0.10");
    used(&over[1], &mut now);
    let data = Scratch::new("beside.data", 0);
    let option = format!("data_file={}", data.0.to_str().unwrap());
    for raw in ["off", "on"] {
        let made = made("beside", &["-o", &format!("{option},data_file_raw={raw}")]);
        used(&made.unwrap(), &mut content());
    }
}

/// The message for a damaged backing file names that file.
#[test]
fn a_damaged_backing_file_is_named() {
    let Some(base) = made("damaged-base", &[]) else { return };
    let over = Scratch::new("damaged-over.qcow2", 0);
    let [below, path] = [&base, &over].map(|scratch| scratch.0.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, path]);
    File::options().write(true).open(&base.0).unwrap().set_len(0x20000).unwrap();
    let why = Disk::open(&over.options()).err().expect("half of its base is missing").to_string();
    assert!(why.contains("lies outside the file") && why.contains(&format!("check -r all {below}")), "{why}");
}

#[test]
fn unsupported_features_are_named() {
    for (name, args, said) in [
        ("subclusters", "extended_l2=on", "extended L2 entries"),
        ("zstd", "compression_type=zstd", "a compression other than zlib"),
    ] {
        let Some(scratch) = made(name, &["-o", args]) else { return };
        for readonly in [false, true] {
            let why = Disk::open(&Options { readonly, ..scratch.options() }).err().expect(name).to_string();
            assert!(why.contains(said) && why.contains("qemu-img convert -O qcow2"), "{why}");
        }
    }
}

/// The refcount tables grow with the image.
#[test]
fn refcounts_grow_with_the_image() {
    let scratch = Scratch::new("growing.qcow2", 0);
    let options = "cluster_size=512,refcount_bits=64";
    if qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, scratch.0.to_str().unwrap(), "8M"]).is_none()
    {
        return;
    }
    let disk = open(&scratch, false);
    for n in 0..7u64 {
        let mut data = vec![n as u8 + 1; 1 << 20];
        disk.write(&mut buffers(&mut data), n << 20).unwrap();
    }
    drop(disk);
    is_consistent(&scratch);
    let disk = open(&scratch, false);
    for n in 0..7u64 {
        let mut data = vec![0; 1 << 20];
        disk.read(&mut buffers(&mut data), n << 20).unwrap();
        assert!(data.iter().all(|byte| *byte == n as u8 + 1), "MiB {n}");
    }
}

/// The library subtracts the length of a cluster from the end of a disk that is shorter than a cluster.
#[test]
fn a_part_of_a_disk_that_is_shorter_than_a_cluster_is_zeroed() {
    let scratch = Scratch::new("shorter.qcow2", 0);
    let storage = Storage::open(StorageOpenOptions::new().write(true).filename(&scratch.0)).unwrap();
    let builder = Qcow2::<Storage>::create_builder(storage);
    builder.cluster_size(2 << 20).size(BYTES as u64).create().unwrap();
    for unmap in [false, true] {
        let disk = open(&scratch, false);
        let mut expected = vec![7u8; BYTES];
        disk.write(&mut buffers(&mut expected), 0).unwrap();
        disk.zero(4096, 8192, unmap).unwrap();
        expected[4096..12288].fill(0);
        drop(disk);
        holds(&scratch, &expected);
    }
}
