//! The cache: where blocks are, which lead to which, and where a guest's address has its block.
//!
//! Space is given out from one end to the other. When some of it is short, of whatever kind, everything is dropped and
//! translated anew: that is simple, and all of it is bounded. A block that goes alone leaves its space unused.

use super::block::Product;
use super::near::ByAddress;
use crate::codegen::emitter::TRAP;
use crate::codegen::recipe::Point;
use crate::machine::memory::{MachineMemory, Maddr};

/// A block of the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Where its space begins.
    start: u32,
    /// Where it is entered by lookups, if it is.
    pub entry: Option<u32>,
    /// Where its code begins.
    pub body: u32,
    /// Where its code ends.
    end: u32,
    /// Which points are its.
    first_point: u32,
    /// Whether it stands for the guest's code still.
    pub alive: bool,
}

/// A displacement that is to lead to a block that does not exist yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    place: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;
/// A mean block's bytes, well below what was measured: to bound the number of blocks.
const LEAST_MEAN: u32 = 32;

/// Bytes of the cache whose blocks are searched by halving: without an index over them each step would touch memory
/// that is in no cache of the processor's.
const PIECE: u32 = 256;

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    at: Maddr,
    size: u32,
    /// What all lookups share comes first.
    reserved: u32,
    used: u32,
    points: Vec<Point>,
    reserved_points: usize,
    blocks: Vec<Block>,
    /// For each piece of [`PIECE`] bytes: the first block that begins there or after.
    index: Vec<u32>,
    by_va: ByAddress<u32>,
    /// By the address that they wait for.
    waiting: ByAddress<u32>,
    links: Vec<Waiting>,
}

impl Cache {
    /// An empty cache of `size` bytes at `at`.
    pub fn new(at: Maddr, size: u32) -> Self {
        let blocks = (size / LEAST_MEAN) as usize;
        Self {
            at,
            size,
            reserved: 0,
            used: 0,
            points: Vec::with_capacity(blocks * 8),
            reserved_points: 0,
            blocks: Vec::with_capacity(blocks),
            index: Vec::with_capacity((size / PIECE) as usize + 1),
            by_va: ByAddress::with_capacity_and_hasher(blocks, Default::default()),
            waiting: ByAddress::with_capacity_and_hasher(blocks, Default::default()),
            links: Vec::with_capacity(blocks * 2),
        }
    }

