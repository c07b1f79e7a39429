//! Every way in which a file can fail to be an image; each has its own error.

use super::error::ImageError;
use super::{Image, ImageKind};
use crate::testing::elf::{Elf, Phdr, note, xen_number, xen_text};

const BASE: u64 = 0x4000_0000;

fn good() -> Elf {
    Elf::pv(BASE, BASE, 0x10_0000, &[])
}

fn error(elf: &Elf) -> ImageError {
    Image::parse(&elf.bytes()).map(|i| i.kind().clone()).unwrap_err()
}

#[test]
fn a_paravirtual_image() {
    let bytes = good().bytes();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!((image.entry(), image.virt_base()), (0x4010_0000, BASE));
    assert_eq!(image.extent(), 0x10_0000..0x10_5800);
    assert_eq!(image.segments().len(), 2);
    assert_eq!(image.segment_bytes(&image.segments()[1]), crate::testing::elf::pattern(0x123));
    assert!(image.segments()[0].executable && !image.segments()[1].executable);
    let ImageKind::Pv(notes) = image.kind() else { panic!("not paravirtual") };
    assert_eq!(notes.hypercall_page, Some(0x4010_1000));
}

#[test]
fn a_bare_image() {
    let bytes = Elf::bare(BASE, 0x10_0000).bytes();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!((image.entry(), image.extent().start), (0x4010_0000, 0x10_0000));
    assert!(matches!(image.kind(), ImageKind::Bare(notes) if notes.virt_base == BASE));
}

#[test]
fn an_image_need_not_be_aligned_in_memory() {
    // `include_bytes!` promises no alignment.
    for pad in 0..8 {
        let mut bytes = vec![0; pad];
        bytes.extend(good().bytes());
        assert!(Image::parse(&bytes[pad..]).is_ok());
    }
}

#[test]
fn the_entry_note_wins_over_the_header() {
    let mut elf = Elf::pv(BASE, BASE, 0, &[xen_number(1, BASE + 0x2000)]);
    elf.entry = 0;
    assert_eq!(Image::parse(&elf.bytes()).unwrap().entry(), BASE + 0x2000);
}

#[test]
fn notes_in_sections_and_the_legacy_string() {
    let mut elf = Elf::plain();
    let load: Vec<Phdr> = elf.phdrs.drain(..).map(|p| Phdr { paddr: p.paddr - 0x40_0000, ..p }).collect();
    elf.phdrs = load;
    elf.sections = vec![(".note.Xen", object::elf::SHT_NOTE, xen_number(3, 0x40_0000))];
    assert_eq!(Image::parse(&elf.bytes()).unwrap().virt_base(), 0x40_0000);
    let mut elf = Elf::plain();
    let text = b"XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0x400000,HYPERCALL_PAGE=1\0";
    elf.sections = vec![("__xen_guest", object::elf::SHT_PROGBITS, text.to_vec())];
    let bytes = elf.bytes();
    let image = Image::parse(&bytes).unwrap();
    assert_eq!((image.virt_base(), image.extent().start), (0x40_0000, 0));
}

#[test]
fn files_that_are_no_elf_files() {
    assert_eq!(Image::parse(&[]).unwrap_err(), ImageError::Empty);
    for (file, words) in [
        (&b"#!/bin/sh"[..], "script"),
        (b"MZ\0\0", "EFI"),
        (b"\x7fE", "cut off"),
        (b"hello", "none that are known"),
    ] {
        let message = Image::parse(file).unwrap_err().to_string();
        assert!(message.contains(words) && message.contains("not an ELF file"), "{message}");
    }
}

#[test]
fn other_machines() {
    let mut bytes = good().bytes();
    bytes[4] = 1;
    assert_eq!(Image::parse(&bytes).unwrap_err(), ImageError::Elf32);
    bytes[4] = 2;
    bytes[5] = 2;
    assert!(matches!(Image::parse(&bytes), Err(ImageError::OtherMachine { .. })));
    let arm = Elf { machine: 183, ..good() };
    assert_eq!(error(&arm), ImageError::OtherMachine { machine: "64-bit Arm".into() });
}

#[test]
fn foreign_images_are_named() {
    let mut linux = Elf::plain();
    let foreign = |elf: &Elf| match error(elf) {
        ImageError::Foreign { what } => what,
        other => panic!("{other}"),
    };
    assert!(foreign(&linux).contains("static program"));
    linux.kind = 3;
    linux.add_notes(&note("GNU", 3, &[0; 20]));
    assert!(foreign(&linux).contains("position-independent"));
    linux.phdrs.push(Phdr {
        kind: object::elf::PT_INTERP,
        flags: 4,
        vaddr: 0,
        paddr: 0,
        data: b"/lib64/ld-linux-x86-64.so.2\0".to_vec(),
        memsz: 28,
    });
    assert!(foreign(&linux).contains("dynamically linked"));
    assert!(error(&linux).to_string().contains("guest SDK"), "it says what to do");
    linux.kind = 1;
    assert!(foreign(&linux).contains("object file"));
}

