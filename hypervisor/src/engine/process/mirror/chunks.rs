//! The mirror's book: which pages are mapped in which process, and which page tables say so.
//!
//! A *chunk* is 2 MiB of one address space, what one L1 table covers, with the three tables on the way to it
//! and what is mapped of it. Chunks are found by address, and by each of their tables, since it is tables
//! that change. All of it is one fixed pool: nothing here allocates after [`Chunks::new`], and nothing that
//! a guest does makes it grow. No meaning of page-table bits here.

use crate::host::zeroed::{NoMemory, room, zeroed};

/// Pages in a chunk.
pub(crate) const PAGES: usize = 512;
/// The number of chunks, for all processes of an engine together. It bounds what page tables of its own
/// Linux needs for a guest's scattered mappings: two frames a chunk, 64 MiB in all.
pub(crate) const COUNT: u32 = 8192;
const BUCKETS: usize = 4096;
/// No chunk: the pool's place 0 stays empty, so that zeroed memory means "none" everywhere.
const NONE: u32 = 0;
/// No table: a large page covers the chunk.
pub(crate) const NO_TABLE: u64 = u64::MAX;

/// What is mapped at one page: nothing, or a frame and rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page(u64);

impl Page {
    const MAPPED: u64 = 1;
    const WRITE: u64 = 2;
    const EXECUTE: u64 = 4;

    pub fn new(frame: u64, write: bool, execute: bool) -> Self {
        let rights = (u64::from(write) * Self::WRITE) | (u64::from(execute) * Self::EXECUTE);
        Self(frame << 12 | rights | Self::MAPPED)
    }
    pub fn is_mapped(self) -> bool {
        self.0 != 0
    }
    pub fn frame(self) -> u64 {
        self.0 >> 12
    }
    pub fn writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }
    pub fn executable(self) -> bool {
        self.0 & Self::EXECUTE != 0
    }
    /// Whether `self` mapped right after `before` continues its mapping.
    pub fn continues(self, before: Self) -> bool {
        before.is_mapped() && self.0.wrapping_sub(before.0) == 1 << 12
    }
}

/// Which chunk: an index into the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(u32);

/// The tables on the way to a chunk: those of level 1, 2 and 3, as frame numbers. The root is its process's.
pub(crate) type Tables = [u64; 3];

#[derive(Clone, Copy, Debug)]
struct Chunk {
    space: u8,
    live: bool,
    /// Linear address >> 21.
    base: u64,
    tables: Tables,
    /// Neighbours in the list of each table; a head's `prev` is `NONE`.
    next: [u32; 3],
    prev: [u32; 3],
    /// Next in the address bucket, or in the free list.
    chain: u32,
    /// Mappings that Linux keeps for it: runs of pages that continue each other.
    runs: u32,
    /// How many runs the next fault may map beyond what it asks for.
    window: u32,
    /// What the levels above L1 allow.
    writable: bool,
    executable: bool,
}

/// The window of a chunk's first fault, and the widest.
const FIRST_WINDOW: u32 = 8;
const WIDEST_WINDOW: u32 = PAGES as u32;

const EMPTY: Chunk = Chunk {
    space: 0,
    live: false,
    base: 0,
    tables: [NO_TABLE; 3],
    next: [NONE; 3],
    prev: [NONE; 3],
    chain: NONE,
    runs: 0,
    window: FIRST_WINDOW,
    writable: false,
    executable: false,
};

/// The pool.
#[derive(Debug)]
pub(crate) struct Chunks {
    chunks: Vec<Chunk>,
    /// [`PAGES`] words for each place of the pool.
    pages: Vec<u64>,
    by_address: Vec<u32>,
    by_table: [Vec<u32>; 3],
    free: u32,
    /// Chunks from here on were never used.
    fresh: u32,
}

fn bucket(n: u64) -> usize {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % BUCKETS
}

