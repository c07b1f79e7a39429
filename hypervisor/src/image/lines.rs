//! Source lines for addresses, from an image's DWARF sections.
//!
//! Read only when someone asks where a guest died or what an audit found; an image without debugging
//! information has no lines, which is not an error. Compressed debugging sections are left alone.

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian as Gimli, Section, SectionId};
use object::LittleEndian;
use object::elf::{SHF_COMPRESSED, SHT_NOBITS};
use object::read::elf::{FileHeader, SectionHeader};

use super::Header;
use crate::text::printable::printable;

/// A place in a source file; displayed fit for a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The file, as the compiler was given it.
    pub file: String,
    /// The line, counted from 1; 0 when the compiler did not say.
    pub line: u32,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", printable(&self.file), self.line)
    }
}

/// An image's line tables.
pub struct Lines<'a>(Context<EndianSlice<'a, Gimli>>);

impl<'a> Lines<'a> {
    /// The line tables of an ELF file; `None` when it has none that can be read.
    pub fn new(elf: &'a [u8]) -> Option<Self> {
        let header = Header::parse(elf).ok()?;
        let sections = header.sections(LittleEndian, elf).ok()?;
        let load = |id: SectionId| {
            let section = sections.section_by_name(LittleEndian, id.name().as_bytes()).map(|(_, s)| s);
            let plain = |s: &&<Header as FileHeader>::SectionHeader| {
                s.sh_flags(LittleEndian) & u64::from(SHF_COMPRESSED) == 0
                    && s.sh_type(LittleEndian) != SHT_NOBITS
            };
            let data = section.filter(plain).and_then(|s| s.data(LittleEndian, elf).ok());
            Ok::<_, std::convert::Infallible>(EndianSlice::new(data.unwrap_or_default(), Gimli))
        };
        let Ok(dwarf) = Dwarf::load(load);
        if dwarf.debug_line.reader().is_empty() {
            return None;
        }
        Context::from_dwarf(dwarf).ok().map(Self)
    }

    /// The line that the instruction at `address` was compiled from.
    pub fn at(&self, address: u64) -> Option<Line> {
        let location = self.0.find_location(address).ok()??;
        Some(Line { file: location.file?.to_owned(), line: location.line.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::image::Image;
    use crate::image::lines::*;
    use crate::testing::elf::Elf;

    #[test]
    fn the_reference_guests_have_lines() {
        for elf in [crate::image::builtin::PV, crate::image::builtin::BARE] {
            let lines = Lines::new(elf).unwrap();
            let panics = symbol(elf, "panic").unwrap();
            let line = lines.at(panics).unwrap();
            assert!(line.file.ends_with(".rs") && line.line > 0, "{line}");
            assert_eq!(lines.at(Image::parse(elf).unwrap().virt_base()), None, "nothing is there");
        }
    }

    /// The address of some function whose name contains `part`.
    fn symbol(elf: &[u8], part: &str) -> Option<u64> {
        use object::read::elf::Sym;
        let header = Header::parse(elf).ok()?;
        let sections = header.sections(LittleEndian, elf).ok()?;
        let table = sections.symbols(LittleEndian, elf, object::elf::SHT_SYMTAB).ok()?;
        let named = |s: &&<Header as FileHeader>::Sym| {
            let name = s.name(LittleEndian, table.strings()).unwrap_or_default();
            s.st_type() == object::elf::STT_FUNC && String::from_utf8_lossy(name).contains(part)
        };
        table.iter().find(named).map(|s| s.st_value(LittleEndian))
    }

    #[test]
    fn no_lines_is_no_error() {
        assert!(Lines::new(&Elf::plain().bytes()).is_none());
        assert!(Lines::new(b"not ELF").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn damaged_tables_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200),
            probes in prop::collection::vec(0u64..0x2_0000, 16),
        ) {
            let mut elf = crate::image::builtin::PV.to_vec();
            // Mostly what comes after the code: tables, and the section headers at the end.
            let start = elf.len() / 4;
            for (at, byte) in changes {
                let at = start + at.index(elf.len() - start);
                elf[at] = byte;
            }
            if let Some(lines) = Lines::new(&elf) {
                for probe in probes {
                    lines.at(0x4010_0000 + probe);
                }
            }
        }
    }
}
