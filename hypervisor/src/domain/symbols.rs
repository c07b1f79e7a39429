//! Names for addresses: the one clear line about a guest that died says where.
//!
//! Symbols are looked for only when someone asks; an image that was stripped has none, which is no error.

use object::LittleEndian;
use object::elf::{FileHeader64, SHN_ABS, SHN_UNDEF, SHT_SYMTAB, STT_FUNC, STT_NOTYPE, STT_OBJECT};
use object::read::elf::{FileHeader, Sym};

use super::lines::Lines;

type Header = FileHeader64<LittleEndian>;

/// The function (or other symbol) that `rip` lies in, as `name+0x12`; Rust names are made readable.
pub fn symbolize(elf: &[u8], rip: u64) -> Option<String> {
    let header = Header::parse(elf).ok()?;
    let sections = header.sections(LittleEndian, elf).ok()?;
    let symbols = sections.symbols(LittleEndian, elf, SHT_SYMTAB).ok()?;
    let mut best: Option<(Rank, &[u8])> = None;
    for symbol in symbols.iter() {
        let Some(rank) = Rank::of(symbol, rip) else { continue };
        if best.is_none_or(|(other, _)| rank > other)
            && let Ok(name) = symbol.name(LittleEndian, symbols.strings())
            && !name.is_empty()
        {
            best = Some((rank, name));
        }
    }
    let (rank, name) = best?;
    let name = readable(name);
    match rip - rank.value {
        0 => Some(name),
        offset => Some(format!("{name}+{offset:#x}")),
    }
}

/// Where `rip` is, as far as the image tells: `name+0x12 (file:line)`, or only the one or the other.
pub fn locate(elf: &[u8], rip: u64) -> Option<String> {
    let line = Lines::new(elf).and_then(|lines| lines.at(rip));
    match (symbolize(elf, rip), line) {
        (Some(name), Some(line)) => Some(format!("{name} ({line})")),
        (name, line) => name.or(line.map(|line| line.to_string())),
    }
}

/// A symbol's name for people: Rust names made readable, without the hash that closes them.
pub fn readable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let name = format!("{:#}", rustc_demangle::demangle(&name));
    name.chars().filter(|c| !c.is_control()).collect()
}

/// How well a symbol names an address: one that spans it, then the nearest, then functions before labels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    spans: bool,
    value: u64,
    function: bool,
}

impl Rank {
    fn of(symbol: &<Header as FileHeader>::Sym, rip: u64) -> Option<Self> {
        let section = symbol.st_shndx(LittleEndian);
        let kind = symbol.st_type();
        if section == SHN_UNDEF || section == SHN_ABS || ![STT_FUNC, STT_OBJECT, STT_NOTYPE].contains(&kind) {
            return None;
        }
        let (value, size) = (symbol.st_value(LittleEndian), symbol.st_size(LittleEndian));
        let offset = rip.checked_sub(value)?;
        // A symbol that says where it ends does not name what lies behind; assembly's labels say nothing.
        (size == 0 || offset < size).then_some(Self { spans: size != 0, value, function: kind == STT_FUNC })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::test_elf::{Elf, Symbol};

    fn image() -> Vec<u8> {
        let symbol = |name, value, size, kind| Symbol { name, value, size, kind };
        let mut elf = Elf::plain();
        elf.symbols = vec![
            symbol("_start", 0x1000, 0, STT_NOTYPE),
            symbol("_ZN6kernel4main17h0123456789abcdefE", 0x1010, 0x20, STT_FUNC),
            symbol("_RNvCs1234_6kernel5panic", 0x1030, 0x10, STT_FUNC),
            symbol("inner", 0x1014, 4, STT_FUNC),
            symbol("label", 0x1018, 0, STT_NOTYPE),
            symbol("kernel.rs", 0, 0, object::elf::STT_FILE),
        ];
        elf.bytes()
    }

    #[test]
    fn the_best_symbol_wins() {
        let image = image();
        let name = |rip| symbolize(&image, rip);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000).as_deref(), Some("_start"));
        assert_eq!(name(0x100f).as_deref(), Some("_start+0xf"));
        assert_eq!(name(0x1010).as_deref(), Some("kernel::main"));
        assert_eq!(name(0x1016).as_deref(), Some("inner+0x2"));
        assert_eq!(name(0x102f).as_deref(), Some("kernel::main+0x1f"), "a function beats a nearer label");
        assert_eq!(name(0x1033).as_deref(), Some("kernel::panic+0x3"));
        assert_eq!(name(0x2000).as_deref(), Some("label+0xfe8"), "behind all that have an end");
    }

    #[test]
    fn no_symbols_is_no_error() {
        assert_eq!(symbolize(&Elf::plain().bytes(), 0x40_0000), None);
        assert_eq!(symbolize(b"not ELF", 0), None);
    }
}
