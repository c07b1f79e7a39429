//! Names for addresses: the one clear line about a guest that died says where.
//!
//! Symbols are read only when someone asks; a stripped image has none, which is not an error.

use std::fmt::{self, Write};
use std::ops::Range;

use object::LittleEndian;
use object::elf::{FileHeader64, SHN_ABS, SHN_UNDEF, SHT_SYMTAB, STT_FUNC, STT_NOTYPE, STT_OBJECT};
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym, SymbolTable};

use super::lines::Lines;
use crate::text::printable::printable;

type Header = FileHeader64<LittleEndian>;

/// The most bytes of a name that are looked at, and of its readable form that are kept. Names share their bytes, so
/// that a small file can have many thousand of them that are as long as the file.
pub const LONGEST_NAME: usize = 1024;

/// The names of an image's symbols.
#[derive(Clone, Copy)]
pub(super) struct Names<'a>(&'a [u8]);

impl<'a> Names<'a> {
    /// Those of `table`.
    pub(super) fn of(
        elf: &'a [u8],
        sections: &SectionTable<'a, Header>,
        table: &SymbolTable<'a, Header>,
    ) -> Self {
        let section = sections.section(table.string_section()).ok();
        Self::within(section.and_then(|section| section.data(LittleEndian, elf).ok()).unwrap_or_default())
    }

    /// Those that are in the bytes of a string table.
    pub(super) const fn within(strings: &'a [u8]) -> Self {
        Self(strings)
    }

    /// The string table.
    pub(super) const fn strings(self) -> &'a [u8] {
        self.0
    }

    /// The bytes of the name that begins at `offset`, the first [`LONGEST_NAME`] of them; `None` if it has none.
    pub(super) fn at(self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.0.get(usize::try_from(offset).ok()?..)?;
        let rest = rest.get(..LONGEST_NAME).unwrap_or(rest);
        let name = rest.split(|byte| *byte == 0).next()?;
        (!name.is_empty()).then_some(name)
    }

    /// Whether a name begins at `offset`. Costs the same for all names.
    pub(super) fn has(self, offset: u32) -> bool {
        usize::try_from(offset).ok().and_then(|at| self.0.get(at)).is_some_and(|first| *first != 0)
    }
}

/// The function (or other symbol) that `rip` lies in, as `name+0x12`; Rust names are demangled, and the text is
/// fit for a terminal.
pub fn symbolize(elf: &[u8], rip: u64) -> Option<String> {
    let header = Header::parse(elf).ok()?;
    let sections = header.sections(LittleEndian, elf).ok()?;
    let symbols = sections.symbols(LittleEndian, elf, SHT_SYMTAB).ok()?;
    let names = Names::of(elf, &sections, &symbols);
    let mut best: Option<(Rank, u32)> = None;
    for (index, symbol) in symbols.enumerate() {
        let Some(rank) = Rank::of(symbol, rip) else { continue };
        let section = || extent(&sections, symbols.symbol_section(LittleEndian, symbol, index).ok()??);
        // An assembly label does not say where it ends; its section's end is the latest.
        if !rank.spans && !section().is_some_and(|section| section.contains(&rip)) {
            continue;
        }
        let name = symbol.st_name(LittleEndian);
        if best.is_none_or(|(other, _)| rank > other) && names.has(name) {
            best = Some((rank, name));
        }
    }
    let (rank, name) = best?;
    let name = printable(&readable(names.at(name)?)).to_string();
    match rip - rank.value {
        0 => Some(name),
        offset => Some(format!("{name}+{offset:#x}")),
    }
}