fn address_bucket(space: u8, base: u64) -> usize {
    bucket(base ^ u64::from(space) << 48)
}

impl Chunks {
    pub fn new() -> Result<Self, NoMemory> {
        const WHAT: &str = "the process engine's book of mappings";
        let mut chunks = room(WHAT, u64::from(COUNT) + 1)?;
        chunks.push(EMPTY);
        Ok(Self {
            chunks,
            // Zeroed memory comes from the kernel untouched: a chunk costs its page when it is used.
            pages: zeroed(WHAT, (u64::from(COUNT) + 1) * PAGES as u64)?,
            by_address: vec![NONE; BUCKETS],
            by_table: [vec![NONE; BUCKETS], vec![NONE; BUCKETS], vec![NONE; BUCKETS]],
            free: NONE,
            fresh: 1,
        })
    }

    fn at(&self, i: u32) -> &Chunk {
        self.chunks.get(i as usize).unwrap_or(&EMPTY)
    }
    fn edit(&mut self, i: u32, f: impl FnOnce(&mut Chunk)) {
        if i != NONE
            && let Some(chunk) = self.chunks.get_mut(i as usize)
        {
            f(chunk);
        }
    }

    pub fn find(&self, space: u8, base: u64) -> Option<Id> {
        let mut i = self.by_address.get(address_bucket(space, base)).copied().unwrap_or(NONE);
        while i != NONE {
            let c = self.at(i);
            if c.space == space && c.base == base {
                return Some(Id(i));
            }
            i = c.chain;
        }
        None
    }

    /// A new, empty chunk; `None` when all are in use.
    pub fn insert(
        &mut self,
        space: u8,
        base: u64,
        tables: Tables,
        (writable, executable): (bool, bool),
    ) -> Option<Id> {
        let i = self.take_free()?;
        let b = address_bucket(space, base);
        let chain = self.by_address.get(b).copied().unwrap_or(NONE);
        self.edit(i, |c| {
            *c = Chunk { space, live: true, base, tables, chain, writable, executable, ..EMPTY };
        });
        if let Some(head) = self.by_address.get_mut(b) {
            *head = i;
        }
        for level in 0..3 {
            self.link(i, level);
        }
        Some(Id(i))
    }

    fn take_free(&mut self) -> Option<u32> {
        let i = self.free;
        if i != NONE {
            self.free = self.at(i).chain;
            return Some(i);
        }
        if self.fresh > COUNT {
            return None;
        }
        self.chunks.push(EMPTY);
        self.fresh += 1;
        Some(self.fresh - 1)
    }

    fn link(&mut self, i: u32, level: usize) {
        let Some(table) = self.at(i).tables.get(level).copied().filter(|t| *t != NO_TABLE) else { return };
        let Some(head) = self.by_table.get_mut(level).and_then(|heads| heads.get_mut(bucket(table))) else {
            return;
        };
        let next = std::mem::replace(head, i);
        self.edit(i, |c| set(&mut c.next, level, next));
        self.edit(next, |c| set(&mut c.prev, level, i));
    }

    fn unlink(&mut self, i: u32, level: usize) {
        let c = *self.at(i);
        let (Some(table), Some(next), Some(prev)) =
            (c.tables.get(level), c.next.get(level), c.prev.get(level))
        else {
            return;
        };
        if *table == NO_TABLE {
            return;
        }
        self.edit(*next, |c| set(&mut c.prev, level, *prev));
        if *prev == NONE {
            if let Some(head) = self.by_table.get_mut(level).and_then(|heads| heads.get_mut(bucket(*table))) {
                *head = *next;
            }
        } else {
            self.edit(*prev, |c| set(&mut c.next, level, *next));
        }
    }

