//! Where stubs lie: pages of ours at linear addresses that the jumps to them can have.
//!
//! The displacement of a jump decides where its stub may begin (`site.rs`). A displacement whose top byte traps leads
//! to one of four windows of 16 MiB around the site; so that is where pages are taken, if the guest maps nothing
//! there.
//!
//! What may not be done here: deciding what is in a stub.

use std::ops::Range;

use super::site::{NEAR, Pattern, Room, TRAPPING, Want};
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::mmu::shadow::OverlayPage;

/// A stub that begins where a jump may go gets so much room, if there is, that it need not jump on.
const ROOMY: u64 = 48;
/// Alignment of stubs that may begin anywhere.
const ALIGNED: u64 = 16;
/// Bytes that are tried in a displacement where it may have any.
const TRIED: [u8; 8] = [0x10, 0x11, 0x12, 0x13, 0x40, 0x60, 0x80, 0xa0];

/// The lowest byte of a displacement that may have any: distances of 16 from each other.
const ANY_LOW: [u8; 16] = [0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240];

/// What an entry of an L3 table spans.
const SPAN: u64 = 1 << 30;

/// A page of stubs.
#[derive(Clone, Debug)]
struct Page {
    va: u64,
    mfn: Mfn,
    /// What is taken of it: offsets, in order.
    used: Vec<Range<u64>>,
}

impl Page {
    /// How many bytes are free from an offset on.
    fn free_from(&self, offset: u64) -> u64 {
        let next = self.used.partition_point(|used| used.end <= offset);
        match self.used.get(next) {
            Some(used) if used.start <= offset => 0,
            Some(used) => used.start - offset,
            None => PAGE_SIZE.saturating_sub(offset),
        }
    }
    fn take(&mut self, offset: u64, len: u64) {
        let place = self.used.partition_point(|used| used.start < offset);
        self.used.insert(place, offset..offset + len);
    }
}

/// The pages of stubs of one domain, and the page of state.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Linear address of the page of state.
    pub state: u64,
    state_frame: Mfn,
    /// In the order of their places within [`SPAN`].
    pages: Vec<Page>,
    /// From the lowest of them to the highest.
    span: Range<u64>,
    /// Frames that are not used yet.
    frames: Range<u64>,
    /// A place from which everything is counted, below all pages.
    pub origin: u64,
}

impl Arena {
    /// Pages for stubs of sites near `site`: one of state and a first one of code, next to each other.
    pub fn open(
        site: u64,
        state_frame: Mfn,
        frames: Range<u64>,
        is_free: &dyn Fn(u64) -> bool,
    ) -> Option<Self> {
        let places = TRAPPING.iter().flat_map(|top| TRIED.map(|third| [0, 0, third, *top]));
        let places =
            places.map(|bytes| site.wrapping_add_signed(i32::from_le_bytes(bytes).into()) & !(PAGE_SIZE - 1));
        let state =
            places.into_iter().find(|state| is_free(*state) && is_free(state.wrapping_add(PAGE_SIZE)))?;
        // All windows and all punned displacements lie within 2 GiB of a site.
        let origin = site.wrapping_sub(1 << 31) & !(PAGE_SIZE - 1);
        let mut arena = Self { state, state_frame, pages: Vec::new(), span: state..state, frames, origin };
        arena.add(state.wrapping_add(PAGE_SIZE))?;
        Some(arena)
    }

    fn add(&mut self, va: u64) -> Option<usize> {
        let mfn = Mfn(self.frames.next()?);
        let index = self.first_at(va);
        self.pages.insert(index, Page { va, mfn, used: Vec::new() });
        self.span = self.span.start.min(va)..self.span.end.max(va.saturating_add(PAGE_SIZE));
        Some(index)
    }

