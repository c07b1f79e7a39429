//! Names for the places that a guest was left at.

use std::fmt;

use crate::image::compressed::unpack;
use crate::image::symbol_map::{SymbolId, SymbolMap};

/// The symbols of the image, if there are any.
#[derive(Debug, Default)]
pub struct Places(SymbolMap);

/// A place, with its name if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The address.
    pub address: u64,
    /// The symbol, and how far behind its beginning the address is.
    pub symbol: Option<(&'a str, u64)>,
}

impl Places {
    /// Those of an image, compressed or not.
    pub fn of(image: &[u8]) -> Self {
        unpack(image).map(|elf| Self(SymbolMap::new(&elf))).unwrap_or_default()
    }

    /// Whether no place has a name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The symbol that an address lies in.
    pub fn symbol(&self, address: u64) -> Option<SymbolId> {
        self.0.find(address).map(|(id, _)| id)
    }

    /// A symbol's name, fit for a terminal.
    pub fn name(&self, id: SymbolId) -> &str {
        self.0.name(id)
    }

    /// The place at an address.
    pub fn named(&self, address: u64) -> Named<'_> {
        let symbol = self.0.find(address).map(|(id, offset)| (self.0.name(id), offset));
        Named { address, symbol }
    }
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol {
            None => write!(f, "{:#x}", self.address),
            Some((name, 0)) => f.write_str(name),
            Some((name, offset)) => write!(f, "{name}+{offset:#x}"),
        }
    }
}
