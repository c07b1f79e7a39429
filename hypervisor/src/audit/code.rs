//! Where the code is in an image, and which function each piece of it belongs to.
//!
//! Sections and symbols say it best; segments say it too, when a file was stripped of both. Everything is
//! bounded by the file: nothing that a header claims is believed beyond that.

use object::LittleEndian;
use object::elf::{
    PF_X, PT_LOAD, SHF_EXECINSTR, SHN_ABS, SHN_UNDEF, SHT_PROGBITS, SHT_SYMTAB, STT_FUNC, STT_NOTYPE,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};

use crate::domain::image::Header;
use crate::domain::symbols::readable;

/// A run of code that is swept as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Virtual address of its first byte.
    pub start: u64,
    /// Its bytes.
    pub code: &'a [u8],
    /// The symbol that it begins with.
    pub symbol: Option<Symbol<'a>>,
}

/// A symbol that names code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Symbol<'a> {
    pub value: u64,
    /// Bytes that it spans; 0 for assembly's labels, which do not say.
    pub size: u64,
    function: bool,
    pub name: &'a [u8],
}

impl Symbol<'_> {
    pub fn readable(&self) -> String {
        readable(self.name)
    }
}

/// The pieces of all executable code, by rising address within each section.
pub(super) fn pieces<'a>(header: &Header, file: &'a [u8]) -> Vec<Piece<'a>> {
    let mut symbols = symbols(header, file);
    symbols.sort_unstable();
    // Of several names for one address, the one that spans most.
    symbols.reverse();
    symbols.dedup_by_key(|s| s.value);
    symbols.reverse();
    let mut pieces = Vec::new();
    for (start, code) in regions(header, file) {
        split(start, code, &symbols, &mut pieces);
    }
    pieces
}

/// Executable sections, or else executable segments: address and bytes.
fn regions<'a>(header: &Header, file: &'a [u8]) -> Vec<(u64, &'a [u8])> {
    let mut regions = Vec::new();
    if let Ok(sections) = header.sections(LittleEndian, file) {
        for section in sections.iter() {
            let executable = section.sh_flags(LittleEndian) & u64::from(SHF_EXECINSTR) != 0;
            if executable && section.sh_type(LittleEndian) == SHT_PROGBITS {
                let data = section.data(LittleEndian, file).unwrap_or_default();
                regions.push((section.sh_addr(LittleEndian), data));
            }
        }
    }
    if regions.iter().all(|(_, code)| code.is_empty()) {
        let segments = header.program_headers(LittleEndian, file).unwrap_or_default();
        for segment in segments {
            if segment.p_type(LittleEndian) == PT_LOAD && segment.p_flags(LittleEndian) & PF_X != 0 {
                let data = segment.data(LittleEndian, file).unwrap_or_default();
                regions.push((segment.p_vaddr(LittleEndian), data));
            }
        }
    }
    // An address space has an end; what would lie beyond it is no code.
    regions.retain(|(start, code)| !code.is_empty() && start.checked_add(code.len() as u64).is_some());
    // Headers may name the same bytes many times; code that is swept is bounded by the file's size.
    let mut budget = file.len();
    regions.retain(|(_, code)| budget.checked_sub(code.len()).inspect(|rest| budget = *rest).is_some());
    regions
}

fn symbols<'a>(header: &Header, file: &'a [u8]) -> Vec<Symbol<'a>> {
    let Ok(sections) = header.sections(LittleEndian, file) else { return Vec::new() };
    let Ok(table) = sections.symbols(LittleEndian, file, SHT_SYMTAB) else { return Vec::new() };
    let code_symbol = |symbol: &<Header as FileHeader>::Sym| {
        let section = symbol.st_shndx(LittleEndian);
        let function = symbol.st_type() == STT_FUNC;
        let defined =
            section != SHN_UNDEF && section != SHN_ABS && (function || symbol.st_type() == STT_NOTYPE);
        let name = symbol.name(LittleEndian, table.strings()).ok().filter(|name| !name.is_empty())?;
        let (value, size) = (symbol.st_value(LittleEndian), symbol.st_size(LittleEndian));
        defined.then_some(Symbol { value, size, function, name })
    };
    table.iter().filter_map(code_symbol).collect()
}

/// Cuts a region at its symbols, and where a symbol ends before the next begins.
///
/// A label within a function that says where it ends is a place in that function, not another one.
fn split<'a>(start: u64, code: &'a [u8], symbols: &[Symbol<'a>], pieces: &mut Vec<Piece<'a>>) {
    let end = start + code.len() as u64;
    let first = symbols.partition_point(|s| s.value < start);
    let inside = symbols.get(first..).unwrap_or_default().iter().take_while(|s| s.value < end);
    let mut at = start;
    let mut current: Option<Symbol<'a>> = None;
    let mut push = |from: u64, to: u64, symbol: Option<Symbol<'a>>| {
        let code = code.get((from - start) as usize..(to - start) as usize).unwrap_or_default();
        if !code.is_empty() {
            pieces.push(Piece { start: from, code, symbol });
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
