//! A hostile guest: the audit passes after each of any sequence of operations.

use paravane_abi::mmu::*;
use proptest::prelude::*;

use super::super::frame::FrameType;
use super::super::{Granted, Place};
use super::*;

/// One operation of the guest. Frames and slots are few, so that operations collide.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Update {
        table: u64,
        slot: u64,
        value: u64,
        command: u64,
    },
    Map {
        page: u64,
        value: u64,
        flags: u64,
    },
    Trapped {
        table: u64,
        slot: u64,
        value: u64,
        size: u8,
    },
    Ext {
        cmd: u32,
        frame: u64,
        from: u64,
    },
    Descriptor {
        frame: u64,
        slot: u64,
        value: u64,
    },
    Gdt {
        frames: Vec<u64>,
        entries: u32,
    },
    Give {
        frame: u64,
    },
    Take {
        frame: u64,
    },
    Poke {
        frame: u64,
        slot: u64,
        value: u64,
    },
    /// A granted frame comes into an entry, or goes from it; by the table, or by its address.
    Grant {
        at: (u64, u64),
        linear: bool,
        frame: u64,
        writable: bool,
        back: bool,
        replacement: Option<u64>,
    },
    /// Makes a tree of tables as an honest guest would, and pins the one at `pin`; the first is the L4.
    Tree {
        frames: Vec<u64>,
        pin: usize,
    },
}

/// A frame, mostly one of the guest's, as an offset from its first.
fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 0..FRAMES, 1 => FRAMES..FRAMES + 3, 2 => (1..8u64).prop_map(|n| n.wrapping_neg())]
}

/// A frame that is a table, more often than not.
fn table() -> impl Strategy<Value = u64> {
    prop_oneof![1 => L4..FREE, 1 => frame()]
}

pub(super) fn slot() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..6u64, 2 => 6..FRAMES, 2 => prop_oneof![255..258u64, 270..274u64, Just(511u64)]]
}

/// Entries are kept relative to the guest's first frame until they are used.
pub(super) fn value() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        6 => Just(RW),
        5 => Just(RO),
        2 => Just(TABLE | pte::DIRTY),
        1 => Just(P),
        1 => Just(P | pte::RW),
        1 => any::<u64>().prop_map(|bits| bits & !pte::ADDR_MASK | P),
        1 => any::<u64>().prop_map(|bits| bits & !pte::ADDR_MASK),
    ];
    prop_oneof![
        12 => (frame(), flags).prop_map(|(frame, flags)| frame << 12 & pte::ADDR_MASK | flags),
        2 => Just(0),
        1 => any::<u64>(),
    ]
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => (table(), slot(), value(), prop_oneof![5 => Just(0u64), 3 => 0..8u64])
            .prop_map(|(table, slot, value, command)| Act::Update { table, slot, value, command }),
        3 => (slot(), value(), 0..8u64).prop_map(|(page, value, flags)| Act::Map { page, value, flags }),
        2 => (table(), slot(), value(), prop_oneof![Just(8u8), any::<u8>()])
            .prop_map(|(table, slot, value, size)| Act::Trapped { table, slot, value, size }),
        8 => (prop_oneof![6 => 0..6u32, 2 => Just(15u32), 2 => 6..22u32], frame(), frame())
            .prop_map(|(cmd, frame, from)| Act::Ext { cmd, frame, from }),
        1 => (frame(), slot(), any::<u64>())
            .prop_map(|(frame, slot, value)| Act::Descriptor { frame, slot, value }),
        1 => (prop::collection::vec(frame(), 0..3), 0..1200u32)
            .prop_map(|(frames, entries)| Act::Gdt { frames, entries }),
        1 => frame().prop_map(|frame| Act::Give { frame }),
        1 => frame().prop_map(|frame| Act::Take { frame }),
        4 => ((table(), slot()), any::<bool>(), frame(), any::<bool>(), any::<bool>(), prop::option::of(slot()))
            .prop_map(|(at, linear, frame, writable, back, replacement)| {
                Act::Grant { at, linear, frame, writable, back, replacement }
            }),
        8 => (frame(), slot(), value()).prop_map(|(frame, slot, value)| Act::Poke { frame, slot, value }),
        2 => (prop::sample::subsequence((FREE..FRAMES).collect::<Vec<_>>(), 4..12), 0..4usize)
            .prop_map(|(frames, pin)| Act::Tree { frames, pin }),
    ]
}

impl World {
    fn absolute(&self, offset: u64) -> Mfn {
        Mfn(self.layout.hypervisor_frames().wrapping_add(offset))
    }
    pub(super) fn absolute_entry(&self, value: u64) -> u64 {
        let base = self.layout.hypervisor_frames() << 12;
        value & !pte::ADDR_MASK | value.wrapping_add(base) & pte::ADDR_MASK
    }
    fn slot_at(&self, frame: u64, slot: u64) -> Maddr {
        Maddr(self.absolute(frame).maddr().0.saturating_add(slot * 8))
    }

