//! The INT3s that were put into the guest's memory.
//!
//! One is known by the machine address of its byte: whoever gets there meets it, by whatever linear address, and code
//! of another address space at the same linear address does not. A place may be asked for several times, by several
//! addresses, and is put back with the last.

use crate::machine::memory::Maddr;

/// INT3.
pub(super) const INT3: u8 = 0xcc;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Planted {
    /// The linear address that was asked for.
    va: u64,
    at: Maddr,
    /// What was there.
    original: u8,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    planted: Vec<Planted>,
}

/// The most that there can be: far more than a user sets.
const MOST: usize = 4096;

/// What becomes of a byte of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It stays.
    Nothing,
    /// This is to be written.
    Write(Maddr, u8),
}

impl Breakpoints {
    /// One is to be at `va`, which is `at` in memory and holds `now`; `None` if there are too many.
    pub fn add(&mut self, va: u64, at: Maddr, now: u8) -> Option<Change> {
        if let Some(there) = self.planted.iter().find(|one| one.at == at).copied() {
            if there.va != va {
                self.push(Planted { va, ..there })?;
            }
            return Some(Change::Nothing);
        }
        self.push(Planted { va, at, original: now })?;
        Some(Change::Write(at, INT3))
    }

    fn push(&mut self, one: Planted) -> Option<()> {
        (self.planted.len() < MOST).then(|| self.planted.push(one))
    }

    /// The one at `va` goes. `byte` reads memory: a frame that has become something else keeps what it holds now.
    /// `None` if there is none.
    pub fn remove(&mut self, va: u64, byte: impl Fn(Maddr) -> Option<u8>) -> Option<Change> {
        let index = self.planted.iter().position(|one| one.va == va)?;
        let Planted { at, original, .. } = self.planted.remove(index);
        let is_ours = !self.has(at) && byte(at) == Some(INT3);
        Some(if is_ours { Change::Write(at, original) } else { Change::Nothing })
    }

    /// All linear addresses that were asked for.
    pub fn addresses(&self) -> Vec<u64> {
        self.planted.iter().map(|one| one.va).collect()
    }

    /// Whether there is one at this place.
    pub fn has(&self, at: Maddr) -> bool {
        self.planted.iter().any(|one| one.at == at)
    }

    /// Puts what the guest has there into what was read from `at` on.
    pub fn hide(&self, at: Maddr, bytes: &mut [u8]) {
        for (byte, one) in self.within(at, bytes.len()) {
            if let Some(byte) = bytes.get_mut(byte).filter(|byte| **byte == INT3) {
                *byte = one.original;
            }
        }
    }

    /// What is to be written in place of `bytes` from `at` on: an INT3 stays, and what is written there is what the
    /// guest has there.
    pub fn keep(&mut self, at: Maddr, bytes: &mut [u8]) {
        let given = bytes.to_vec();
        for one in &mut self.planted {
            let Some(index) = one.at.0.checked_sub(at.0).and_then(|index| usize::try_from(index).ok()) else {
                continue;
            };
            if let (Some(given), Some(byte)) = (given.get(index), bytes.get_mut(index)) {
                (one.original, *byte) = (*given, INT3);
            }
        }
    }

    fn within(&self, at: Maddr, len: usize) -> impl Iterator<Item = (usize, &Planted)> {
        let index = move |one: &Planted| usize::try_from(one.at.0.checked_sub(at.0)?).ok();
        self.planted.iter().filter_map(move |one| Some((index(one).filter(|index| *index < len)?, one)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Maddr = Maddr(0x5000);

    #[test]
    fn what_was_there_comes_back_with_the_last_that_asked() {
        let mut all = Breakpoints::default();
        assert_eq!(all.add(0x1000, AT, 0x55), Some(Change::Write(AT, INT3)));
        assert_eq!(all.add(0x1000, AT, INT3), Some(Change::Nothing), "asked for again");
        assert_eq!(all.add(0x9000, AT, INT3), Some(Change::Nothing), "the same memory elsewhere");
        let holds = |byte| move |_| Some(byte);
        assert_eq!(all.remove(0x1000, holds(INT3)), Some(Change::Nothing));
        assert!(all.has(AT));
        assert_eq!(all.remove(0x9000, holds(INT3)), Some(Change::Write(AT, 0x55)));
        assert_eq!((all.has(AT), all.remove(0x9000, holds(INT3))), (false, None));
    }

    /// The guest has given the frame back and uses it for something else.
    #[test]
    fn memory_that_has_become_something_else_is_left_alone() {
        let mut all = Breakpoints::default();
        all.add(0x1000, AT, 0x55);
        assert_eq!(all.remove(0x1000, |_| Some(7)), Some(Change::Nothing));
        all.add(0x1000, AT, 0x55);
        assert_eq!(all.remove(0x1000, |_| None), Some(Change::Nothing));
    }

    fn index(at: Maddr) -> usize {
        usize::try_from(at.0 - AT.0).unwrap()
    }

    proptest! {
        /// Whatever is set, written and taken out: a reader sees what memory would hold without any of it.
        #[test]
        fn nobody_sees_an_int3(
            first in prop::collection::vec(any::<u8>(), 32),
            steps in prop::collection::vec((0u8..3, 0usize..32, any::<u8>()), 0..40),
        ) {
            let (mut memory, mut expected) = (first.clone(), first);
            let mut all = Breakpoints::default();
            for (what, index, value) in steps {
                let at = Maddr(AT.0 + index as u64);
                let change = match what {
                    0 => all.add(at.0, at, memory[index]),
                    1 => all.remove(at.0, |at| Some(memory[self::index(at)])),
                    _ => {
                        let mut bytes = [value];
                        all.keep(at, &mut bytes);
                        (memory[index], expected[index]) = (bytes[0], value);
                        None
                    }
                };
                if let Some(Change::Write(at, byte)) = change {
                    memory[self::index(at)] = byte;
                }
                let mut seen = memory.clone();
                all.hide(AT, &mut seen);
                prop_assert_eq!(&seen, &expected);
            }
            for va in all.addresses() {
                let change = all.remove(va, |at| Some(memory[self::index(at)]));
                if let Some(Change::Write(at, byte)) = change {
                    memory[self::index(at)] = byte;
                }
            }
            prop_assert_eq!(memory, expected);
        }
    }
}
