//! ELF notes: what an image says of itself.
//!
//! Two owners speak: "Xen" for a paravirtual image (Xen public header `elfnote.h`), "Paravane" for an image
//! of a bare kernel. Meanings only; [`crate::image`] checks whether an address in a note makes sense.

use std::cmp::Ordering;

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::NoteIterator;
use paravane_abi::elfnote::*;

use super::features::{Features, UnknownFeature};

/// Note types of the owner "Paravane": an image of a bare kernel.
mod bare {
    pub const OWNER: &[u8] = b"Paravane";
    pub const PROTOCOL: u32 = 1;
    pub const VIRT_BASE: u32 = 2;
}

/// The bare boot protocol's version that this loader speaks.
pub const BARE_PROTOCOL: u32 = 1;

/// A note that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note's list is damaged.
    #[error("its notes are damaged: {0}")]
    Malformed(String),
    /// A number of a size that no number has.
    #[error("its {owner} note of type {kind} holds {len} bytes where a number of 4 or 8 is expected")]
    NotANumber {
        /// Who defines the note.
        owner: &'static str,
        /// The note's type.
        kind: u32,
        /// Bytes that it holds.
        len: usize,
    },
    /// A feature that cannot be provided.
    #[error(transparent)]
    Feature(#[from] UnknownFeature),
}

/// What a paravirtual image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// GUEST_OS: the operating system's name.
    pub guest_os: String,
    /// GUEST_VERSION: its version.
    pub guest_version: String,
    /// XEN_VERSION: the interface that it was built for, "xen-3.0".
    pub xen_version: String,
    /// LOADER: the loader that it was made for, "generic".
    pub loader: String,
    /// PAE_MODE: of no meaning to 64-bit images.
    pub pae_mode: String,
    /// BSD_SYMTAB: it wants its symbol table loaded behind it.
    pub bsd_symtab: bool,
    /// VIRT_BASE: the virtual address of pseudo-physical address 0; 0 when absent.
    pub virt_base: u64,
    /// PADDR_OFFSET: what to take from an ELF `p_paddr` to get a pseudo-physical address.
    pub paddr_offset: u64,
    /// ENTRY: the entry point, when it is not ELF's own.
    pub entry: Option<u64>,
    /// HYPERCALL_PAGE: the page to be filled with hypercall stubs.
    pub hypercall_page: Option<u64>,
    /// INIT_P2M: where the list of frames is to be mapped, instead of inside the initial mapping.
    pub init_p2m: Option<u64>,
    /// FEATURES and SUPPORTED_FEATURES together.
    pub features: Features,
    /// MOD_START_PFN: the initial RAM disk may stay out of the initial mapping.
    pub mod_start_pfn: bool,
    /// HV_START_LOW: the lowest address at which the hypervisor's range may begin.
    pub hv_start_low: Option<u64>,
    /// L1_MFN_VALID: mask and value pairs that tell entries which hold a frame though not present.
    pub l1_mfn_valid: Vec<(u64, u64)>,
    /// SUSPEND_CANCEL: a suspend may be called off.
    pub suspend_cancel: bool,
    /// PHYS32_ENTRY: the entry point for a 32-bit start; of no meaning to a paravirtual one.
    pub phys32_entry: Option<u64>,
}

/// What an image of a bare kernel says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BareNotes {
    /// The boot protocol's version.
    pub protocol: u32,
    /// The virtual address of physical address 0.
    pub virt_base: u64,
}

/// All that the notes of one image said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// From the owner "Xen", if it spoke.
    pub xen: Option<XenNotes>,
    /// From the owner "Paravane", if it spoke.
    pub bare: Option<BareNotes>,
}

/// One note: who defines it, its type and its content.
struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    desc: &'a [u8],
}

/// All notes of a segment, if they are packed to `align` bytes.
fn notes_of(data: &[u8], align: u64) -> Result<Vec<Note<'_>>, NoteError> {
    let malformed = |e: object::read::Error| NoteError::Malformed(e.to_string());
    let notes =
        NoteIterator::<FileHeader64<LittleEndian>>::new(LittleEndian, align, data).map_err(malformed)?;
    notes
        .map(|note| {
            let note = note.map_err(malformed)?;
            Ok(Note { owner: note.name(), kind: note.n_type(LittleEndian), desc: note.desc() })
        })
        .collect()
}

