//! Images: what kind of kernel a file holds, and what of it goes where.
//!
//! An image is a static ELF64 executable for x86-64 whose notes say how it wants to be started. The file is not
//! trusted: every offset and address in it is checked here, once, and the builders rely on that.
//!
//! Runs on any thread. Not signal-safe. May not be done here: touching a domain's memory.

#![forbid(unsafe_code)]

pub mod builtin;
pub mod compressed;
pub mod error;
pub mod features;
pub mod legacy_notes;
pub mod lines;
pub mod notes;
pub mod symbol_map;
pub mod symbols;
pub mod test_list;
#[cfg(test)]
mod tests;
use std::borrow::Cow;
use std::ops::Range;

use object::LittleEndian;
use object::elf::{ET_DYN, ET_EXEC, FileHeader64, PF_X, PT_INTERP, PT_LOAD, PT_NOTE, SHT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use compressed::{unpack, unpack_within};
use error::{ImageError, looks_like, machine_name};

use crate::machine::memory::PAGE_SIZE;
use notes::{BARE_PROTOCOL, BareNotes, NoteError, Notes, XenNotes};

/// The header of the only kind of ELF file there is here.
pub type Header = FileHeader64<LittleEndian>;
type Segments<'a> = &'a [<Header as FileHeader>::ProgramHeader];

/// No machine has memory above this address. Below it, page arithmetic cannot overflow.
const LARGEST_ADDRESS: u64 = 1 << 46;

/// How an image wants to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// A paravirtual kernel: it makes hypercalls.
    Pv(Box<XenNotes>),
    /// A kernel for a bare machine: its privileged instructions trap and are emulated.
    Bare(BareNotes),
}

impl ImageKind {
    /// The kind alone, without what the notes say.
    pub const fn guest(&self) -> GuestKind {
        match self {
            Self::Pv(_) => GuestKind::Pv,
            Self::Bare(_) => GuestKind::Bare,
        }
    }
}

/// What a kernel takes for its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// A domain of Xen.
    Pv,
    /// A PC of its own.
    Bare,
}

impl GuestKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pv, Self::Bare];

    /// What a kernel of this kind is called in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pv => "paravirtual",
            Self::Bare => "bare-PC",
        }
    }

    /// The reference guest of this kind.
    pub fn builtin(self) -> &'static [u8] {
        match self {
            Self::Pv => builtin::PV,
            Self::Bare => builtin::BARE,
        }
    }
}

/// A part of the file that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Pseudo-physical address of its first byte.
    pub pa: u64,
    /// Its bytes in the file.
    pub file: Range<usize>,
    /// Its length in memory; what the file does not fill is zero.
    pub mem_size: u64,
    /// Whether it holds instructions.
    pub executable: bool,
}

impl Segment {
    /// The pseudo-physical addresses that it covers.
    pub fn range(&self) -> Range<u64> {
        self.pa..self.pa + self.mem_size
    }
}

/// A checked image.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    file: Cow<'a, [u8]>,
    kind: ImageKind,
    entry: u64,
    segments: Vec<Segment>,
}

impl<'a> Image<'a> {
    /// Checks a file, compressed or not, and finds out what it is.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        Self::from_elf(unpack(file)?)
    }

    /// The same for a file that may not unpack to more than `largest` bytes.
    pub fn parse_within(file: &'a [u8], largest: u64) -> Result<Self, ImageError> {
        Self::from_elf(unpack_within(file, largest)?)
    }

    fn from_elf(file: Cow<'a, [u8]>) -> Result<Self, ImageError> {
        let header = header(&file)?;
        let headers = header
            .program_headers(LittleEndian, &*file)
            .map_err(|e| ImageError::Truncated { what: "program headers", reason: e.to_string() })?;
        let kind = kind(header, headers, &file)?;
        if header.e_type.get(LittleEndian) != ET_EXEC {
            return Err(ImageError::NotExecutable);
        }
        let segments = segments(headers, &kind, &file)?;
        let noted = if let ImageKind::Pv(notes) = &kind { notes.entry } else { None };
        let entry = noted.unwrap_or(header.e_entry.get(LittleEndian));
        let image = Self { file, kind, entry, segments };
        image.check_addresses()?;
        Ok(image)
    }

    /// How it wants to be started, with what its notes say.
    pub fn kind(&self) -> &ImageKind {
        &self.kind
    }
    /// The virtual address of its first instruction.
    pub fn entry(&self) -> u64 {
        self.entry
    }
    /// What is loaded, by rising address, without overlaps.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
    /// The bytes of a segment that come from the file.
    pub fn segment_bytes(&self, segment: &Segment) -> &[u8] {
        self.file.get(segment.file.clone()).unwrap_or_default()
    }
    /// The ELF file itself, unpacked.
    pub fn elf(&self) -> &[u8] {
        &self.file
    }
    /// The virtual address of pseudo-physical address 0.
    pub fn virt_base(&self) -> u64 {
        match &self.kind {
            ImageKind::Pv(notes) => notes.virt_base,
            ImageKind::Bare(notes) => notes.virt_base,
        }
    }
    /// From the first to the last loaded pseudo-physical address.
    pub fn extent(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |s| s.pa);
        start..self.segments.last().map_or(start, |s| s.range().end)
    }

    fn check_addresses(&self) -> Result<(), ImageError> {
        let base = self.virt_base();
        let extent = self.extent();
        if !base.is_multiple_of(PAGE_SIZE) || base.checked_add(extent.end).is_none() {
            return Err(ImageError::VirtBase { virt_base: base });
        }
        let loaded = |va: u64| {
            va.checked_sub(base).is_some_and(|pa| self.segments.iter().any(|s| s.range().contains(&pa)))
        };
        if !loaded(self.entry) {
            return Err(ImageError::Entry {
                entry: self.entry,
                start: base + extent.start,
                end: base + extent.end,
            });
        }
        if let ImageKind::Pv(notes) = &self.kind
            && let Some(page) = notes.hypercall_page
            && (!page.is_multiple_of(PAGE_SIZE)
                || !loaded(page)
                || !loaded(page.saturating_add(PAGE_SIZE - 1)))
        {
            return Err(ImageError::HypercallPage { page });
        }
        Ok(())
    }
}

