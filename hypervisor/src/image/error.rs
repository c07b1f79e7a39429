//! What can be wrong with an image, said so that the reader knows what to do.

use std::ops::Range;

use super::compressed::UnpackError;
use super::notes::{BARE_PROTOCOL, NoteError};

/// A file that cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants and their fields are")]
pub enum ImageError {
    #[error("the image is empty; was it built completely?")]
    Empty,
    #[error("the image is not an ELF file: {looks_like}; give the kernel's ELF executable")]
    NotElf { looks_like: &'static str },
    #[error("the image cannot be unpacked: {0}")]
    Unpack(#[from] UnpackError),
    #[error("the image is a 32-bit ELF file; only 64-bit x86-64 guests run here: build it for x86_64")]
    Elf32,
    #[error("the image is for {machine}; only x86-64 guests run here: build it for x86_64")]
    OtherMachine { machine: String },
    #[error(
        "cannot read the image's {what} ({reason}): the file is cut off or damaged; build or copy it again"
    )]
    Truncated { what: &'static str, reason: String },
    #[error(
        "the image is not a guest: it has neither Xen nor Paravane notes, so it is {what}; link the kernel \
         with the guest SDK, or give a kernel built with Xen PV support"
    )]
    Foreign { what: &'static str },
    #[error("the image cannot be started: {0}; rebuild it with correct notes")]
    Notes(#[from] NoteError),
    #[error("the image has both Xen and Paravane notes; build it for one machine layer only")]
    TwoKinds,
    #[error(
        "the image speaks version {found} of the bare boot protocol, this host version {BARE_PROTOCOL}; \
         rebuild it with the SDK of this release"
    )]
    BareProtocol { found: u32 },
    #[error("the image was built for \"{found}\"; its XEN_VERSION note must be \"xen-3.0\"")]
    XenVersion { found: String },
    #[error("the image wants the loader \"{found}\"; its LOADER note must be \"generic\"")]
    Loader { found: String },
    #[error(
        "the image is not a static executable at a fixed address; link it with \
         `-static -no-pie` and `-C relocation-model=static`"
    )]
    NotExecutable,
    #[error("the image has no segment to load; check its link script")]
    NothingToLoad,
    #[error(
        "segment {index} of the image lies outside the file (offset {offset:#x}, {size:#x} bytes, of \
         {file:#x}); the file is cut off: build or copy it again"
    )]
    SegmentOutsideFile { index: usize, offset: u64, size: u64, file: usize },
    #[error(
        "segment {index} of the image has more bytes in the file ({file_size:#x}) than in memory \
         ({mem_size:#x}); check its link script"
    )]
    SegmentSizes { index: usize, file_size: u64, mem_size: u64 },
    #[error(
        "segment {index} of the image ({address:#x}, {size:#x} bytes) does not lie within memory that begins \
         at {base:#x}; check its link addresses against its PADDR_OFFSET or VIRT_BASE note"
    )]
    SegmentAddress { index: usize, address: u64, size: u64, base: u64 },
    #[error("two segments of the image overlap ({first:#x?} and {second:#x?}); check its link script")]
    Overlap { first: Range<u64>, second: Range<u64> },
    #[error(
        "the image's VIRT_BASE {virt_base:#x} is not page-aligned, or too high for what is loaded there; \
         check the note and the link script"
    )]
    VirtBase { virt_base: u64 },
    #[error(
        "the image's entry point {entry:#x} is not in what it loads ({start:#x} to {end:#x}); check its \
         ENTRY note or the ENTRY of its link script"
    )]
    Entry { entry: u64, start: u64, end: u64 },
    #[error(
        "the image's HYPERCALL_PAGE {page:#x} is not a whole, page-aligned page of what it loads; check the \
         note and its link script"
    )]
    HypercallPage { page: u64 },
}

/// What a file that is not an ELF file seems to be.
pub(super) fn looks_like(file: &[u8]) -> &'static str {
    let starts = |magic: &[u8]| file.starts_with(magic);
    if starts(b"MZ") {
        "it is an EFI or Windows program"
    } else if starts(b"#!") {
        "it is a script"
    } else if b"\x7fELF".starts_with(file) {
        "it is cut off after a few bytes"
    } else {
        "its first bytes are none that are known here"
    }
}

/// A machine's name for messages, from ELF's `e_machine`.
pub(super) fn machine_name(machine: u16) -> String {
    use object::elf::{EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_S390};
    match machine {
        EM_386 => "32-bit x86".into(),
        EM_AARCH64 => "64-bit Arm".into(),
        EM_ARM => "32-bit Arm".into(),
        EM_PPC64 => "64-bit POWER".into(),
        EM_RISCV => "RISC-V".into(),
        EM_S390 => "s390".into(),
        other => format!("ELF machine {other}"),
    }
}
