//! Files that a qcow2 image names.

use imago::file::File as Storage;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
use imago::{FormatCreateBuilder, Storage as _, StorageOpenOptions};

use super::*;

const BYTES: u64 = 1 << 20;

fn storage(scratch: &Scratch) -> Storage {
    Storage::open(StorageOpenOptions::new().write(true).filename(&scratch.0)).unwrap()
}

fn create(
    name: &str,
    with: impl FnOnce(Qcow2CreateBuilder<Storage>) -> Qcow2CreateBuilder<Storage>,
) -> Scratch {
    let scratch = Scratch::new(name, 0);
    with(Qcow2::<Storage>::create_builder(storage(&scratch)).size(BYTES)).create().unwrap();
    scratch
}

/// An image on top of another file.
fn above(name: &str, below: &Path, format: &str) -> Scratch {
    create(name, |builder| builder.backing(below.to_str().unwrap().to_owned(), format.to_owned()))
}

fn only_read(scratch: &Scratch) -> Options {
    Options { readonly: true, ..scratch.options() }
}

/// Why a disk cannot be opened: one line.
#[track_caller]
fn refusal(options: &Options) -> String {
    let why = Disk::open(options).err().expect("it should be refused").to_string();
    assert!(!why.contains('\n'), "{why}");
    why
}

/// Who writes to a backing file breaks what is on top of it; any number may read it.
#[test]
fn a_backing_file_is_locked_while_it_is_behind_something() {
    let (base, raw) = (qcow2_image("locked-base.qcow2", 3), Scratch::new("locked-base.raw", BYTES));
    for (below, format) in [(&base, "qcow2"), (&raw, "raw")] {
        let [one, two] = ["locked-one.qcow2", "locked-two.qcow2"].map(|name| above(name, &below.0, format));
        let top = above("locked-top.qcow2", &one.0, "qcow2");
        let writer = Disk::open(&below.options()).unwrap();
        for scratch in [&one, &top] {
            assert!(refusal(&scratch.options()).contains("is in use"), "{format}");
        }
        drop(writer);
        let users = [&top, &two].map(|scratch| Disk::open(&scratch.options()).unwrap());
        assert!(refusal(&below.options()).contains("or behind another disk"));
        assert!(refusal(&one.options()).contains("or behind another disk"));
        assert!(Disk::open(&only_read(below)).is_ok() && Disk::open(&only_read(&one)).is_ok());
        drop(users);
        assert!(Disk::open(&below.options()).is_ok(), "and no longer");
    }
}

#[test]
fn an_image_behind_itself() {
    let place = Scratch::new("own.qcow2", 0);
    let own = above("own.qcow2", &place.0, "qcow2");
    let (a, b) = (Scratch::new("ring-a.qcow2", 0), Scratch::new("ring-b.qcow2", 0));
    let ring = [above("ring-a.qcow2", &b.0, "qcow2"), above("ring-b.qcow2", &a.0, "qcow2")];
    for scratch in [&own, &ring[0], &ring[1]] {
        for options in [scratch.options(), only_read(scratch)] {
            assert!(refusal(&options).contains("is behind itself"));
        }
    }
}

#[test]
fn too_many_behind_one_another() {
    let mut chain = vec![Scratch::new("chain.raw", BYTES)];
    for n in 0..70 {
        let format = if n == 0 { "raw" } else { "qcow2" };
        chain.push(above(&format!("chain-{n}.qcow2"), &chain[n].0, format));
    }
    assert!(Disk::open(&chain[63].options()).is_ok());
    assert!(refusal(&chain[64].options()).contains("more than 64 files behind one another"));
    assert!(refusal(&chain[70].options()).contains("more than 64 files behind one another"));
}

/// Nothing is waited for, and nobody is told to make an empty file in the stead of one that is missing.
#[test]
fn what_cannot_be_behind_an_image() {
    let gone = std::env::temp_dir().join("paravane-no-such-file");
    let why = refusal(&above("above-nothing.qcow2", &gone, "raw").options());
    assert!(why.contains("paravane-no-such-file") && !why.contains("truncate"), "{why}");
    let fifo = Scratch::new("behind.fifo", 0);
    std::fs::remove_file(&fifo.0).unwrap();
    let name = std::ffi::CString::new(fifo.0.to_str().unwrap()).unwrap();
    // SAFETY: a string that ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let why = refusal(&above("above-fifo.qcow2", &fifo.0, "raw").options());
    assert!(why.contains("neither a file nor a block device"), "{why}");
    let other = above("above-other.qcow2", Path::new("/etc/hostname"), "vmdk");
    assert!(refusal(&other.options()).contains("qemu-img convert"));
}

/// What a guest would read is noise, and what it would write destroys what it does not see.
#[test]
fn an_encrypted_image() {
    let below = qcow2_image("encrypted.qcow2", 3);
    // Its header says LUKS.
    File::options().write(true).open(&below.0).unwrap().write_all_at(&2u32.to_be_bytes(), 32).unwrap();
    let top = above("above-encrypted.qcow2", &below.0, "qcow2");
    for options in [below.options(), only_read(&below), top.options()] {
        assert!(refusal(&options).contains("is encrypted"));
    }
}

/// A file for an image's data is written only where the image may be, and is nobody else's then.
#[test]
fn a_file_for_an_images_data() {
    let data = Scratch::new("data.raw", 0);
    let file = storage(&data);
    let name = data.0.to_str().unwrap().to_owned();
    let scratch = create("data.qcow2", |builder| builder.data_file(name, file));
    let block = Disk::open(&scratch.options()).unwrap();
    assert!(refusal(&only_read(&data)).contains("is in use"));
    drop(block);
    let block = Disk::open(&only_read(&scratch)).unwrap();
    assert!(Disk::open(&Options { format: Some(Format::Raw), ..only_read(&data) }).is_ok());
    drop(block);
    let top = above("above-data.qcow2", &scratch.0, "qcow2");
    let both = [Disk::open(&top.options()).unwrap(), Disk::open(&only_read(&scratch)).unwrap()];
    drop(both);
}
