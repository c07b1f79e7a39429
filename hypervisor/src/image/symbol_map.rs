//! The symbols of an image, for those who ask for many addresses.
//!
//! Answers what [`symbolize`](super::symbols::symbolize) does, which looks at every symbol for each address. Here every
//! symbol is looked at once.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::BTreeSet;

use object::LittleEndian;
use object::elf::{FileHeader64, SHT_SYMTAB};
use object::read::elf::{FileHeader, Sym};

use super::symbols::{Names, Rank, extent, readable};
use crate::text::printable::printable;

type Header = FileHeader64<LittleEndian>;

/// A symbol, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymbolId(usize);

/// Which symbol an address lies in.
#[derive(Debug, Default)]
pub struct SymbolMap {
    /// Where another symbol becomes the best, and which.
    changes: Vec<(u64, Option<SymbolId>)>,
    symbols: Vec<Named>,
    /// The names as they are in the image, where they may overlap: each by itself could be far more than the image.
    strings: Vec<u8>,
}

#[derive(Debug)]
struct Named {
    value: u64,
    /// Where in the strings its name is.
    name: u32,
    /// The name fit for a terminal, once somebody has asked for it.
    readable: OnceCell<String>,
}

/// A symbol that may be the best between two addresses.
struct Span {
    start: u64,
    end: u64,
    rank: Rank,
}

impl SymbolMap {
    /// The symbols of an image; empty if it has none.
    pub fn new(elf: &[u8]) -> Self {
        Self::parse(elf).unwrap_or_default()
    }

    fn parse(elf: &[u8]) -> Option<Self> {
        let header = Header::parse(elf).ok()?;
        let sections = header.sections(LittleEndian, elf).ok()?;
        let table = sections.symbols(LittleEndian, elf, SHT_SYMTAB).ok()?;
        let names = Names::of(elf, &sections, &table);
        let (mut spans, mut symbols) = (Vec::new(), Vec::new());
        for (index, symbol) in table.enumerate() {
            let Some((rank, size)) = Rank::with_size(symbol) else { continue };
            let name = symbol.st_name(LittleEndian);
            if !names.has(name) {
                continue;
            }
            let (start, end) = if rank.spans {
                (rank.value, rank.value.saturating_add(size))
            } else {
                let section = table.symbol_section(LittleEndian, symbol, index).ok().flatten();
                let Some(section) = section.and_then(|section| extent(&sections, section)) else { continue };
                (rank.value.max(section.start), section.end)
            };
            if start < end {
                spans.push(Span { start, end, rank });
                symbols.push(Named { value: rank.value, name, readable: OnceCell::new() });
            }
        }
        Some(Self { changes: changes(&spans), symbols, strings: names.strings().to_vec() })
    }

    /// The symbol that `address` lies in, and how far behind its beginning.
    pub fn find(&self, address: u64) -> Option<(SymbolId, u64)> {
        let after = self.changes.partition_point(|(at, _)| *at <= address);
        let (_, best) = self.changes.get(after.checked_sub(1)?)?;
        let symbol = self.symbols.get((*best)?.0)?;
        Some(((*best)?, address.checked_sub(symbol.value)?))
    }

    /// A symbol's name, fit for a terminal.
    pub fn name(&self, id: SymbolId) -> &str {
        let Some(symbol) = self.symbols.get(id.0) else { return "" };
        let name = || Names::within(&self.strings).at(symbol.name).unwrap_or_default();
        symbol.readable.get_or_init(|| printable(&readable(name())).to_string())
    }

    /// The symbol that `address` lies in, as `name+0x12`.
    pub fn symbolize(&self, address: u64) -> Option<String> {
        let (id, offset) = self.find(address)?;
        let name = self.name(id);
        Some(if offset == 0 { name.to_owned() } else { format!("{name}+{offset:#x}") })
    }

    /// Whether there are no symbols.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

/// Goes along all beginnings and ends, and notes which of the spans that are open is the best.
fn changes(spans: &[Span]) -> Vec<(u64, Option<SymbolId>)> {
    let begins = spans.iter().enumerate().map(|(id, span)| (span.start, true, id));
    let ends = spans.iter().enumerate().map(|(id, span)| (span.end, false, id));
    let mut events: Vec<(u64, bool, usize)> = begins.chain(ends).collect();
    events.sort_unstable();
    let mut open = BTreeSet::new();
    let mut changes: Vec<(u64, Option<SymbolId>)> = Vec::new();
    for (at, begins, id) in events {
        let Some(span) = spans.get(id) else { continue };
        // Of equals, the first.
        let key = (span.rank, Reverse(id));
        let _ = if begins { open.insert(key) } else { open.remove(&key) };
        let best = open.last().map(|(_, Reverse(id))| SymbolId(*id));
        match changes.last_mut() {
            Some(last) if last.0 == at => last.1 = best,
            _ => changes.push((at, best)),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use object::elf::{SHT_PROGBITS, STT_FUNC, STT_NOTYPE};
    use proptest::prelude::*;

    use super::*;
    use crate::image::symbols::symbolize;
    use crate::testing::elf::{Elf, Symbol};

    #[test]
    fn no_symbols_is_no_error() {
        for elf in [&Elf::plain().bytes()[..], b"not ELF"] {
            let map = SymbolMap::new(elf);
            assert!(map.is_empty() && map.find(0).is_none());
        }
    }

    proptest! {
        #[test]
        fn every_address_has_the_name_that_symbolize_finds(
            symbols in prop::collection::vec((0xff0u64..0x1050, 0u64..0x20, any::<bool>()), 1..12),
        ) {
            const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
            let mut elf = Elf::plain();
            elf.symbols = symbols.iter().zip(NAMES).map(|(&(value, size, function), name)| {
                Symbol { name, value, size, kind: if function { STT_FUNC } else { STT_NOTYPE } }
            }).collect();
            elf.sections = vec![(".text", SHT_PROGBITS, vec![0; 0x40])];
            elf.code_sections = vec![(".text", 0x1000)];
            let image = elf.bytes();
            let map = SymbolMap::new(&image);
            for address in (0xfe0..0x1080).chain([0, u64::MAX]) {
                prop_assert_eq!(map.symbolize(address), symbolize(&image, address), "{:#x}", address);
            }
        }
    }
}
