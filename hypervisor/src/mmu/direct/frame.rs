//! The frame table: for every machine frame its owner, its type and its reference counts.
//!
//! This file only counts: it reads no page table and knows no error number. Each frame has two counts. A *reference*
//! keeps the guest's ownership of the frame: every entry that maps or links it, every CPU that walks it, and every pin
//! holds one. A *type reference* also keeps its type: writable mappings, links to tables, pins, CR3 and descriptor
//! tables hold one. Only a frame without type references may change its type. This rule keeps a guest from writing to
//! page tables.

use crate::host::zeroed::{NoMemory, zeroed};
use crate::machine::memory::Mfn;
use crate::mmu::log::Position;

/// Level of a page table: an L1 table's entries map pages, the others' link tables of the level below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    L1,
    L2,
    L3,
    L4,
}

impl Level {
    /// The level as a number, 1..=4, as in the rest of the program.
    pub const fn number(self) -> u8 {
        match self {
            Self::L1 => 1,
            Self::L2 => 2,
            Self::L3 => 3,
            Self::L4 => 4,
        }
    }
    /// The level of the tables that this one's entries link; `None` if they map pages.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }
}

/// The use of a frame. A frame without type references keeps its last type until it gets another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameType {
    /// Only read so far.
    None,
    /// Ordinary memory, mapped writable somewhere.
    Writable,
    /// Holds segment descriptors.
    SegDesc,
    /// A page table.
    Table(Level),
}

/// The owner of a frame, which determines what a guest may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The guest's own memory.
    Guest,
    /// Memory of the hypervisor's, or without an owner, which the guest may not use.
    Hypervisor,
    /// Memory of the hypervisor's that the guest may map for reading and writing (the shared info page).
    Shared,
    /// Memory of the hypervisor's that the guest may map for reading (the M2P).
    ReadOnly,
}

const COUNT_BITS: u32 = 27;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const REF: u64 = 1;
const TYPE_REF: u64 = 1 << COUNT_BITS;
const TYPE_SHIFT: u32 = 2 * COUNT_BITS;
const TYPE_MASK: u64 = 0b111 << TYPE_SHIFT;
const WRITABLE: u64 = 5;
const VALIDATED: u64 = 1 << 57;
const PINNED: u64 = 1 << 58;
const WAS_TABLE: u64 = 1 << 59;
const PARKED: u64 = 1 << 60;
const OWNER_SHIFT: u32 = 61;
const OWNER_MASK: u64 = 0b11 << OWNER_SHIFT;

/// One frame's owner, type and counts, in one word. All zeroes is a frame of the guest without references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame(u64);

impl Frame {
    /// The number of references.
    pub const fn refs(self) -> u64 {
        self.0 & COUNT_MAX
    }
    /// The number of type references among them.
    pub const fn type_refs(self) -> u64 {
        (self.0 >> COUNT_BITS) & COUNT_MAX
    }
    /// The present type, or the last one.
    pub const fn kind(self) -> FrameType {
        match (self.0 & TYPE_MASK) >> TYPE_SHIFT {
            1 => FrameType::Table(Level::L1),
            2 => FrameType::Table(Level::L2),
            3 => FrameType::Table(Level::L3),
            4 => FrameType::Table(Level::L4),
            WRITABLE => FrameType::Writable,
            6 => FrameType::SegDesc,
            _ => FrameType::None,
        }
    }
    /// The type that is held: the frame's type while there are type references, otherwise `None`.
    pub const fn held_as(self) -> Option<FrameType> {
        if self.type_refs() == 0 { None } else { Some(self.kind()) }
    }
    /// Whether the contents have been validated for the type. Only meaningful while the type is held.
    pub const fn validated(self) -> bool {
        self.0 & VALIDATED != 0
    }
    /// Whether the guest has pinned it: a type reference that only an unpin drops.
    pub const fn pinned(self) -> bool {
        self.0 & PINNED != 0
    }
    /// Whether an engine may remember it from an earlier use as a page table.
    pub const fn was_table(self) -> bool {
        self.0 & WAS_TABLE != 0
    }
    /// Whether a list of unfinished work holds one of its type references.
    pub const fn parked(self) -> bool {
        self.0 & PARKED != 0
    }
    /// The owner.
    pub const fn owner(self) -> Owner {
        match (self.0 & OWNER_MASK) >> OWNER_SHIFT {
            0 => Owner::Guest,
            1 => Owner::Hypervisor,
            2 => Owner::Shared,
            _ => Owner::ReadOnly,
        }
    }