    /// Everything, for the shadow to map.
    pub fn overlay(&self) -> impl Iterator<Item = OverlayPage> + '_ {
        let state = OverlayPage { va: self.state, mfn: self.state_frame, writable: true, executable: false };
        let code = self.pages.iter().map(|p| OverlayPage {
            va: p.va,
            mfn: p.mfn,
            writable: false,
            executable: true,
        });
        std::iter::once(state).chain(code)
    }

    /// Where in the list the first page is, or would be, whose place within [`SPAN`] is that of `at`.
    fn first_at(&self, at: u64) -> usize {
        let place = (at % SPAN) & !(PAGE_SIZE - 1);
        self.pages.partition_point(|page| page.va % SPAN < place)
    }

    fn index(&self, at: u64) -> Option<usize> {
        let first = self.first_at(at);
        let place = (at % SPAN) & !(PAGE_SIZE - 1);
        let mut there = self.pages.get(first..)?.iter().take_while(|page| page.va % SPAN == place);
        there.position(|page| page.va == at & !(PAGE_SIZE - 1)).map(|n| first + n)
    }

    fn page(&self, at: u64) -> Option<&Page> {
        self.pages.get(self.index(at)?)
    }

    /// Whether an address is in a page of stubs.
    pub fn contains(&self, at: u64) -> bool {
        self.span.contains(&at) && self.page(at).is_some()
    }

    /// The place in a page of stubs that `at` may be, where the guest uses its tables at two linear addresses: what
    /// lies in a table of ours is then at both. (Their distance is a multiple of what an L3 entry spans.)
    pub fn seen_from(&self, at: u64) -> Option<u64> {
        let page = self.pages.get(self.first_at(at))?;
        (page.va % SPAN == (at % SPAN) & !(PAGE_SIZE - 1)).then_some(())?;
        Some(page.va | (at % PAGE_SIZE))
    }

    /// The machine address of a place in a page of stubs.
    pub fn maddr(&self, at: u64) -> Option<Maddr> {
        self.page(at).map(|page| Maddr(page.mfn.maddr().0 | (at % PAGE_SIZE)))
    }

    /// Takes `len` bytes more at the end of those taken from `at` on; whether they were free.
    pub fn extend(&mut self, at: u64, taken: u64, len: u64) -> bool {
        let Some(page) = self.index(at).and_then(|index| self.pages.get_mut(index)) else { return false };
        let from = at % PAGE_SIZE + taken;
        if len > taken && page.free_from(from) < len - taken {
            return false;
        }
        if len > taken {
            page.take(from, len - taken);
        }
        true
    }

    /// Takes `len` bytes anywhere.
    pub fn allocate(&mut self, len: u64, is_free: &dyn Fn(u64) -> bool) -> Option<u64> {
        for page in &mut self.pages {
            let fits = |offset: &u64| page.free_from(*offset) >= len;
            if let Some(offset) = (0..PAGE_SIZE).step_by(ALIGNED as usize).find(fits) {
                page.take(offset, len);
                return Some(page.va + offset);
            }
        }
        let beside = self.pages.iter().map(|page| page.va.wrapping_add(PAGE_SIZE));
        let va = beside.into_iter().find(|va| *va != self.state && !self.contains(*va) && is_free(*va))?;
        let index = self.add(va)?;
        self.pages.get_mut(index)?.take(0, len.min(PAGE_SIZE));
        (len <= PAGE_SIZE).then_some(va)
    }
}

/// An arena that may grow.
pub(crate) struct Growing<'a> {
    pub arena: &'a mut Arena,
    /// Whether a page may lie at an address, so far as the guest is concerned.
    pub is_free: &'a dyn Fn(u64) -> bool,
}

