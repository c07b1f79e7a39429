//! Which instructions brought the guest to the host more than once.
//!
//! A *site* is the address of a privileged or sensitive instruction of the kernel. Patching and translation are there
//! that a site does not trap again; so how many do is counted in the run itself, by every technique alike.
//!
//! A table of fixed size: of a guest that has more sites, or has them where they collide, fewer are counted than there
//! are. What may not be done here: allocating while an exit is counted.

use super::work::WorkRow;

/// Places in the table; a power of two.
const PLACES: usize = 4096;
/// Places that are looked at for one site.
const PROBES: usize = 16;
/// Counts end here: whether it was more than once is all that is asked.
const MANY: u8 = 2;

/// How an instruction brought the guest to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It trapped.
    Trap,
    /// Code of ours that stands for it called the host.
    Call,
}

/// How often a site trapped and called, outside of regions and within one.
type Seen = [u8; 4];

/// Which part of a domain's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    Whole,
    Inside,
}

/// The sites of a domain.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    /// 1 more than the address; 0 where a place is free. Empty where nothing is counted.
    keys: Vec<u64>,
    seen: Vec<Seen>,
}

impl Sites {
    /// With all the memory that it will ever need, which is not touched yet.
    pub(super) fn new() -> Self {
        Self { keys: vec![0; PLACES], seen: vec![[0; 4]; PLACES] }
    }

    pub(super) fn note(&mut self, at: u64, arrival: Arrival, inside: bool) {
        let index = usize::from(inside) + if arrival == Arrival::Call { 2 } else { 0 };
        if let Some(count) = self.place(at.wrapping_add(1)).and_then(|seen| seen.get_mut(index)) {
            *count = count.saturating_add(1).min(MANY);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.keys.is_empty() {
            self.clone_from(other);
            return;
        }
        for (key, more) in other.keys.iter().zip(&other.seen).filter(|(key, _)| **key != 0) {
            for (count, more) in self.place(*key).into_iter().flatten().zip(more) {
                *count = count.saturating_add(*more).min(MANY);
            }
        }
    }

    /// The sites that trapped more than once, in order.
    pub(super) fn trapped(&self, span: Span) -> Vec<u64> {
        let again = self.again(span).filter(|(_, [trapped, _])| *trapped);
        let mut all: Vec<u64> = again.map(|(key, _)| key.wrapping_sub(1)).collect();
        all.sort_unstable();
        all
    }

    /// What is to be said of them beside the exits.
    pub(super) fn rows(&self, span: Span) -> Vec<WorkRow> {
        let counted = |kind, of: fn([bool; 2]) -> bool| {
            let count = self.again(span).filter(|(_, again)| of(*again)).count() as u64;
            (count != 0).then_some(WorkRow { kind, count })
        };
        let rows = [
            counted("sites that trapped more than once", |[trapped, _]| trapped),
            counted("sites that called the host more than once instead", |[trapped, called]| {
                called && !trapped
            }),
        ];
        rows.into_iter().flatten().collect()
    }

    /// Each site's key, and whether it trapped and whether it called more than once.
    fn again(&self, span: Span) -> impl Iterator<Item = (u64, [bool; 2])> {
        let sites = self.keys.iter().zip(&self.seen).filter(|(key, _)| **key != 0);
        sites.map(move |(key, [before, inside, called_before, called_inside])| {
            let pairs = [(before, inside), (called_before, called_inside)];
            (
                *key,
                pairs.map(|(outside, inside)| match span {
                    Span::Whole => outside.saturating_add(*inside) >= MANY,
                    Span::Inside => *inside >= MANY,
                }),
            )
        })
    }

    /// The counts of a site; `None` if there is no room for it.
    fn place(&mut self, key: u64) -> Option<&mut Seen> {
        // Knuth's multiplicative hashing: the upper bits of a product with 2^64 / phi.
        let first = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.trailing_zeros())) as usize;
        let mut places = (first..first + PROBES).map(|place| place % PLACES);
        let found = places.find(|place| self.keys.get(*place).is_some_and(|k| *k == key || *k == 0))?;
        *self.keys.get_mut(found)? = key;
        self.seen.get_mut(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(sites: &Sites, span: Span) -> Vec<(&'static str, u64)> {
        sites.rows(span).iter().map(|row| (row.kind, row.count)).collect()
    }

    #[test]
    fn a_site_counts_once_it_came_twice() {
        let mut sites = Sites::new();
        sites.note(0x1000, Arrival::Trap, false);
        assert_eq!((counts(&sites, Span::Whole), sites.trapped(Span::Whole)), (vec![], vec![]));
        sites.note(0x1000, Arrival::Trap, true);
        // Patched at its first trap.
        sites.note(0x2000, Arrival::Trap, false);
        sites.note(0x2000, Arrival::Call, true);
        sites.note(0x2000, Arrival::Call, true);
        let called = ("sites that called the host more than once instead", 1);
        assert_eq!(counts(&sites, Span::Whole), [("sites that trapped more than once", 1), called]);
        assert_eq!(counts(&sites, Span::Inside), [called]);
        assert_eq!((sites.trapped(Span::Whole), sites.trapped(Span::Inside)), (vec![0x1000], vec![]));
    }

    #[test]
    fn those_of_two_ledgers_add_up() {
        let (mut one, mut two) = (Sites::new(), Sites::new());
        one.note(0, Arrival::Trap, false);
        two.note(0, Arrival::Trap, false);
        two.note(7, Arrival::Trap, false);
        one.merge(&two);
        assert_eq!(one.trapped(Span::Whole), [0]);
        let mut none = Sites::default();
        none.note(0, Arrival::Trap, false);
        none.merge(&one);
        assert_eq!(none.trapped(Span::Whole), [0]);
        one.merge(&Sites::default());
        assert_eq!(one.trapped(Span::Whole), [0]);
    }

    proptest! {
        /// Nothing is counted that did not come twice, however many sites there are.
        #[test]
        fn what_is_counted_came_twice(sites in prop::collection::vec(0u64..6000, 0..12_000)) {
            let mut table = Sites::new();
            let mut expected = std::collections::BTreeMap::<u64, u32>::new();
            for site in &sites {
                table.note(site * 3, Arrival::Trap, false);
                *expected.entry(site * 3).or_default() += 1;
            }
            let counted = table.trapped(Span::Whole);
            prop_assert!(counted.iter().all(|site| expected.get(site).is_some_and(|n| *n > 1)));
            if expected.len() <= 256 {
                prop_assert_eq!(counted.len(), expected.values().filter(|n| **n > 1).count());
            }
        }
    }
}