    /// Forgets a chunk and what is mapped of it; its owner unmaps it.
    pub fn remove(&mut self, id: Id) {
        let Id(i) = id;
        let c = *self.at(i);
        if !c.live {
            return;
        }
        for level in 0..3 {
            self.unlink(i, level);
        }
        self.unchain(i, address_bucket(c.space, c.base));
        self.pages_mut(id).fill(0);
        let free = std::mem::replace(&mut self.free, i);
        self.edit(i, |c| *c = Chunk { chain: free, ..EMPTY });
    }

    fn unchain(&mut self, i: u32, bucket: usize) {
        let next = self.at(i).chain;
        let mut at = self.by_address.get(bucket).copied().unwrap_or(NONE);
        if at == i {
            if let Some(head) = self.by_address.get_mut(bucket) {
                *head = next;
            }
            return;
        }
        while at != NONE {
            let chain = self.at(at).chain;
            if chain == i {
                return self.edit(at, |c| c.chain = next);
            }
            at = chain;
        }
    }

    /// The first chunk at or after pool position `from` that belongs to `space`, and the position after it.
    pub fn next_of_space(&self, space: u8, from: u32) -> Option<(Id, u32)> {
        (from..self.fresh).find(|i| self.at(*i).live && self.at(*i).space == space).map(|i| (Id(i), i + 1))
    }

    /// The first chunk whose table of level index `level` is `table`.
    pub fn first_of_table(&self, level: usize, table: u64) -> Option<Id> {
        let head = self.by_table.get(level).and_then(|heads| heads.get(bucket(table))).copied();
        self.matching(head.unwrap_or(NONE), level, table)
    }
    /// The next one after `id`; ask before removing `id`.
    pub fn next_of_table(&self, id: Id, level: usize, table: u64) -> Option<Id> {
        self.matching(self.at(id.0).next.get(level).copied().unwrap_or(NONE), level, table)
    }
    fn matching(&self, mut i: u32, level: usize, table: u64) -> Option<Id> {
        while i != NONE {
            let c = self.at(i);
            if c.tables.get(level) == Some(&table) {
                return Some(Id(i));
            }
            i = c.next.get(level).copied().unwrap_or(NONE);
        }
        None
    }

    pub fn space(&self, id: Id) -> u8 {
        self.at(id.0).space
    }
    pub fn base(&self, id: Id) -> u64 {
        self.at(id.0).base
    }
    pub fn tables(&self, id: Id) -> Tables {
        self.at(id.0).tables
    }
    pub fn runs(&self, id: Id) -> u32 {
        self.at(id.0).runs
    }
    /// The window of a fault in this chunk; the next one's is twice as wide.
    pub fn widen(&mut self, id: Id) -> u32 {
        let window = self.at(id.0).window;
        self.edit(id.0, |c| c.window = (window * 2).min(WIDEST_WINDOW));
        window
    }
    /// What the levels above L1 allow: writing, execution.
    pub fn rights(&self, id: Id) -> (bool, bool) {
        let c = self.at(id.0);
        (c.writable, c.executable)
    }
    fn pages_mut(&mut self, id: Id) -> &mut [u64] {
        let start = id.0 as usize * PAGES;
        self.pages.get_mut(start..start + PAGES).unwrap_or_default()
    }
    pub fn page(&self, id: Id, index: usize) -> Page {
        Page(self.pages.get(id.0 as usize * PAGES + index % PAGES).copied().unwrap_or_default())
    }
    /// Notes what is mapped at a page; returns by how much the number of mappings changed.
    pub fn set_page(&mut self, id: Id, index: usize, page: Page) -> i32 {
        let pages = self.pages_mut(id);
        let before = starts(pages, index);
        if let Some(slot) = pages.get_mut(index) {
            *slot = page.0;
        }
        let delta = starts(pages, index) - before;
        self.edit(id.0, |c| c.runs = c.runs.saturating_add_signed(delta));
        delta
    }
}