impl Notes {
    /// Adds the notes in `data`, a note segment or section whose alignment is `align`.
    pub fn add(&mut self, data: &[u8], align: u64) -> Result<(), NoteError> {
        // Linkers give segments other alignments than the records inside have: those are packed to 4, as Xen's loader
        // takes them whatever the segment says, or to 8. The alignment that yields more known notes is the right one.
        let ours = |notes: &Result<Vec<Note<'_>>, NoteError>| match notes {
            Ok(notes) => {
                Some(notes.iter().filter(|n| matches!(n.owner, XEN_ELFNOTE_OWNER | bare::OWNER)).count())
            }
            Err(_) => None,
        };
        let (by_4, by_8) = (notes_of(data, 4), notes_of(data, 8));
        let notes = match ours(&by_4).cmp(&ours(&by_8)) {
            Ordering::Less => by_8?,
            Ordering::Equal if align == 8 => by_8?,
            _ => by_4?,
        };
        for Note { owner, kind, desc } in notes {
            match owner {
                XEN_ELFNOTE_OWNER => self.xen.get_or_insert_default().add(kind, desc)?,
                bare::OWNER => self.bare.get_or_insert_default().add(kind, desc)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl XenNotes {
    fn add(&mut self, kind: u32, desc: &[u8]) -> Result<(), NoteError> {
        let number = || number("Xen", kind, desc);
        match kind {
            XEN_ELFNOTE_ENTRY => self.entry = Some(number()?),
            XEN_ELFNOTE_HYPERCALL_PAGE => self.hypercall_page = Some(number()?),
            XEN_ELFNOTE_VIRT_BASE => self.virt_base = number()?,
            XEN_ELFNOTE_PADDR_OFFSET => self.paddr_offset = number()?,
            XEN_ELFNOTE_XEN_VERSION => self.xen_version = string(desc),
            XEN_ELFNOTE_GUEST_OS => self.guest_os = string(desc),
            XEN_ELFNOTE_GUEST_VERSION => self.guest_version = string(desc),
            XEN_ELFNOTE_LOADER => self.loader = string(desc),
            XEN_ELFNOTE_PAE_MODE => self.pae_mode = string(desc),
            XEN_ELFNOTE_FEATURES => {
                let parsed = Features::parse(&string(desc))?;
                self.features.supported |= parsed.supported;
                self.features.required |= parsed.required;
            }
            XEN_ELFNOTE_BSD_SYMTAB => self.bsd_symtab = string(desc) == "yes",
            XEN_ELFNOTE_HV_START_LOW => self.hv_start_low = Some(number()?),
            XEN_ELFNOTE_L1_MFN_VALID => self.l1_mfn_valid = mask_value_pairs(desc),
            XEN_ELFNOTE_SUSPEND_CANCEL => self.suspend_cancel = number()? != 0,
            XEN_ELFNOTE_INIT_P2M => self.init_p2m = Some(number()?),
            XEN_ELFNOTE_MOD_START_PFN => self.mod_start_pfn = number()? != 0,
            // Bits beyond the first submap are features of other interfaces.
            XEN_ELFNOTE_SUPPORTED_FEATURES => self.features.supported |= (number()? & 0xffff_ffff) as u32,
            XEN_ELFNOTE_PHYS32_ENTRY => self.phys32_entry = Some(number()?),
            _ => {}
        }
        Ok(())
    }
}

impl BareNotes {
    fn add(&mut self, kind: u32, desc: &[u8]) -> Result<(), NoteError> {
        let number = || number("Paravane", kind, desc);
        match kind {
            bare::PROTOCOL => self.protocol = u32::try_from(number()?).unwrap_or(u32::MAX),
            bare::VIRT_BASE => self.virt_base = number()?,
            _ => {}
        }
        Ok(())
    }
}

fn number(owner: &'static str, kind: u32, desc: &[u8]) -> Result<u64, NoteError> {
    if let Ok(bytes) = <[u8; 8]>::try_from(desc) {
        Ok(u64::from_le_bytes(bytes))
    } else if let Ok(bytes) = <[u8; 4]>::try_from(desc) {
        Ok(u32::from_le_bytes(bytes).into())
    } else if let [byte] = desc {
        Ok((*byte).into())
    } else {
        Err(NoteError::NotANumber { owner, kind, len: desc.len() })
    }
}

/// A string as far as it may be shown to people: up to its NUL, bounded, without control characters.
pub(super) fn string(desc: &[u8]) -> String {
    const LONGEST: usize = 1024;
    let text = desc.split(|b| *b == 0).next().unwrap_or_default();
    let text = text.get(..LONGEST).unwrap_or(text);
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect()
}

fn mask_value_pairs(desc: &[u8]) -> Vec<(u64, u64)> {
    let words: Vec<u64> = desc.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    words.as_chunks::<2>().0.iter().map(|[mask, value]| (*mask, *value)).collect()
}

#[cfg(test)]
mod tests {
    use crate::image::notes::*;
    use crate::testing::elf::note;

    fn parse(data: &[u8]) -> Result<Notes, NoteError> {
        let mut notes = Notes::default();
        notes.add(data, 4).map(|()| notes)
    }

    #[test]
    fn every_xen_note_is_understood() {
        let number = |kind, value: u64| note("Xen", kind, &value.to_le_bytes());
        let text = |kind, value: &str| note("Xen", kind, format!("{value}\0").as_bytes());
        let pairs: Vec<u8> = [1u64, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
        let data = [
            number(1, 0x11),
            number(2, 0x22),
            number(3, 0x33),
            number(4, 0x44),
            text(5, "xen-3.0"),
            text(6, "os"),
            text(7, "1\x1b[31m"),
            text(8, "generic"),
            text(9, "yes"),
            text(10, "!writable_page_tables"),
            text(11, "yes"),
            number(12, 0xcc),
            note("Xen", 13, &pairs),
            note("Xen", 14, &1u32.to_le_bytes()),
            number(15, 0xff),
            note("Xen", 16, &[1]),
            note("Xen", 17, &0x8801u32.to_le_bytes()),
            number(18, 0x1212),
            note("GNU", 3, &[0; 20]),
            number(99, 0),
        ]
        .concat();
        let expected = XenNotes {
            guest_os: "os".into(),
            guest_version: "1[31m".into(),
            xen_version: "xen-3.0".into(),
            loader: "generic".into(),
            pae_mode: "yes".into(),
            bsd_symtab: true,
            virt_base: 0x33,
            paddr_offset: 0x44,
            entry: Some(0x11),
            hypercall_page: Some(0x22),
            init_p2m: Some(0xff),
            features: Features { supported: 0x8801, required: 1 },
            mod_start_pfn: true,
            hv_start_low: Some(0xcc),
            l1_mfn_valid: vec![(1, 2)],
            suspend_cancel: true,
            phys32_entry: Some(0x1212),
        };
        assert_eq!(parse(&data), Ok(Notes { xen: Some(expected), bare: None }));
    }

    #[test]
    fn damage_is_named() {
        let err = parse(&note("Xen", 3, &[1, 2, 3])).unwrap_err();
        assert_eq!(err, NoteError::NotANumber { owner: "Xen", kind: 3, len: 3 });
        let mut cut = note("Xen", 3, &[0; 8]);
        cut.truncate(18);
        assert!(matches!(parse(&cut), Err(NoteError::Malformed(_))));
        assert!(matches!(parse(&note("Xen", 10, b"!no_such_thing\0")), Err(NoteError::Feature(_))));
    }

    /// One note, padded to 8 bytes: GNU's linker does so for notes of its own.
    fn note_by_8(kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut out = [4u32, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
        out.extend(b"Xen\0");
        out.extend(desc);
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }

    /// Xen's loader takes records as packed to 4 bytes, whatever the segment's alignment.
    #[test]
    fn notes_are_found_however_they_are_packed_and_aligned() {
        let by_4 = [note("Xen", 5, b"xen-3.0\0"), note("Xen", 16, &[1]), note("Xen", 3, &7u64.to_le_bytes())]
            .concat();
        let by_8 =
            [note_by_8(5, b"xen-3.0\0"), note_by_8(16, &[1]), note_by_8(3, &7u64.to_le_bytes())].concat();
        assert_ne!(by_4, by_8, "broken test");
        for data in [by_4, by_8] {
            for align in [0, 1, 2, 3, 4, 8, 16, 4096, 1 << 63] {
                let mut notes = Notes::default();
                notes.add(&data, align).unwrap();
                let xen = notes.xen.unwrap_or_default();
                let found = (xen.virt_base, xen.mod_start_pfn, xen.xen_version.as_str());
                assert_eq!(found, (7, true, "xen-3.0"), "align {align}");
            }
        }
    }

    #[test]
    fn other_owners_do_not_count() {
        assert_eq!(parse(&note("GNU", 3, &[0; 20])), Ok(Notes::default()));
        assert_eq!(parse(&[]), Ok(Notes::default()));
    }
}
