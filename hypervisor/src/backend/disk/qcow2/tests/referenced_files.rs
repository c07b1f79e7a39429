//! Files to which a qcow2 image refers.

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

/// The message with which a disk is refused: one line.
#[track_caller]
fn refusal(options: &Options) -> String {
    let why = Disk::open(options).err().expect("it should be refused").to_string();
    assert!(!why.contains('\n'), "{why}");
    why
}

/// Writing to a backing file would break the image on top of it; any number of images may read it.
#[test]
fn a_backing_file_is_locked_while_it_is_in_use() {
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
fn an_image_that_is_its_own_backing_file_is_refused() {
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
fn a_chain_of_too_many_backing_files_is_refused() {
    let mut chain = vec![Scratch::new("chain.raw", BYTES)];
    for n in 0..70 {
        let format = if n == 0 { "raw" } else { "qcow2" };
        chain.push(above(&format!("chain-{n}.qcow2"), &chain[n].0, format));
    }
    assert!(Disk::open(&chain[63].options()).is_ok());
    assert!(refusal(&chain[64].options()).contains("more than 64 files behind one another"));
    assert!(refusal(&chain[70].options()).contains("more than 64 files behind one another"));
}

/// Opening does not wait, and the message does not advise to create a missing backing file as an empty file.
#[test]
fn files_that_cannot_be_backing_files_are_refused() {
    let gone = std::env::temp_dir().join("paravane-no-such-file");
    let why = refusal(&above("above-nothing.qcow2", &gone, "raw").options());
    assert!(why.contains("paravane-no-such-file") && !why.contains("truncate"), "{why}");
    let fifo = Scratch::new("behind.fifo", 0);
    std::fs::remove_file(&fifo.0).unwrap();
    let name = std::ffi::CString::new(fifo.0.to_str().unwrap()).unwrap();
    // SAFETY: the string ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let why = refusal(&above("above-fifo.qcow2", &fifo.0, "raw").options());
    assert!(why.contains("neither a file nor a block device"), "{why}");
    let other = above("above-other.qcow2", Path::new("/etc/hostname"), "vmdk");
    assert!(refusal(&other.options()).contains("qemu-img convert"));
}

/// A guest would read encrypted data, and would destroy data by writing.
#[test]
fn an_encrypted_image_is_refused() {
    let below = qcow2_image("encrypted.qcow2", 3);
    // An image whose header says LUKS.
    File::options().write(true).open(&below.0).unwrap().write_all_at(&2u32.to_be_bytes(), 32).unwrap();
    let top = above("above-encrypted.qcow2", &below.0, "qcow2");
    for options in [below.options(), only_read(&below), top.options()] {
        assert!(refusal(&options).contains("is encrypted"));
    }
}

/// An external data file is opened for writing, and locked, only if the image is writable.
#[test]
fn an_external_data_file_is_locked_as_its_image() {
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