    /// Puts what all lookups share at the beginning, and drops everything else.
    pub fn begin(&mut self, memory: &MachineMemory, bytes: &[u8], points: &[Point]) {
        self.reserved = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.size).next_multiple_of(16);
        self.write(memory, 0, bytes);
        self.points.clear();
        self.points.extend_from_slice(points);
        self.reserved_points = points.len();
        self.clear();
    }

    /// Drops all blocks.
    pub fn clear(&mut self) {
        self.used = self.reserved;
        self.points.truncate(self.reserved_points);
        self.blocks.clear();
        self.index.clear();
        self.by_va.clear();
        self.waiting.clear();
        self.links.clear();
    }

    fn write(&self, memory: &MachineMemory, offset: u32, bytes: &[u8]) {
        // Within the frames that the layout has for it: every offset was bounded when it was given out.
        let _ = memory.write(Maddr(self.at.0 + u64::from(offset)), bytes);
    }

    /// Where the next block would begin.
    pub fn next(&self) -> u32 {
        self.used
    }

    /// Whether a product fits.
    pub fn has_room(&self, product: &Product) -> bool {
        let bytes = u32::try_from(product.bytes.len()).unwrap_or(u32::MAX);
        self.used.checked_add(bytes).is_some_and(|end| end <= self.size)
            && self.points.len() + product.points.len() <= self.points.capacity()
            && self.links.len() + product.links.len() <= self.links.capacity()
            && self.blocks.len() < self.blocks.capacity()
            && self.waiting.len() + product.links.len() < self.waiting.capacity()
            && self.by_va.len() < self.by_va.capacity()
    }

    /// Adds a block that was made for [`Cache::next`], and links it both ways. It must fit.
    pub fn add(&mut self, memory: &MachineMemory, va: u64, product: &Product) -> u32 {
        let start = self.used;
        let end = start + u32::try_from(product.bytes.len()).unwrap_or(0);
        self.write(memory, start, &product.bytes);
        self.used = end;
        let first_point = u32::try_from(self.points.len()).unwrap_or(NONE);
        self.points.extend_from_slice(&product.points);
        let number = self.next_number();
        let entry = product.entry.map(|entry| start + entry);
        let block = Block { start, entry, body: start + product.body, end, first_point, alive: true };
        self.push(block);
        // Who led to one that is gone is led to this one.
        if let Some(old) = self.by_va.insert(va, number).and_then(|old| self.block(old)) {
            self.redirect(memory, old.body, block.body);
        }
        if let Some(mut at) = self.waiting.remove(&va) {
            while let Some(link) = self.links.get(at as usize).copied() {
                self.set_displacement(memory, link.place, block.body);
                at = link.next;
            }
        }
        for (link, target) in &product.links {
            let place = start + u32::try_from(link.offset()).unwrap_or(0);
            match self.by_va.get(target).and_then(|number| self.block(*number)) {
                Some(found) => self.set_displacement(memory, place, found.body),
                None => {
                    let head = self.waiting.entry(*target).or_insert(NONE);
                    let next = std::mem::replace(head, u32::try_from(self.links.len()).unwrap_or(NONE));
                    self.links.push(Waiting { place, next });
                }
            }
        }
        number
    }

    /// Adds an entry for lookups to the living block of `va`, that was made for [`Cache::next`]; returns where it is.
    pub fn add_entry(&mut self, memory: &MachineMemory, va: u64, product: &Product) -> Option<u32> {
        let number = *self.by_va.get(&va)?;
        let start = self.used;
        let end = start + u32::try_from(product.bytes.len()).ok()?;
        self.write(memory, start, &product.bytes);
        self.used = end;
        let first_point = u32::try_from(self.points.len()).ok()?;
        self.points.extend_from_slice(&product.points);
        let entry = product.entry.map(|entry| start + entry);
        // A block of its own, so that what lies where stays in order.
        self.push(Block { start, entry: None, body: start, end, first_point, alive: false });
        self.blocks.get_mut(number as usize)?.entry = entry;
        entry
    }

    fn push(&mut self, block: Block) {
        let number = self.next_number();
        let pieces = (block.start / PIECE + 1) as usize;
        if self.index.len() < pieces {
            self.index.resize(pieces, number);
        }
        self.blocks.push(block);
    }

    /// How many blocks begin at an offset or before.
    fn begun(&self, offset: u32) -> usize {
        let piece = (offset / PIECE) as usize;
        let place = |piece| self.index.get(piece).map_or(self.blocks.len(), |number| *number as usize);
        let (from, to) = (place(piece), place(piece + 1));
        let within = self.blocks.get(from..to).unwrap_or_default();
        from + within.partition_point(|block| block.start <= offset)
    }

    fn set_displacement(&self, memory: &MachineMemory, place: u32, to: u32) {
        self.write(memory, place, &to.wrapping_sub(place + 4).to_le_bytes());
    }

    fn redirect(&self, memory: &MachineMemory, from: u32, to: u32) {
        let [a, b, c, d] = to.wrapping_sub(from + 5).to_le_bytes();
        self.write(memory, from, &[0xe9, a, b, c, d]);
    }

    /// A block no longer stands for the guest's code: it traps where it begins.
    pub fn kill(&mut self, memory: &MachineMemory, number: u32) {
        let Some(block) = self.blocks.get_mut(number as usize).filter(|block| block.alive) else { return };
        block.alive = false;
        let body = block.body;
        self.write(memory, body, &[TRAP]);
    }

    /// The number of the next block.
    pub fn next_number(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(NONE)
    }

    /// A block by its number.
    pub fn block(&self, number: u32) -> Option<Block> {
        self.blocks.get(number as usize).copied()
    }

    /// The block of the guest's address, if there is one that lives.
    pub fn find(&self, va: u64) -> Option<Block> {
        self.by_va.get(&va).and_then(|number| self.block(*number)).filter(|block| block.alive)
    }

    /// Whether a block leads to the guest's address, of which there is no block yet.
    pub fn is_awaited(&self, va: u64) -> bool {
        self.waiting.contains_key(&va)
    }

    /// The points, by offset, among which that at `offset` is if there is one: those of its block.
    pub fn points_around(&self, offset: u32) -> &[Point] {
        let after = self.begun(offset);
        let first = after.checked_sub(1).and_then(|number| self.blocks.get(number));
        let first = first.map_or(0, |block| block.first_point as usize);
        let end = self.blocks.get(after).map_or(self.points.len(), |block| block.first_point as usize);
        self.points.get(first..end).unwrap_or_default()
    }

    /// The block that an offset lies in.
    pub fn at(&self, offset: u32) -> Option<(u32, Block)> {
        let after = self.begun(offset);
        let number = u32::try_from(after.checked_sub(1)?).ok()?;
        self.block(number).filter(|block| offset < block.end).map(|block| (number, block))
    }

    /// Whether an offset lies in what all lookups and calls share.
    pub fn is_shared(&self, offset: u32) -> bool {
        offset < self.reserved
    }

    /// Where in a block the guest's instruction at `rip` can be gone on with, the guest's state being that before it.
    pub fn resume(&self, number: u32, rip: u64) -> Option<u32> {
        let block = self.block(number).filter(|block| block.alive)?;
        let next = self.block(number + 1).map(|next| next.first_point as usize);
        let points = self.points.get(block.first_point as usize..next.unwrap_or(self.points.len()))?;
        points.iter().find(|point| point.recipe.is_entry(rip)).map(|point| point.at)
    }

    /// Whether an offset is where a block begins that is gone.
    pub fn is_grave(&self, offset: u32) -> bool {
        self.at(offset).is_some_and(|(_, block)| !block.alive && block.body == offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Backing;

    #[test]
    fn blocks_of_any_size_are_found_by_their_bytes() {
        let memory = MachineMemory::new(16, 1, Backing::Anonymous).unwrap();
        let mut cache = Cache::new(Maddr(0), 16 * 4096);
        cache.begin(&memory, &[0; 40], &[]);
        assert_eq!((cache.at(0).is_none(), cache.at(48).is_none()), (true, true), "nothing is there yet");
        let mut ends = Vec::new();
        for (n, len) in (0u64..).zip([5, 700, 200, 8, 8, 240, 256, 1024, 5, 5, 300]) {
            let product = Product { bytes: vec![0; len], ..Product::default() };
            assert!(cache.has_room(&product));
            let number = cache.add(&memory, 0x1000 + n, &product);
            ends.push((number, cache.block(number).unwrap()));
        }
        for (number, block) in ends {
            for offset in [block.start, block.start + 1, block.end - 1] {
                let found = cache.at(offset).map(|(number, block)| (number, block.body));
                assert_eq!(found, Some((number, block.body)), "at {offset}");
            }
        }
        assert!(cache.at(cache.next()).is_none() && cache.at(u32::MAX).is_none());
        cache.clear();
        assert!(cache.at(48).is_none());
    }
}