    /// Whether the frame can be held as writable memory: what [`FrameTable::hold`] asks, without its branches.
    const fn can_be_writable(self) -> bool {
        const IS: u64 = WRITABLE << TYPE_SHIFT | VALIDATED;
        let (refs, type_refs) = (self.refs(), self.type_refs());
        let compatible = (type_refs == 0) | (self.0 & (TYPE_MASK | VALIDATED) == IS);
        (self.0 & OWNER_MASK == 0) & (refs != COUNT_MAX) & (type_refs != COUNT_MAX) & compatible
    }
    /// Whether its present or last type is one that a CPU must not use it by once it is writable memory.
    fn was_something_else(self) -> bool {
        !matches!(self.kind(), FrameType::None | FrameType::Writable)
    }
    /// The value of such a frame once it is held as writable memory.
    const fn as_writable(self) -> Self {
        Self((self.0 & !TYPE_MASK | WRITABLE << TYPE_SHIFT | VALIDATED) + (REF + TYPE_REF))
    }

    const fn with_kind(self, kind: FrameType) -> Self {
        let number = match kind {
            FrameType::None => 0,
            FrameType::Table(level) => level.number() as u64,
            FrameType::Writable => WRITABLE,
            FrameType::SegDesc => 6,
        };
        Self(self.0 & !TYPE_MASK | number << TYPE_SHIFT)
    }
    const fn with_flag(self, flag: u64, set: bool) -> Self {
        if set { Self(self.0 | flag) } else { Self(self.0 & !flag) }
    }
}

/// The effect of taking a type reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// The frame already had this type: nothing is left to do.
    Again,
    /// The frame got this type now; this was its last type before.
    First(FrameType),
}

/// Every machine frame's [`Frame`].
#[derive(Debug)]
pub(super) struct FrameTable {
    // The allocator zeroes it, so that unused frames cost no memory.
    words: Vec<u64>,
    /// The position of the log when a CPU could last begin to use the frame by a reference that is gone now. Empty
    /// where a single CPU uses the frames.
    lost: Vec<u64>,
}