/// Where the image's functions are, in order and apart from each other, as far as its symbols say where they end.
pub fn functions(elf: &[u8]) -> Vec<Range<u64>> {
    let found = || -> Option<Vec<Range<u64>>> {
        let header = Header::parse(elf).ok()?;
        let sections = header.sections(LittleEndian, elf).ok()?;
        let symbols = sections.symbols(LittleEndian, elf, SHT_SYMTAB).ok()?;
        let function = |symbol: &<Header as FileHeader>::Sym| {
            let section = symbol.st_shndx(LittleEndian);
            let defined = section != SHN_UNDEF && section != SHN_ABS;
            let start = symbol.st_value(LittleEndian);
            let end = start.checked_add(symbol.st_size(LittleEndian))?;
            (defined && symbol.st_type() == STT_FUNC && start < end).then_some(start..end)
        };
        Some(symbols.iter().filter_map(function).collect())
    };
    let mut all = found().unwrap_or_default();
    all.sort_unstable_by_key(|function| (function.start, function.end));
    let mut end = 0;
    all.retain(|function| {
        let apart = function.start >= end;
        end = end.max(function.end);
        apart
    });
    all
}

/// The addresses of a section.
pub(super) fn extent(sections: &SectionTable<'_, Header>, index: object::SectionIndex) -> Option<Range<u64>> {
    let section = sections.section(index).ok()?;
    let start = section.sh_addr(LittleEndian);
    Some(start..start.checked_add(section.sh_size(LittleEndian))?)
}

/// Where `rip` is, as far as the image tells: `name+0x12 (file:line)`, or only the one or the other.
pub fn locate(elf: &[u8], rip: u64) -> Option<String> {
    let line = Lines::new(elf).and_then(|lines| lines.at(rip));
    match (symbolize(elf, rip), line) {
        (Some(name), Some(line)) => Some(format!("{name} ({line})")),
        (name, line) => name.or(line.map(|line| line.to_string())),
    }
}

/// A symbol's name with Rust names demangled, without the hash that closes them, cut at [`LONGEST_NAME`]. It is a
/// stranger's text: print it by [`printable`].
pub fn readable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name.get(..LONGEST_NAME).unwrap_or(name));
    let mut text = Cut(String::new());
    // It fails where the text is cut, and a short mangled name may stand for a megabyte.
    let _ = write!(text, "{:#}", rustc_demangle::demangle(&name));
    text.0
}

/// Text that takes no more than [`LONGEST_NAME`] bytes.
struct Cut(String);

impl Write for Cut {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = LONGEST_NAME.saturating_sub(self.0.len());
        let fits = more.get(..more.floor_char_boundary(room)).unwrap_or(more);
        self.0.push_str(fits);
        if fits.len() == more.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// How well a symbol names an address: one that spans it, then the nearest, then functions before labels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) spans: bool,
    pub(super) value: u64,
    function: bool,
}

impl Rank {
    fn of(symbol: &<Header as FileHeader>::Sym, rip: u64) -> Option<Self> {
        let (rank, size) = Self::with_size(symbol)?;
        let offset = rip.checked_sub(rank.value)?;
        // A symbol that says where it ends does not name what follows it.
        (size == 0 || offset < size).then_some(rank)
    }

    /// The rank that the symbol has for the addresses that it may name, and its size: 0 if it does not say where it
    /// ends. `None` if it names no address.
    pub(super) fn with_size(symbol: &<Header as FileHeader>::Sym) -> Option<(Self, u64)> {
        let section = symbol.st_shndx(LittleEndian);
        let kind = symbol.st_type();
        if section == SHN_UNDEF || section == SHN_ABS || ![STT_FUNC, STT_OBJECT, STT_NOTYPE].contains(&kind) {
            return None;
        }
        let (value, size) = (symbol.st_value(LittleEndian), symbol.st_size(LittleEndian));
        Some((Self { spans: size != 0, value, function: kind == STT_FUNC }, size))
    }
}

#[cfg(test)]
mod tests {
    use object::elf::SHT_PROGBITS;

    use crate::image::symbols::*;
    use crate::testing::elf::{Elf, Symbol};

