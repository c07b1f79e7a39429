//! The tests in a test image: what the guest SDK's `tests!` put into the section `.paravane.tests`.
//!
//! The layout is that of `paravane_guest::test::Test`: address and length of the name, address of the function, flags.

use object::LittleEndian;
use object::elf::PT_LOAD;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use super::header;

const SECTION: &[u8] = b".paravane.tests";
const RECORD: usize = 32;
const SHOULD_PANIC: u64 = 1;
const IGNORED: u64 = 2;
/// Longer names are not names.
const LONGEST_NAME: usize = 1 << 12;

/// A test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestTest {
    /// Its path within its crate.
    pub name: String,
    /// Whether a panic is what it is expected to end with.
    pub should_panic: bool,
    /// Whether it runs only when asked for.
    pub ignored: bool,
}

/// The tests in an ELF file, sorted by name; `None` if it is not a test image.
pub fn tests(elf: &[u8]) -> Option<Vec<GuestTest>> {
    let sections = header(elf).ok()?.sections(LittleEndian, elf).ok()?;
    let (_, section) = sections.section_by_name(LittleEndian, SECTION)?;
    let records = section.data(LittleEndian, elf).ok()?;
    let mut tests: Vec<_> = records.chunks_exact(RECORD).filter_map(|record| test(elf, record)).collect();
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    (!tests.is_empty()).then_some(tests)
}

fn test(elf: &[u8], record: &[u8]) -> Option<GuestTest> {
    let word =
        |index: usize| Some(u64::from_le_bytes(record.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    let name = std::str::from_utf8(loaded(elf, word(0)?, usize::try_from(word(1)?).ok()?)?).ok()?;
    // The crate's own name says nothing: a test program is a crate.
    let name = name.split_once("::").map_or(name, |(_, path)| path);
    let flags = word(3)?;
    Some(GuestTest {
        name: name.to_owned(),
        should_panic: flags & SHOULD_PANIC != 0,
        ignored: flags & IGNORED != 0,
    })
}

/// The bytes of the file that are loaded at a virtual address.
fn loaded(elf: &[u8], address: u64, len: usize) -> Option<&[u8]> {
    if len > LONGEST_NAME {
        return None;
    }
    let segments = header(elf).ok()?.program_headers(LittleEndian, elf).ok()?;
    segments.iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD).find_map(|segment| {
        let start = usize::try_from(address.checked_sub(segment.p_vaddr(LittleEndian))?).ok()?;
        segment.data(LittleEndian, elf).ok()?.get(start..start.checked_add(len)?)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::builtin;

    #[test]
    fn a_kernel_is_no_test_image() {
        assert_eq!(super::tests(builtin::PV), None);
        assert_eq!(super::tests(b""), None);
    }

    /// A file with one segment, at 0x1000, whose data is the name.
    fn file(name: &[u8]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend(
            [
                [0_u64, 64, 0].map(u64::to_le_bytes).concat(),
                vec![0; 4],
                vec![64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0],
            ]
            .concat(),
        );
        elf.extend([1, 0, 0, 0, 4, 0, 0, 0]);
        let len = name.len() as u64;
        elf.extend([120, 0x1000, 0x1000, len, len, 1].map(u64::to_le_bytes).concat());
        elf.extend(name);
        elf
    }

    fn record(words: [u64; 4]) -> Vec<u8> {
        words.map(u64::to_le_bytes).concat()
    }

    #[test]
    fn a_record_names_its_test() {
        let elf = file(b"boot::memory::is_there");
        let found = test(&elf, &record([0x1000, 22, 0x2000, SHOULD_PANIC])).unwrap();
        assert_eq!(found, GuestTest { name: "memory::is_there".into(), should_panic: true, ignored: false });
        assert_eq!(test(&elf, &record([0x1001, 22, 0, 0])), None, "it ends outside");
        assert_eq!(test(&elf, &record([0xfff, 4, 0, 0])), None, "it begins outside");
    }

    proptest! {
        #[test]
        fn no_record_is_too_strange(words: [u64; 4], bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = test(&file(&bytes), &record(words));
            let _ = test(&file(&bytes), &bytes);
        }
    }
}