impl Growing<'_> {
    fn in_page(&self, page: &Page, end: u64, pattern: &Pattern) -> Option<u64> {
        let displacement = |at: u64| i32::try_from(at.wrapping_sub(end).cast_signed()).ok();
        let (first, last) = (displacement(page.va)?, displacement(page.va + (PAGE_SIZE - 1))?);
        // Most pages are out of the question by the upper bytes alone.
        for (want, n) in pattern.0.iter().zip(0..).skip(2) {
            let byte = |d: i32| d.to_le_bytes().get(n).copied().is_some_and(|byte| want.allows(byte));
            if !byte(first) && !byte(last) {
                return None;
            }
        }
        // Where in a page a place may be depends on the lowest byte first: one place in 256 bytes for each value.
        let lows: &[u8] = match pattern.0.first()? {
            Want::Any => &ANY_LOW,
            Want::Trap => &TRAPPING,
            Want::Is(byte) => std::slice::from_ref(byte),
        };
        let fits = |offset: &u64, room: u64| {
            page.free_from(*offset) >= room
                && displacement(page.va + offset).is_some_and(|d| pattern.allows(d))
        };
        let with = |room: u64| {
            lows.iter().find_map(|low| {
                let first = end.wrapping_add(u64::from(*low)).wrapping_sub(page.va) % 256;
                (first..PAGE_SIZE).step_by(256).find(|offset| fits(offset, room))
            })
        };
        with(ROOMY).or_else(|| with(NEAR)).map(|offset| page.va + offset)
    }

    fn in_new_page(&mut self, end: u64, pattern: &Pattern) -> Option<u64> {
        let Pattern([a, b, c, d]) = pattern;
        let tops = match d {
            Want::Any => Want::Trap.choices(),
            want => want.choices(),
        };
        for top in tops {
            for third in c.choices() {
                for second in b.choices() {
                    for low in a.choices() {
                        let displacement = i32::from_le_bytes([low, second, third, top]);
                        let at = end.wrapping_add_signed(displacement.into());
                        let page = at & !(PAGE_SIZE - 1);
                        let is_new = page != self.arena.state && !self.arena.contains(page);
                        if is_new && at % PAGE_SIZE <= PAGE_SIZE - NEAR && (self.is_free)(page) {
                            self.arena.add(page)?;
                            return Some(at);
                        }
                    }
                }
            }
        }
        None
    }
}

impl Want {
    /// The bytes to try.
    fn choices(self) -> Vec<u8> {
        match self {
            Self::Any => TRIED.to_vec(),
            Self::Trap => TRAPPING.to_vec(),
            Self::Is(byte) => vec![byte],
        }
    }
}

impl Room for Growing<'_> {
    fn take(&mut self, end: u64, pattern: &Pattern) -> Option<u64> {
        let known = self.arena.pages.iter().find_map(|page| self.in_page(page, end, pattern));
        let at = known.or_else(|| self.in_new_page(end, pattern))?;
        let index = self.arena.index(at)?;
        let page = self.arena.pages.get_mut(index)?;
        page.take(at % PAGE_SIZE, NEAR);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SITE: u64 = 0x4000_1234;

    fn any_want() -> impl Strategy<Value = Want> {
        prop_oneof![Just(Want::Any), Just(Want::Trap), any::<u8>().prop_map(Want::Is)]
    }

    #[test]
    fn a_window_that_the_guest_uses_is_left_alone() {
        let low = |va: u64| va >= 0x4000_0000;
        let arena = Arena::open(SITE, Mfn(1), 10..12, &low).unwrap();
        assert!(arena.state > SITE, "{:#x}", arena.state);
        assert!(Arena::open(SITE, Mfn(1), 10..12, &|_| false).is_none());
        assert!(Arena::open(SITE, Mfn(1), 10..10, &|_| true).is_none(), "no frame");
    }

    #[test]
    fn space_runs_out() {
        let mut arena = Arena::open(SITE, Mfn(1), 10..12, &|_| true).unwrap();
        let mut taken = 0;
        while arena.allocate(1000, &|_| true).is_some() {
            taken += 1;
        }
        assert_eq!((taken, arena.pages.len()), (8, 2));
        assert_eq!(arena.overlay().count(), 3);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_allowed_and_taken_once(
            wants in prop::collection::vec((prop::array::uniform4(any_want()), 0u64..20_000), 1..60),
        ) {
            let is_free = |va: u64| !(0x3000_0000..0x3800_0000).contains(&va);
            let mut arena = Arena::open(SITE, Mfn(1), 10..74, &is_free).unwrap();
            let mut all: Vec<Range<u64>> = Vec::new();
            for (wants, site) in wants {
                let (pattern, end) = (Pattern(wants), SITE + site + NEAR);
                let mut room = Growing { arena: &mut arena, is_free: &is_free };
                if let Some(at) = room.take(end, &pattern) {
                    let displacement = i32::try_from(at.wrapping_sub(end).cast_signed()).unwrap();
                    prop_assert!(pattern.allows(displacement));
                    let more = arena.extend(at, NEAR, 30);
                    let taken = at..at + if more { 30 } else { NEAR };
                    prop_assert!(arena.maddr(at).is_some() && is_free(at & !4095));
                    prop_assert!(all.iter().all(|other| other.end <= taken.start || taken.end <= other.start));
                    all.push(taken);
                }
            }
            prop_assert!(arena.pages.len() <= 64);
        }
    }
}