/// Whether a file that begins like this can be an image, compressed or not.
pub fn may_begin_with(first: &[u8]) -> bool {
    is_elf(first) || compressed::may_begin_with(first)
}

/// Whether a file that begins like this is an ELF file as it is.
pub fn is_elf(first: &[u8]) -> bool {
    first.starts_with(&object::elf::ELFMAG)
}

/// How much an ELF file that begins like this loads, if its program headers are in sight.
pub fn loaded_bytes(first: &[u8]) -> Option<u64> {
    let headers = header(first).ok()?.program_headers(LittleEndian, first).ok()?;
    let loaded = headers.iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
    Some(loaded.fold(0, |sum: u64, segment| sum.saturating_add(segment.p_memsz(LittleEndian))))
}

/// The ELF header of a file for this machine.
pub fn header(file: &[u8]) -> Result<&Header, ImageError> {
    use object::elf::{ELFCLASS32, ELFDATA2LSB, ELFMAG, EM_X86_64};
    if file.is_empty() {
        return Err(ImageError::Empty);
    }
    if !file.starts_with(&ELFMAG) {
        return Err(ImageError::NotElf { looks_like: looks_like(file) });
    }
    if file.get(4) == Some(&ELFCLASS32) {
        return Err(ImageError::Elf32);
    }
    if file.get(5).is_some_and(|data| *data != ELFDATA2LSB) {
        return Err(ImageError::OtherMachine { machine: "a big-endian machine".into() });
    }
    let header = Header::parse(file)
        .map_err(|e| ImageError::Truncated { what: "ELF header", reason: e.to_string() })?;
    match header.e_machine.get(LittleEndian) {
        EM_X86_64 => Ok(header),
        other => Err(ImageError::OtherMachine { machine: machine_name(other) }),
    }
}

/// What the notes make of the file.
fn kind(header: &Header, headers: Segments<'_>, file: &[u8]) -> Result<ImageKind, ImageError> {
    let notes = read_notes(header, headers, file)?;
    match (notes.xen, notes.bare) {
        (Some(_), Some(_)) => Err(ImageError::TwoKinds),
        (Some(xen), None) => check_xen(xen).map(|xen| ImageKind::Pv(Box::new(xen))),
        (None, Some(bare)) if bare.protocol == BARE_PROTOCOL => Ok(ImageKind::Bare(bare)),
        (None, Some(bare)) => Err(ImageError::BareProtocol { found: bare.protocol }),
        (None, None) => {
            Err(outside(headers, file)
                .unwrap_or_else(|| ImageError::Foreign { what: foreign(header, headers) }))
        }
    }
}