impl FrameTable {
    pub(super) fn new(frames: u64) -> Result<Self, NoMemory> {
        Ok(Self { words: zeroed("the account of the guest's frames", frames)?, lost: Vec::new() })
    }
    /// From now on it is noted when references go.
    pub(super) fn note_losses(&mut self) -> Result<(), NoMemory> {
        self.lost = zeroed("the account of the guest's frames", self.words.len() as u64)?;
        Ok(())
    }
    /// A reference by which a CPU used the frame goes, when so much had been noted in the log.
    pub(super) fn note_loss(&mut self, mfn: Mfn, position: Position) {
        if let Some(lost) = usize::try_from(mfn.0).ok().and_then(|index| self.lost.get_mut(index)) {
            *lost = position.0;
        }
    }
    /// The position of the log that every CPU must be current to, so that none still uses the frame by a reference that
    /// is gone.
    pub(super) fn lost(&self, mfn: Mfn) -> Position {
        let lost = usize::try_from(mfn.0).ok().and_then(|index| self.lost.get(index));
        Position(lost.copied().unwrap_or(0))
    }
    /// The same for all of `count` frames that had another type than [`FrameTable::hold_writable`] would give them.
    pub(super) fn lost_in_run(&self, first: Mfn, count: u64) -> Position {
        if self.lost.is_empty() {
            return Position::default();
        }
        let others = (first.0..first.0.saturating_add(count).min(self.words.len() as u64)).map(Mfn);
        let others = others.filter(|mfn| self.get(*mfn).is_some_and(Frame::was_something_else));
        others.map(|mfn| self.lost(mfn)).max().unwrap_or_default()
    }
    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        self.words.len() as u64
    }
    /// The state of `mfn`, if there is such a frame.
    pub(super) fn get(&self, mfn: Mfn) -> Option<Frame> {
        self.words.get(usize::try_from(mfn.0).ok()?).copied().map(Frame)
    }
    /// The state of `mfn`, if the guest owns it.
    pub(super) fn guest(&self, mfn: Mfn) -> Option<Frame> {
        self.get(mfn).filter(|f| f.owner() == Owner::Guest)
    }

    /// Takes a reference. `None` when there is no such frame or the count is full.
    pub(super) fn take(&mut self, mfn: Mfn) -> Option<()> {
        let word = self.word(mfn)?;
        if Frame(*word).refs() == COUNT_MAX {
            return None;
        }
        *word += REF;
        Some(())
    }
    /// Drops a reference.
    pub(super) fn put(&mut self, mfn: Mfn) {
        if let Some(word) = self.word(mfn) {
            debug_assert!(Frame(*word).refs() > Frame(*word).type_refs(), "unbalanced put of {mfn:?}");
            *word = word.saturating_sub(REF);
        }
    }
    /// Takes a reference and a type reference to a frame of the guest, and makes it `kind` if it may change its type.
    ///
    /// `None` if the guest does not own the frame, another type is held, or a count is full. A frame that just became a
    /// table or a descriptor page is not validated yet: the caller must do that next.
    pub(super) fn hold(&mut self, mfn: Mfn, kind: FrameType) -> Option<Hold> {
        let frame = self.guest(mfn)?;
        if frame.refs() == COUNT_MAX || frame.type_refs() == COUNT_MAX {
            return None;
        }
        let taken = Frame(frame.0 + REF + TYPE_REF);
        let (taken, hold) = if frame.type_refs() == 0 {
            let fresh = taken.with_kind(kind).with_flag(VALIDATED, kind == FrameType::Writable);
            (fresh, Hold::First(frame.kind()))
        } else if frame.kind() == kind && frame.validated() {
            (taken, Hold::Again)
        } else {
            return None;
        };
        *self.word(mfn)? = taken.0;
        Some(hold)
    }
    /// Undoes a [`FrameTable::hold`] that was the first: the last type is `was` again.
    pub(super) fn undo_hold(&mut self, mfn: Mfn, was: FrameType) {
        self.release(mfn);
        self.update(mfn, |f| f.with_kind(was));
    }
    /// [`FrameTable::hold`] for `count` consecutive frames, as writable memory: all of them, or none.
    ///
    /// Returns whether one of them had a last type that a CPU may have cached. This is much cheaper than holding each
    /// frame, because neither loop branches on the state of a frame.
    pub(super) fn hold_writable(&mut self, first: Mfn, count: u64) -> Option<bool> {
        let run = self.run(first, count)?;
        if !run.iter().all(|&word| Frame(word).can_be_writable()) {
            return None;
        }
        let mut was_other = false;
        for word in run {
            let frame = Frame(*word);
            was_other |= frame.was_something_else();
            *word = frame.as_writable().0;
        }
        Some(was_other)
    }
    /// [`FrameTable::release`] for `count` consecutive frames, which must all be held.
    pub(super) fn release_run(&mut self, first: Mfn, count: u64) {
        for word in self.run(first, count).into_iter().flatten() {
            debug_assert!(
                Frame(*word).type_refs() > 0,
                "unbalanced release in {count} frames from {first:?}"
            );
            *word = word.saturating_sub(REF + TYPE_REF);
        }
    }
    /// Drops a reference and a type reference.
    pub(super) fn release(&mut self, mfn: Mfn) {
        if let Some(word) = self.word(mfn) {
            debug_assert!(Frame(*word).type_refs() > 0, "unbalanced release of {mfn:?}");
            *word = word.saturating_sub(REF + TYPE_REF);
        }
    }
    pub(super) fn set_owner(&mut self, mfn: Mfn, owner: Owner) {
        let number: u64 = match owner {
            Owner::Guest => 0,
            Owner::Hypervisor => 1,
            Owner::Shared => 2,
            Owner::ReadOnly => 3,
        };
        if let Some(word) = self.word(mfn) {
            *word = *word & !OWNER_MASK | number << OWNER_SHIFT;
        }
    }
    pub(super) fn set_validated(&mut self, mfn: Mfn, set: bool) {
        self.update(mfn, |f| f.with_flag(VALIDATED, set));
    }
    pub(super) fn set_pinned(&mut self, mfn: Mfn, set: bool) {
        self.update(mfn, |f| f.with_flag(PINNED, set));
    }
    pub(super) fn set_was_table(&mut self, mfn: Mfn, set: bool) {
        self.update(mfn, |f| f.with_flag(WAS_TABLE, set));
    }
    pub(super) fn set_parked(&mut self, mfn: Mfn, set: bool) {
        self.update(mfn, |f| f.with_flag(PARKED, set));
    }

    fn update(&mut self, mfn: Mfn, change: impl FnOnce(Frame) -> Frame) {
        if let Some(word) = self.word(mfn) {
            *word = change(Frame(*word)).0;
        }
    }
    fn run(&mut self, first: Mfn, count: u64) -> Option<&mut [u64]> {
        let end = first.0.checked_add(count)?;
        self.words.get_mut(usize::try_from(first.0).ok()?..usize::try_from(end).ok()?)
    }
    fn word(&mut self, mfn: Mfn) -> Option<&mut u64> {
        self.words.get_mut(usize::try_from(mfn.0).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const F: Mfn = Mfn(1);
    const L1: FrameType = FrameType::Table(Level::L1);

    #[test]
    fn untouched_frames_are_free_guest_frames() {
        let t = FrameTable::new(2).unwrap();
        let f = t.get(F).unwrap();
        assert_eq!((f.refs(), f.type_refs(), f.kind(), f.owner()), (0, 0, FrameType::None, Owner::Guest));
        assert!(!f.validated() && !f.pinned() && !f.was_table() && !f.parked());
        assert_eq!(t.get(Mfn(2)), None);
        assert_eq!(t.get(Mfn(u64::MAX)), None);
    }

    #[test]
    fn a_held_frame_keeps_its_type() {
        let mut t = FrameTable::new(2).unwrap();
        assert_eq!(t.hold(F, L1), Some(Hold::First(FrameType::None)));
        assert_eq!(t.hold(F, L1), None, "not validated yet");
        t.set_validated(F, true);
        assert_eq!(t.hold(F, L1), Some(Hold::Again));
        assert_eq!(t.hold(F, FrameType::Writable), None);
        assert_eq!(t.take(F), Some(()));
        t.release(F);
        assert_eq!(t.get(F).unwrap().held_as(), Some(L1));
        t.release(F);
        assert_eq!(t.get(F).unwrap().held_as(), None);
        assert_eq!(t.hold(F, FrameType::Writable), Some(Hold::First(L1)));
        assert!(t.get(F).unwrap().validated());
        assert_eq!(t.get(F).unwrap().refs(), 2);
    }

    #[test]
    fn fields_do_not_leak_into_each_other() {
        let mut t = FrameTable::new(2).unwrap();
        for owner in [Owner::Hypervisor, Owner::Shared, Owner::ReadOnly, Owner::Guest] {
            t.set_owner(F, owner);
            assert_eq!(t.get(F).unwrap().owner(), owner);
        }
        t.words[1] = COUNT_MAX;
        assert_eq!(t.take(F), None, "a full count refuses, and does not wrap");
        assert_eq!(t.hold(F, L1), None);
        t.words[1] = COUNT_MAX * TYPE_REF;
        assert_eq!(t.hold(F, FrameType::None), None);
        for kind in [L1, FrameType::Table(Level::L4), FrameType::SegDesc, FrameType::Writable] {
            t.update(F, |f| f.with_kind(kind));
            assert_eq!(t.get(F).unwrap().kind(), kind);
        }
        t.set_pinned(F, true);
        t.set_was_table(F, true);
        t.set_parked(F, true);
        let f = t.get(F).unwrap();
        assert_eq!((f.refs(), f.type_refs(), f.owner()), (0, COUNT_MAX, Owner::Guest));
        t.set_pinned(F, false);
        let f = t.get(F).unwrap();
        assert!(!f.pinned() && f.was_table() && f.parked() && !f.validated());
    }

    #[test]
    fn only_the_guests_frames_can_be_held() {
        let mut t = FrameTable::new(2).unwrap();
        for owner in [Owner::Hypervisor, Owner::Shared, Owner::ReadOnly] {
            t.set_owner(F, owner);
            assert_eq!(t.hold(F, FrameType::Writable), None);
        }
    }

    /// A frame whose counts are mostly zero, small or full.
    fn account() -> impl Strategy<Value = u64> {
        let count = || prop_oneof![4 => 0u64..3, 1 => COUNT_MAX - 2..=COUNT_MAX, 1 => 0..=COUNT_MAX];
        let rest = prop_oneof![1 => any::<u64>(), 3 => any::<u64>().prop_map(|word| word & !OWNER_MASK)];
        (count(), count(), rest).prop_map(|(refs, type_refs, rest)| {
            let counts = (REF + TYPE_REF) * COUNT_MAX;
            refs * REF + type_refs * TYPE_REF + (rest & !counts)
        })
    }

    proptest! {
        /// Holding consecutive frames has the effect of holding each of them, or none.
        #[test]
        fn a_run_is_its_frames(words in prop::collection::vec(account(), 1..6), first in 0u64..6, count in 0u64..7) {
            let mut run = FrameTable { words, lost: Vec::new() };
            let before = run.words.clone();
            let mut each = FrameTable { words: before.clone(), lost: Vec::new() };
            let holds: Option<Vec<Hold>> =
                (first..first + count).map(|mfn| each.hold(Mfn(mfn), FrameType::Writable)).collect();
            let holds = holds.filter(|_| first <= run.len());
            let other = |hold: &Hold| !matches!(hold, Hold::Again | Hold::First(FrameType::None | FrameType::Writable));
            let was_other = holds.map(|holds| holds.iter().any(other));
            prop_assert_eq!(run.hold_writable(Mfn(first), count), was_other);
            prop_assert_eq!(&run.words, if was_other.is_some() { &each.words } else { &before });
            if was_other.is_some() {
                (first..first + count).for_each(|mfn| each.release(Mfn(mfn)));
                run.release_run(Mfn(first), count);
                prop_assert_eq!(run.words, each.words);
            }
        }
    }

    #[test]
    fn runs_that_are_not_there() {
        let mut t = FrameTable::new(2).unwrap();
        for (first, count) in [(0, 3), (2, 1), (3, 0), (1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            assert_eq!(t.hold_writable(Mfn(first), count), None, "{count} from {first}");
        }
        assert_eq!(t.words, [0; 2]);
    }
}
