//! Which files can be disks, and how they are locked.

use super::*;
use crate::backend::disk::file;
use crate::backend::disk::qcow2::Qcow2Image;

/// A child process inherits the disk's descriptor between fork and exec; the lock must be free nevertheless.
#[test]
fn a_closed_disk_is_not_locked_by_an_inherited_descriptor() {
    for format in [Format::Raw, Format::Qcow2] {
        let scratch = match format {
            Format::Raw => Scratch::new("inherited", SECTORS * SECTOR),
            Format::Qcow2 => qcow2_image("inherited.qcow2", 3),
        };
        let options = Options { format: Some(format), ..scratch.options() };
        let file = file::open(&options).unwrap();
        let inherited = file.0.try_clone().unwrap();
        let image: Box<dyn Image> = match format {
            Format::Raw => Box::new(RawImage::new(file, false).unwrap()),
            Format::Qcow2 => Box::new(Qcow2Image::open(file, &options).unwrap()),
        };
        assert!(matches!(Disk::open(&options), Err(OpenError::Locked(_))));
        drop(image);
        assert!(Disk::open(&options).is_ok(), "{format:?}");
        drop(inherited);
    }
}

#[test]
fn disks_that_cannot_be_opened() {
    let scratch = Scratch::new("open", SECTORS * SECTOR);
    let writer = Disk::open(&scratch.options()).unwrap();
    let readonly = Options { readonly: true, ..scratch.options() };
    assert!(matches!(Disk::open(&scratch.options()), Err(OpenError::Locked(_))), "two writers");
    assert!(matches!(Disk::open(&readonly), Err(OpenError::Locked(_))));
    drop(writer);
    let readers = (Disk::open(&readonly).unwrap(), Disk::open(&readonly).unwrap());
    assert!(matches!(Disk::open(&scratch.options()), Err(OpenError::Locked(_))));
    drop(readers);
    for none in ["/", "/dev/null"] {
        let options = Options { path: none.into(), readonly: true, ..scratch.options() };
        let error = Disk::open(&options).err().unwrap();
        assert!(matches!(error, OpenError::NoDisk(_)), "{error}");
        assert_eq!(error.to_string().contains("mkfs.ext4"), none == "/", "{error}");
    }
    let missing = Options { path: "/nonexistent/disk".into(), ..scratch.options() };
    let error = Disk::open(&missing).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/disk") && error.contains("truncate"), "{error}");
    let wrong = Options { format: Some(Format::Qcow2), ..scratch.options() };
    assert!(matches!(Disk::open(&wrong), Err(OpenError::NoQcow2(_))));
    File::options().write(true).open(&scratch.0).unwrap().write_all_at(b"QFI\xfb", 0).unwrap();
    assert!(matches!(Disk::open(&scratch.options()), Err(OpenError::LooksLikeQcow2(_))));
    assert!(Disk::open(&Options { format: Some(Format::Raw), ..scratch.options() }).is_ok());
    assert!(
        Disk::open(&Options { format: Some(Format::Qcow2), ..scratch.options() }).is_err(),
        "but it is none"
    );
    let empty = Scratch::new("empty", 0);
    assert!(matches!(Disk::open(&empty.options()), Err(OpenError::Empty(_))));
}
