//! Cuts executable bytes into pieces by the symbols of functions, to be swept one by one.
//!
//! A symbol applies to its own section only: in an object file every section begins at address 0, and in a linked file
//! a symbol at a section's end does not belong to the section that begins there.

use object::elf::{SHN_ABS, SHN_UNDEF, SHT_SYMTAB, STT_FUNC, STT_NOTYPE};
use object::read::elf::{FileHeader, Sym};
use object::{LittleEndian, SectionIndex, SymbolIndex};

use super::regions::{Region, Section};
use crate::image::Header;
use crate::image::symbols::readable;

/// A run of code that is swept as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Its section, if the file has sections.
    pub section: Option<Section<'a>>,
    /// Address of its first byte: virtual, or in an object file an offset in the section.
    pub start: u64,
    /// Its bytes.
    pub code: &'a [u8],
    /// The symbol at its beginning.
    pub symbol: Option<Symbol<'a>>,
}

/// A symbol that names code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Symbol<'a> {
    section: Option<usize>,
    pub value: u64,
    /// Its size in bytes; 0 for labels in assembly, which have none.
    pub size: u64,
    function: bool,
    pub name: &'a [u8],
}

impl Symbol<'_> {
    pub fn readable(&self) -> String {
        readable(self.name)
    }
}

/// The pieces of these regions, by rising address within each.
pub(super) fn pieces<'a>(header: &Header, file: &'a [u8], regions: &[Region<'a>]) -> Vec<Piece<'a>> {
    let by_section = regions.iter().any(|region| region.section.is_some());
    let mut symbols = symbols(header, file, by_section);
    symbols.sort_unstable();
    // Of several symbols at one address, keep the largest.
    symbols.reverse();
    symbols.dedup_by_key(|s| (s.section, s.value));
    symbols.reverse();
    let mut pieces = Vec::new();
    for region in regions {
        let section = region.section.map(|section| section.index);
        let first = symbols.partition_point(|s| s.section < section);
        let end = symbols.partition_point(|s| s.section <= section);
        split(region, symbols.get(first..end).unwrap_or_default(), &mut pieces);
    }
    pieces
}

/// The symbols of code; without their sections if the regions have none.
fn symbols<'a>(header: &Header, file: &'a [u8], by_section: bool) -> Vec<Symbol<'a>> {
    let Ok(sections) = header.sections(LittleEndian, file) else { return Vec::new() };
    let Ok(table) = sections.symbols(LittleEndian, file, SHT_SYMTAB) else { return Vec::new() };
    let code_symbol = |(index, symbol): (SymbolIndex, &<Header as FileHeader>::Sym)| {
        let special = [SHN_UNDEF, SHN_ABS].contains(&symbol.st_shndx(LittleEndian));
        let function = symbol.st_type() == STT_FUNC;
        let defined = !special && (function || symbol.st_type() == STT_NOTYPE);
        let name = symbol.name(LittleEndian, table.strings()).ok().filter(|name| !name.is_empty())?;
        let (value, size) = (symbol.st_value(LittleEndian), symbol.st_size(LittleEndian));
        let section = match table.symbol_section(LittleEndian, symbol, index) {
            Ok(Some(SectionIndex(index))) if by_section => Some(index),
            _ if by_section => return None,
            _ => None,
        };
        defined.then_some(Symbol { section, value, size, function, name })
    };
    table.enumerate().filter_map(code_symbol).collect()
}

/// Cuts a region at its symbols, and where a symbol ends before the next begins.
///
/// A label inside of a function whose size is known belongs to that function.
fn split<'a>(region: &Region<'a>, symbols: &[Symbol<'a>], pieces: &mut Vec<Piece<'a>>) {
    let Region { section, start, code } = *region;
    let end = start + code.len() as u64;
    let first = symbols.partition_point(|s| s.value < start);
    let inside = symbols.get(first..).unwrap_or_default().iter().take_while(|s| s.value < end);
    let mut at = start;
    let mut current: Option<Symbol<'a>> = None;
    let mut push = |from: u64, to: u64, symbol: Option<Symbol<'a>>| {
        let code = code.get((from - start) as usize..(to - start) as usize).unwrap_or_default();
        if !code.is_empty() {
            pieces.push(Piece { section, start: from, code, symbol });
        }
    };
    let ends = |symbol: Symbol<'_>| symbol.value.saturating_add(symbol.size);
    for symbol in inside {
        if symbol.size == 0 && current.is_some_and(|c| symbol.value < ends(c)) {
            continue;
        }
        let stop = current.filter(|c| c.size != 0).map_or(symbol.value, |c| ends(c).min(symbol.value));
        push(at, stop, current);
        push(stop, symbol.value, None);
        (at, current) = (symbol.value, Some(*symbol));
    }
    let stop = current.filter(|c| c.size != 0).map_or(end, |c| ends(c).min(end));
    push(at, stop, current);
    push(stop, end, None);
}