#[test]
fn this_program_is_foreign() {
    let Ok(bytes) = std::env::current_exe().and_then(std::fs::read) else {
        return crate::testing::skip::skip("own-executable", "the test's own executable cannot be read");
    };
    assert!(matches!(Image::parse(&bytes), Err(ImageError::Foreign { .. })));
}

#[test]
fn truncated_files() {
    let bytes = good().bytes();
    for (len, what) in [(40, "ELF header"), (100, "program headers")] {
        let err = Image::parse(&bytes[..len]).unwrap_err();
        assert!(matches!(err, ImageError::Truncated { what: w, .. } if w == what), "{len}: {err}");
    }
    let mut elf = good();
    elf.phdrs.rotate_right(1);
    let bytes = elf.bytes();
    let err = Image::parse(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(err, ImageError::SegmentOutsideFile { index: 2, .. }), "{err}");
    // Without the notes nobody can tell what it was; that it is cut off, anybody.
    let bytes = good().bytes();
    for length in [0x1000, bytes.len() - 1] {
        let err = Image::parse(&bytes[..length]).unwrap_err();
        assert!(matches!(err, ImageError::SegmentOutsideFile { .. }), "{length}: {err}");
    }
}

#[test]
fn segments_that_cannot_be() {
    let with = |change: &dyn Fn(&mut Phdr)| {
        let mut elf = good();
        change(&mut elf.phdrs[1]);
        error(&elf)
    };
    assert!(matches!(with(&|p| p.paddr = BASE - 1), ImageError::SegmentAddress { index: 1, .. }));
    assert!(matches!(with(&|p| p.memsz = u64::MAX), ImageError::SegmentAddress { .. }));
    assert!(matches!(with(&|p| p.paddr = u64::MAX), ImageError::SegmentAddress { .. }));
    assert!(matches!(with(&|p| p.memsz = 0x122), ImageError::SegmentSizes { file_size: 0x123, .. }));
    assert!(
        matches!(with(&|p| p.memsz = 0), ImageError::SegmentSizes { file_size: 0x123, mem_size: 0, .. }),
        "not skipped"
    );
    assert!(matches!(with(&|p| p.paddr -= 1), ImageError::Overlap { .. }));
    let mut elf = good();
    elf.phdrs.retain(|p| p.kind != object::elf::PT_LOAD);
    assert_eq!(error(&elf), ImageError::NothingToLoad);
}

#[test]
fn addresses_that_cannot_be() {
    let end = 0x4010_5800;
    for entry in [0, BASE, end, u64::MAX] {
        let elf = Elf { entry, ..good() };
        assert_eq!(error(&elf), ImageError::Entry { entry, start: 0x4010_0000, end });
    }
    for page in [0, 0x4010_0800, 0x4010_6000, !0xfff] {
        let elf = Elf::pv(BASE, BASE, 0x10_0000, &[xen_number(2, page)]);
        assert_eq!(error(&elf), ImageError::HypercallPage { page });
    }
    for virt_base in [BASE + 1, !0xfff] {
        let elf = Elf::pv(BASE, BASE, 0x10_0000, &[xen_number(3, virt_base)]);
        assert_eq!(error(&elf), ImageError::VirtBase { virt_base });
    }
}

#[test]
fn notes_that_ask_for_something_else() {
    let with = |note: Vec<u8>| error(&Elf::pv(BASE, BASE, 0x10_0000, &[note]));
    assert_eq!(with(xen_text(5, "xen-2.0")), ImageError::XenVersion { found: "xen-2.0".into() });
    assert_eq!(with(xen_text(8, "special")), ImageError::Loader { found: "special".into() });
    assert!(matches!(with(xen_text(10, "!magic")), ImageError::Notes(_)));
    assert_eq!(with(note("Paravane", 1, &[1, 0, 0, 0])), ImageError::TwoKinds);
    let mut future = Elf::bare(BASE, 0);
    future.add_notes(&note("Paravane", 1, &7u32.to_le_bytes()));
    assert_eq!(error(&future), ImageError::BareProtocol { found: 7 });
    let pie = Elf { kind: 3, ..good() };
    assert_eq!(error(&pie), ImageError::NotExecutable);
}
