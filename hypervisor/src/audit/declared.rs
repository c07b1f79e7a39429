//! Uses that an image declares to be deliberate, each with its reason.
//!
//! A kernel may know better than a rule: an IRETQ to the privilege that it runs at needs nobody's help. It says
//! so where the instruction is, in a section that is not loaded: the instruction's address (8 bytes, little
//! endian), then the reason, ended by a zero byte; one such entry after the other. The section is the image's
//! word, which an audit repeats and does not vouch for.

use std::collections::BTreeMap;

use object::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader};

use crate::domain::image::Header;

/// The section's name.
pub const SECTION: &str = ".paravane.audit";

/// More declarations than any kernel has a reason for.
const MAX_ENTRIES: usize = 10_000;
/// Longer reasons are cut.
const MAX_REASON: usize = 200;

/// Reasons by address.
#[derive(Debug, Default)]
pub(super) struct Declared(BTreeMap<u64, String>);

impl Declared {
    /// What the file declares; what is damaged ends the list.
    pub fn read(header: &Header, file: &[u8]) -> Self {
        let section = header.sections(LittleEndian, file).ok().and_then(|sections| {
            let (_, section) = sections.section_by_name(LittleEndian, SECTION.as_bytes())?;
            section.data(LittleEndian, file).ok()
        });
        Self(entries(section.unwrap_or_default()))
    }

    /// Why the instruction at `address` is there, if the image says.
    pub fn reason(&self, address: u64) -> Option<&str> {
        self.0.get(&address).map(String::as_str)
    }
}

fn entries(mut rest: &[u8]) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    while let Some((address, tail)) = rest.split_first_chunk()
        && let Some(end) = tail.iter().position(|byte| *byte == 0)
        && found.len() < MAX_ENTRIES
    {
        let (reason, tail) = tail.split_at(end);
        let reason = String::from_utf8_lossy(reason);
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        found.insert(u64::from_le_bytes(*address), reason);
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
        let expected = [(7, String::new()), (0x4010_0000, "why[2J not".to_owned())];
        assert_eq!(entries(&section), BTreeMap::from(expected));
        assert!(entries(&section[..7]).is_empty() && entries(&[]).is_empty());
    }
}
