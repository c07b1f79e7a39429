//! The `__xen_guest` section: notes from before there were notes.
//!
//! A string of `KEY=VALUE` pairs separated by commas; each key is named beside the note that replaced it in
//! the Xen public header `elfnote.h`. Nothing but that translation belongs here.

use super::features::{Features, UnknownFeature};
use super::notes::{XenNotes, string};

/// The section's name.
pub const SECTION: &[u8] = b"__xen_guest";

/// Reads the section's string.
///
/// A value that is not a number is ignored, as if the key were absent: the addresses that follow from the defaults
/// are checked like any other.
pub fn parse(section: &[u8]) -> Result<XenNotes, UnknownFeature> {
    let text = string(section);
    let mut notes = XenNotes::default();
    let mut paddr_offset = None;
    let mut hypercall_pfn = None;
    for item in text.split(',') {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        match key.trim() {
            "GUEST_OS" => notes.guest_os = value.to_owned(),
            "GUEST_VER" => notes.guest_version = value.to_owned(),
            "XEN_VER" => notes.xen_version = value.to_owned(),
            "LOADER" => notes.loader = value.to_owned(),
            "PAE" => notes.pae_mode = value.to_owned(),
            "FEATURES" => notes.features = Features::parse(value)?,
            "BSD_SYMTAB" => notes.bsd_symtab = true,
            "VIRT_BASE" => notes.virt_base = number(value).unwrap_or(0),
            "VIRT_ENTRY" => notes.entry = number(value),
            "ELF_PADDR_OFFSET" => paddr_offset = number(value),
            "HYPERCALL_PAGE" => hypercall_pfn = number(value),
            _ => {}
        }
    }
    notes.paddr_offset = paddr_offset.unwrap_or(notes.virt_base);
    notes.hypercall_page = hypercall_pfn.and_then(|pfn| pfn.checked_mul(4096)?.checked_add(notes.virt_base));
    Ok(notes)
}

fn number(value: &str) -> Option<u64> {
    let value = value.trim();
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use crate::image::legacy_notes::*;

    #[test]
    fn keys_become_notes() {
        let text = "GUEST_OS=old,XEN_VER=xen-3.0,VIRT_BASE=0x40000000,VIRT_ENTRY=0x40100000,\
                    HYPERCALL_PAGE=0x101,FEATURES=pae_pgdir_above_4gb,LOADER=generic,BSD_SYMTAB,X=1\0junk";
        let notes = parse(text.as_bytes()).unwrap();
        assert_eq!((notes.guest_os.as_str(), notes.loader.as_str()), ("old", "generic"));
        assert_eq!(notes.paddr_offset, 0x4000_0000, "the legacy default is VIRT_BASE");
        assert_eq!(notes.hypercall_page, Some(0x4010_1000), "the legacy value is a page number");
        assert_eq!((notes.entry, notes.bsd_symtab), (Some(0x4010_0000), true));
        assert_eq!(notes.features.supported, 1 << 4);
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let notes = parse(b"HYPERCALL_PAGE=0xffffffffffffffff,VIRT_BASE=many,ELF_PADDR_OFFSET=7").unwrap();
        assert_eq!((notes.hypercall_page, notes.virt_base, notes.paddr_offset), (None, 0, 7));
    }
}
