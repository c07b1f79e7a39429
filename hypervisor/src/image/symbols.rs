//! Names for addresses: the one clear line about a guest that died says where.
//!
//! Symbols are read only when someone asks; a stripped image has none, which is not an error.

use std::ops::Range;

use object::LittleEndian;
use object::elf::{FileHeader64, SHN_ABS, SHN_UNDEF, SHT_SYMTAB, STT_FUNC, STT_NOTYPE, STT_OBJECT};
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym};

use super::lines::Lines;
use crate::text::printable::printable;

type Header = FileHeader64<LittleEndian>;

/// The function (or other symbol) that `rip` lies in, as `name+0x12`; Rust names are demangled, and the text is
/// fit for a terminal.
pub fn symbolize(elf: &[u8], rip: u64) -> Option<String> {
    let header = Header::parse(elf).ok()?;
    let sections = header.sections(LittleEndian, elf).ok()?;
    let symbols = sections.symbols(LittleEndian, elf, SHT_SYMTAB).ok()?;
    let mut best: Option<(Rank, &[u8])> = None;
    for (index, symbol) in symbols.enumerate() {
        let Some(rank) = Rank::of(symbol, rip) else { continue };
        let section = || extent(&sections, symbols.symbol_section(LittleEndian, symbol, index).ok()??);
        // An assembly label does not say where it ends; its section's end is the latest.
        if !rank.spans && !section().is_some_and(|section| section.contains(&rip)) {
            continue;
        }
        if best.is_none_or(|(other, _)| rank > other)
            && let Ok(name) = symbol.name(LittleEndian, symbols.strings())
            && !name.is_empty()
        {
            best = Some((rank, name));
        }
    }
    let (rank, name) = best?;
    let name = printable(&readable(name)).to_string();
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

/// A symbol's name with Rust names demangled, without the hash that closes them. It is a stranger's text: print
/// it by [`printable`].
pub fn readable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    format!("{:#}", rustc_demangle::demangle(&name))
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
    fn no_symbols_is_no_error() {
        assert_eq!(symbolize(&Elf::plain().bytes(), 0x40_0000), None);
        assert_eq!(symbolize(b"not ELF", 0), None);
    }
}