/// How many of the pages `index` and `index + 1` begin a run.
fn starts(pages: &[u64], index: usize) -> i32 {
    let page = |i: usize| Page(pages.get(i).copied().unwrap_or_default());
    let begins = |i: usize| {
        let before = i.checked_sub(1).map_or(Page::default(), page);
        page(i).is_mapped() && !page(i).continues(before)
    };
    i32::from(begins(index)) + i32::from(begins(index + 1))
}

fn set(list: &mut [u32; 3], level: usize, value: u32) {
    if let Some(slot) = list.get_mut(level) {
        *slot = value;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u8, u64, Tables),
        Remove(usize),
        Set(usize, usize, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..3, 0u64..40, [0u64..5, 0u64..5, 0u64..5]).prop_map(|(s, b, t)| Op::Insert(s, b, t)),
            any::<usize>().prop_map(Op::Remove),
            (any::<usize>(), 0usize..512, 0u64..8).prop_map(|(c, p, f)| Op::Set(c, p, f)),
        ]
    }

    proptest! {
        /// Whatever comes and goes, every chunk is found by its address and by each of its tables, once.
        #[test]
        fn the_book_is_in_order(ops in prop::collection::vec(op(), 1..200)) {
            let mut chunks = Chunks::new().unwrap();
            let mut model: HashMap<(u8, u64), (Id, Tables)> = HashMap::new();
            for op in ops {
                let nth = |n: usize, m: &HashMap<(u8, u64), (Id, Tables)>| {
                    let mut keys: Vec<_> = m.keys().copied().collect();
                    keys.sort_unstable();
                    (!keys.is_empty()).then(|| keys[n % keys.len()])
                };
                match op {
                    Op::Insert(s, b, t) if !model.contains_key(&(s, b)) => {
                        model.insert((s, b), (chunks.insert(s, b, t, (true, true)).unwrap(), t));
                    }
                    Op::Insert(..) => {}
                    Op::Remove(n) => {
                        if let Some(key) = nth(n, &model) {
                            chunks.remove(model.remove(&key).unwrap().0);
                        }
                    }
                    Op::Set(n, page, frame) => {
                        if let Some(key) = nth(n, &model) {
                            let value = if frame == 0 { Page::default() } else { Page::new(frame, true, false) };
                            chunks.set_page(model[&key].0, page, value);
                        }
                    }
                }
                for ((s, b), (id, tables)) in &model {
                    prop_assert_eq!(chunks.find(*s, *b), Some(*id));
                    let runs = (0..512usize).filter(|i| {
                        let before = i.checked_sub(1).map_or(Page::default(), |j| chunks.page(*id, j));
                        let p = chunks.page(*id, *i);
                        p.is_mapped() && !p.continues(before)
                    });
                    prop_assert_eq!(chunks.runs(*id) as usize, runs.count());
                    for (level, table) in tables.iter().enumerate() {
                        let all: Vec<_> = std::iter::successors(chunks.first_of_table(level, *table), |id| {
                            chunks.next_of_table(*id, level, *table)
                        }).collect();
                        prop_assert_eq!(all.iter().filter(|i| *i == id).count(), 1);
                        prop_assert_eq!(all.len(), model.values().filter(|m| m.1[level] == *table).count());
                    }
                }
            }
        }
    }

    #[test]
    fn the_pool_is_bounded_and_reusable() {
        let mut chunks = Chunks::new().unwrap();
        let ids: Vec<_> =
            (0..u64::from(COUNT)).map(|b| chunks.insert(1, b, [b, 1, 2], (true, true)).unwrap()).collect();
        assert_eq!(chunks.insert(1, 1 << 20, [0; 3], (true, true)), None);
        chunks.set_page(ids[7], 3, Page::new(9, true, true));
        chunks.remove(ids[7]);
        let again = chunks.insert(2, 5, [0; 3], (true, true)).unwrap();
        assert_eq!((chunks.page(again, 3), chunks.runs(again)), (Page::default(), 0));
        assert_eq!(chunks.find(1, 7), None);
    }
}