/// Notes are looked for where linkers put them: segments, then sections, then the legacy section.
fn read_notes(header: &Header, headers: Segments<'_>, file: &[u8]) -> Result<Notes, NoteError> {
    let mut notes = Notes::default();
    for segment in headers.iter().filter(|s| s.p_type(LittleEndian) == PT_NOTE) {
        if let Ok(data) = segment.data(LittleEndian, file) {
            notes.add(data, segment.p_align(LittleEndian))?;
        }
    }
    if notes != Notes::default() {
        return Ok(notes);
    }
    // Section headers are often stripped or cut off; an image does not need them.
    let Ok(sections) = header.sections(LittleEndian, file) else { return Ok(notes) };
    for section in sections.iter().filter(|s| s.sh_type(LittleEndian) == SHT_NOTE) {
        if let Ok(data) = section.data(LittleEndian, file) {
            notes.add(data, section.sh_addralign(LittleEndian))?;
        }
    }
    if notes == Notes::default()
        && let Some((_, section)) = sections.section_by_name(LittleEndian, legacy_notes::SECTION)
        && let Ok(data) = section.data(LittleEndian, file)
    {
        notes.xen = Some(legacy_notes::parse(data)?);
    }
    Ok(notes)
}

/// Refuses what was built for another interface than Xen 3's, or another loader than the generic one.
fn check_xen(notes: XenNotes) -> Result<XenNotes, ImageError> {
    if !notes.xen_version.is_empty() && !notes.xen_version.starts_with("xen-3.0") {
        return Err(ImageError::XenVersion { found: notes.xen_version });
    }
    if !notes.loader.is_empty()
        && !notes.loader.starts_with("generic")
        && !notes.guest_os.starts_with("linux")
    {
        return Err(ImageError::Loader { found: notes.loader });
    }
    Ok(notes)
}

/// The first segment that should be in the file and is not: its notes may be lost with it.
fn outside(headers: Segments<'_>, file: &[u8]) -> Option<ImageError> {
    headers.iter().enumerate().find_map(|(index, header)| {
        let (offset, size) = (header.p_offset(LittleEndian), header.p_filesz(LittleEndian));
        let fits = offset.checked_add(size).is_some_and(|end| end <= file.len() as u64);
        let matters = matches!(header.p_type(LittleEndian), PT_LOAD | PT_NOTE) && !fits;
        matters.then_some(ImageError::SegmentOutsideFile { index, offset, size, file: file.len() })
    })
}

/// What an image without notes is instead.
fn foreign(header: &Header, headers: Segments<'_>) -> &'static str {
    let interpreted = headers.iter().any(|s| s.p_type(LittleEndian) == PT_INTERP);
    match header.e_type.get(LittleEndian) {
        ET_EXEC | ET_DYN if interpreted => "a dynamically linked program",
        ET_EXEC => "a static program, or a kernel that knows nothing of Xen",
        ET_DYN => "a shared library, or a position-independent program",
        object::elf::ET_REL => "an object file that was not linked yet",
        object::elf::ET_CORE => "a core dump",
        _ => "an ELF file of unknown type",
    }
}

/// The loadable segments at their pseudo-physical addresses, in order.
fn segments(headers: Segments<'_>, kind: &ImageKind, file: &[u8]) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        let sizes = (header.p_memsz(LittleEndian), header.p_filesz(LittleEndian));
        if header.p_type(LittleEndian) == PT_LOAD && sizes != (0, 0) {
            segments.push(segment(index, header, kind, file)?);
        }
    }
    segments.sort_by_key(|s| s.pa);
    for (a, b) in segments.iter().zip(segments.iter().skip(1)) {
        if a.range().end > b.pa {
            return Err(ImageError::Overlap { first: a.range(), second: b.range() });
        }
    }
    if segments.is_empty() { Err(ImageError::NothingToLoad) } else { Ok(segments) }
}

fn segment(
    index: usize,
    header: &<Header as FileHeader>::ProgramHeader,
    kind: &ImageKind,
    file: &[u8],
) -> Result<Segment, ImageError> {
    let (link_address, base) = match kind {
        ImageKind::Pv(notes) => (header.p_paddr(LittleEndian), notes.paddr_offset),
        ImageKind::Bare(notes) => (header.p_vaddr(LittleEndian), notes.virt_base),
    };
    let (mem_size, file_size) = (header.p_memsz(LittleEndian), header.p_filesz(LittleEndian));
    if file_size > mem_size {
        return Err(ImageError::SegmentSizes { index, file_size, mem_size });
    }
    let pa = link_address
        .checked_sub(base)
        .filter(|pa| pa.checked_add(mem_size).is_some_and(|end| end <= LARGEST_ADDRESS))
        .ok_or(ImageError::SegmentAddress { index, address: link_address, size: mem_size, base })?;
    let offset = header.p_offset(LittleEndian);
    let outside = ImageError::SegmentOutsideFile { index, offset, size: file_size, file: file.len() };
    let bounds = usize::try_from(offset).ok().zip(usize::try_from(file_size).ok());
    let file = bounds
        .and_then(|(offset, size)| Some(offset..offset.checked_add(size)?))
        .filter(|range| range.end <= file.len())
        .ok_or(outside)?;
    Ok(Segment { pa, file, mem_size, executable: header.p_flags(LittleEndian) & PF_X != 0 })
}