    fn elf() -> Elf {
        let symbol = |name, value, size, kind| Symbol { name, value, size, kind };
        let mut elf = Elf::plain();
        elf.symbols = vec![
            symbol("_start", 0x1000, 0, STT_NOTYPE),
            symbol("_ZN6kernel4main17h0123456789abcdefE", 0x1010, 0x20, STT_FUNC),
            symbol("_RNvCs1234_6kernel5panic", 0x1030, 0x10, STT_FUNC),
            symbol("inner", 0x1014, 4, STT_FUNC),
            symbol("label", 0x1018, 0, STT_NOTYPE),
            symbol("_end", 0x1040, 0, STT_NOTYPE),
            symbol("kernel.rs", 0, 0, object::elf::STT_FILE),
        ];
        elf.sections = vec![(".text", SHT_PROGBITS, vec![0; 0x40])];
        elf.code_sections = vec![(".text", 0x1000)];
        elf
    }

    #[test]
    fn functions_are_those_that_say_where_they_end() {
        assert_eq!(functions(&elf().bytes()), [0x1010..0x1030, 0x1030..0x1040]);
        assert_eq!(functions(b"no image"), []);
    }

    #[test]
    fn the_best_symbol_wins() {
        let image = elf().bytes();
        let name = |rip| symbolize(&image, rip);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000).as_deref(), Some("_start"));
        assert_eq!(name(0x100f).as_deref(), Some("_start+0xf"));
        assert_eq!(name(0x1010).as_deref(), Some("kernel::main"));
        assert_eq!(name(0x1016).as_deref(), Some("inner+0x2"));
        assert_eq!(name(0x102f).as_deref(), Some("kernel::main+0x1f"), "a function beats a nearer label");
        assert_eq!(name(0x1033).as_deref(), Some("kernel::panic+0x3"));
    }

    #[test]
    fn an_address_outside_the_labels_section_has_no_symbol() {
        let mut elf = elf();
        elf.symbols.retain(|symbol| symbol.size == 0);
        let image = elf.bytes();
        let name = |rip| symbolize(&image, rip);
        assert_eq!(name(0x103f).as_deref(), Some("label+0x27"));
        for rip in [0x1040, 0x2000, 0x8000_0000_0000, u64::MAX] {
            assert_eq!(name(rip), None, "{rip:#x}");
        }
    }

    #[test]
    fn what_a_name_would_do_to_a_terminal_is_escaped() {
        let mut elf = elf();
        elf.symbols[3].name = "in\u{202e}ner\x1b[2J";
        assert_eq!(symbolize(&elf.bytes(), 0x1016).as_deref(), Some(r"in\u{202e}ner\u{1b}[2J+0x2"));
    }

    #[test]
    fn a_long_name_is_cut() {
        // Made once, for the rest of the test's process.
        let long: &'static str = "n".repeat(1 << 20).leak();
        let mut elf = elf();
        elf.symbols[3].name = long;
        let image = elf.bytes();
        let cut = &long[..LONGEST_NAME];
        assert_eq!(symbolize(&image, 0x1014).as_deref(), Some(cut));
        let map = crate::image::symbol_map::SymbolMap::new(&image);
        assert_eq!(map.symbolize(0x1014).as_deref(), Some(cut));
        assert_eq!(readable(long.as_bytes()), cut);
        for name in ["\u{20ac}".repeat(1000).as_bytes(), &[0xff; 2000]] {
            assert!(readable(name).len() <= LONGEST_NAME);
        }
    }

    #[test]
    fn what_is_looked_at_of_a_name_has_a_limit() {
        let strings = [&b"\0ab\0"[..], &[b'x'; 2 * LONGEST_NAME]].concat();
        let names = Names::within(&strings);
        assert_eq!(names.at(1), Some(&b"ab"[..]));
        assert_eq!(names.at(4).map(<[u8]>::len), Some(LONGEST_NAME), "no end within it");
        for (offset, has) in [(0, false), (1, true), (3, false), (4, true), (u32::MAX, false)] {
            assert_eq!((names.has(offset), names.at(offset).is_some()), (has, has), "{offset}");
        }
    }

    #[test]
    fn no_symbols_is_no_error() {
        assert_eq!(symbolize(&Elf::plain().bytes(), 0x40_0000), None);
        assert_eq!(symbolize(b"not ELF", 0), None);
    }
}
