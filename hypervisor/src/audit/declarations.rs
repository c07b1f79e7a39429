//! Uses that an image declares to be deliberate, each with its reason.
//!
//! Some uses of a sensitive instruction are correct, such as an IRETQ to the same privilege level. An image declares
//! them in a section that is not loaded, as a list of entries: the instruction's address (8 bytes, little endian), then
//! the reason, ended by a zero byte. The audit reports the declarations, but does not check them.

use std::collections::BTreeMap;

use object::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader};

use super::regions::Section;
use super::relocation::{Place, Relocations};
use crate::image::Header;

/// The section's name.
pub const SECTION: &str = ".paravane.audit";

/// The most declarations that are read.
const MAX_ENTRIES: usize = 10_000;
/// The most characters of a reason that are kept.
const MAX_REASON: usize = 200;

/// Reasons by address; in an object file, by section and offset in it.
#[derive(Debug, Default)]
pub(super) struct Declared {
    linked: BTreeMap<u64, String>,
    unlinked: BTreeMap<Place, String>,
}

impl Declared {
    /// Reads the declarations of a file, up to the first damaged entry.
    pub fn read(header: &Header, file: &[u8], relocations: &Relocations<'_>) -> Self {
        let mut declared = Self::default();
        let section = header.sections(LittleEndian, file).ok().and_then(|sections| {
            let (index, section) = sections.section_by_name(LittleEndian, SECTION.as_bytes())?;
            Some((index, section.data(LittleEndian, file).ok()?))
        });
        let Some((index, data)) = section else { return declared };
        for Entry { offset, address, reason } in entries(data) {
            match relocations.pointer((index.0, offset)) {
                Some(place) => declared.unlinked.insert(place, reason).is_some(),
                None => declared.linked.insert(address, reason).is_some(),
            };
        }
        declared
    }

    /// The declared reason for the instruction at `address` of `section`.
    pub fn reason(&self, section: Option<Section<'_>>, address: u64) -> Option<&str> {
        let unlinked = section.and_then(|section| self.unlinked.get(&(section.index, address)));
        unlinked.or_else(|| self.linked.get(&address)).map(String::as_str)
    }
}

/// One declaration.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Its offset in the section.
    offset: u64,
    address: u64,
    reason: String,
}

fn entries(section: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut rest = section;
    while let Some((address, tail)) = rest.split_first_chunk()
        && let Some(end) = tail.iter().position(|byte| *byte == 0)
        && found.len() < MAX_ENTRIES
    {
        let offset = (section.len() - rest.len()) as u64;
        let (reason, tail) = tail.split_at(end);
        let reason = String::from_utf8_lossy(reason).chars().take(MAX_REASON).collect();
        found.push(Entry { offset, address: u64::from_le_bytes(*address), reason });
        rest = tail.get(1..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_each_other_until_one_is_damaged() {
        let mut section = Vec::new();
        for (address, reason) in [(0x4010_0000u64, "why\x1b[2J not\0"), (7, "\0"), (9, "never ends")] {
            section.extend(address.to_le_bytes());
            section.extend(reason.bytes());
        }
        let found: Vec<_> = entries(&section).into_iter().map(|e| (e.offset, e.address, e.reason)).collect();
        assert_eq!(found, [(0, 0x4010_0000, "why\x1b[2J not".to_owned()), (20, 7, String::new())]);
        assert!(entries(&section[..7]).is_empty() && entries(&[]).is_empty());
    }
}