    pub(super) fn act(&mut self, act: &Act) -> Result<(), Stop> {
        match *act {
            Act::Update { table, slot, value, command } => {
                let value = self.absolute_entry(value);
                self.raw_update(self.slot_at(table, slot).0 | command, value)
            }
            Act::Map { page, value, flags } => {
                let value = self.absolute_entry(value);
                self.op(|d, m, p, s, _| d.update_va_mapping(m, p, s, page << 12, value, flags))
            }
            Act::Trapped { table, slot, value, size } => {
                let (at, value) = (self.slot_at(table, slot), self.absolute_entry(value));
                self.op(|d, m, p, _, _| d.emulate_pte_store(m, p, at, value, size))
            }
            Act::Ext { cmd, frame, from } => {
                let user_root_off = cmd == MMUEXT_NEW_USER_BASEPTR && frame == FRAMES;
                let mfn = if user_root_off { 0 } else { self.absolute(frame).0 };
                self.ext2(cmd, mfn, self.absolute(from).0)
            }
            Act::Descriptor { frame, slot, value } => {
                let at = self.slot_at(frame, slot);
                self.op(|d, m, p, _, _| d.update_descriptor(m, p, at, value))
            }
            Act::Gdt { ref frames, entries } => {
                let frames: Vec<u64> = frames.iter().map(|f| self.absolute(*f).0).collect();
                self.op(|d, m, p, s, t| d.set_gdt(m, p, s, t, &frames, entries))
            }
            Act::Give { frame } => {
                let mfn = self.absolute(frame);
                self.op(|d, m, p, _, _| d.take_from_guest(m, p, mfn))
            }
            Act::Take { frame } => {
                let mfn = self.absolute(frame);
                self.op(|d, m, _, _, _| d.give_to_guest(m, mfn, frame).map_err(Stop::Refused))
            }
            Act::Grant { at: (table, slot), linear, frame, writable, back, replacement } => {
                let place = if linear {
                    Place::Linear(slot << 12)
                } else {
                    Place::Entry(self.slot_at(table, slot).0)
                };
                let granted = Granted { frame: self.absolute(frame), writable };
                let replacement = replacement.map(|slot| slot << 12);
                self.op(|d, m, p, s, _| {
                    if back {
                        d.unmap_granted(m, p, s.root(), place, granted, replacement)
                    } else {
                        d.map_granted(m, p, s.root(), place, granted, pte::ACCESSED)
                    }
                })
            }
            Act::Poke { frame, slot, value } => {
                // The guest's own store, if a mapping allows it.
                let (mfn, value) = (self.absolute(frame), self.absolute_entry(value));
                let at = self.slot_at(frame, slot);
                if self.direct.frame(mfn).and_then(|f| f.held_as()) == Some(FrameType::Writable) {
                    self.op(|_, m, _, _, _| m.store_u64(at, value).unwrap());
                }
                Ok(())
            }
            Act::Tree { ref frames, pin } => self.plant(frames, pin),
        }
    }
}

impl World {
    /// Builds a tree with plain stores where they are possible, and pins one of its tables.
    fn plant(&mut self, frames: &[u64], pin: usize) -> Result<(), Stop> {
        let [l4, l3, l2, l1s @ ..] = frames else { return Ok(()) };
        let links = [(*l4, 0, *l3), (*l3, 1, *l2)].into_iter();
        for (parent, slot, child) in links.chain((0u64..).zip(l1s).map(|(n, l1)| (*l2, n, *l1))) {
            let value = child << 12 | TABLE;
            let _ = self.act(&Act::Poke { frame: parent, slot, value });
        }
        for &frame in frames {
            let _ = self.act(&Act::Update { table: L1, slot: frame, value: frame << 12 | RO, command: 0 });
        }
        let top = self.absolute(frames.get(pin).copied().unwrap_or_default()).0;
        let cmd = MMUEXT_PIN_L4_TABLE - u32::try_from(pin).unwrap();
        self.until_done(|w| w.ext(cmd, top))
    }

    /// Issues an operation again until it is done: a few times must be enough. Of several vCPUs, others come in
    /// between.
    fn until_done(&mut self, mut op: impl FnMut(&mut Self) -> Result<(), Stop>) -> Result<(), Stop> {
        let mut result = op(self);
        for _ in 0..64 {
            if result != Err(Stop::Restart) || !self.others.is_empty() {
                break;
            }
            result = op(self);
        }
        result
    }
}

/// Counts what a run did, to detect a generator whose operations are all refused.
fn run(limit: u32, acts: &[Act]) -> (usize, usize) {
    let mut w = World::new();
    w.direct.work.limit = limit;
    let mut done = 0;
    for act in acts {
        let result = w.until_done(|w| w.act(act));
        assert_ne!(result, Err(Stop::Restart), "{act:?} makes no progress");
        done += usize::from(result.is_ok());
    }
    (done, acts.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_guest_breaks_nothing(acts in prop::collection::vec(act(), 1..80)) {
        run(super::super::BUDGET, &acts);
    }

    #[test]
    fn nor_when_everything_is_interrupted(acts in prop::collection::vec(act(), 1..80)) {
        run(4 * 512, &acts);
    }
}

#[test]
fn the_hostile_guest_gets_something_done() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let acts = prop::collection::vec(act(), 400).new_tree(&mut runner).unwrap().current();
    let (done, all) = run(super::super::BUDGET, &acts);
    assert!(done * 10 > all, "{done} of {all} succeed");
}
