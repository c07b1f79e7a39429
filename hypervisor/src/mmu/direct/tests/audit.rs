//! The auditor: recomputes from memory what the frame table must contain, and what a CPU could reach.

use std::collections::BTreeMap;

use paravane_abi::{addr, pte};

use super::super::frame::{FrameType, Level, Owner};
use super::super::table::is_guest_slot;
use super::super::{GUEST_KERNEL, entry};
use super::{Cpu, World};
use crate::machine::memory::Mfn;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    refs: u64,
    type_refs: u64,
}

impl World {
    /// Checks every invariant in the head of the module `direct`.
    pub(super) fn audit(&self) {
        let mut expected: BTreeMap<u64, Counts> = BTreeMap::new();
        let mut held = |mfn: Mfn| {
            let c = expected.entry(mfn.0).or_default();
            c.refs += 1;
            c.type_refs += 1;
        };
        for tables in std::iter::once(&self.tables).chain(self.others.iter().map(|vcpu| &vcpu.tables)) {
            held(tables.kernel_root());
            tables.user_root().into_iter().for_each(&mut held);
            tables.gdt_frames().for_each(&mut held);
        }
        self.direct.work.parked().for_each(&mut held);
        for mfn in self.all_frames() {
            if self.direct.frame(mfn).unwrap().pinned() {
                held(mfn);
            }
        }
        for mfn in self.all_frames() {
            if let Some(FrameType::Table(level)) = self.direct.frame(mfn).unwrap().held_as() {
                self.audit_table(mfn, level, &mut expected);
            }
        }
        for mfn in self.all_frames() {
            let frame = self.direct.frame(mfn).unwrap();
            let counts = Counts { refs: frame.refs(), type_refs: frame.type_refs() };
            let wanted = expected.remove(&mfn.0).unwrap_or_default();
            assert_eq!(counts, wanted, "counts of {mfn:?}, {:?}", frame.kind());
            assert!(frame.held_as().is_none() || frame.validated(), "{mfn:?} is held unchecked");
        }
        self.audit_cpu(&self.cpu);
    }

    fn read_table(&self, mfn: Mfn) -> [u64; addr::PT_ENTRIES] {
        self.memory.read_obj(mfn.maddr()).unwrap()
    }

    fn all_frames(&self) -> impl Iterator<Item = Mfn> + use<> {
        (0..self.direct.frames.len()).map(Mfn)
    }

    fn audit_table(&self, mfn: Mfn, level: Level, expected: &mut BTreeMap<u64, Counts>) {
        for (index, value) in self.read_table(mfn).into_iter().enumerate() {
            if !is_guest_slot(level, index) {
                assert_eq!(value, self.direct.reserved_l4[index - addr::RESERVED_L4_FIRST]);
                continue;
            }
            if !pte::is_present(value) {
                continue;
            }
            let child = entry::target(value);
            let frame = self.direct.frame(child).expect("a present entry names a frame");
            let refused = pte::PSE | pte::PWT | pte::PCD | pte::GLOBAL;
            assert_eq!(value & (refused | pte::USER), pte::USER, "{value:#x} in {mfn:?}, {level:?}");
            let counts = expected.entry(child.0).or_default();
            counts.refs += 1;
            if let Some(below) = level.below() {
                counts.type_refs += 1;
                assert_eq!(
                    frame.held_as(),
                    Some(FrameType::Table(below)),
                    "{value:#x} in {mfn:?}, {level:?}"
                );
            } else if value & pte::RW != 0 && frame.owner() == Owner::Guest {
                counts.type_refs += 1;
                assert_eq!(frame.held_as(), Some(FrameType::Writable), "{value:#x} in {mfn:?} is writable");
            } else {
                let allowed = match frame.owner() {
                    Owner::Guest | Owner::Shared => true,
                    Owner::ReadOnly => value & pte::RW == 0,
                    Owner::Hypervisor => false,
                };
                assert!(allowed, "{value:#x} maps a frame of {:?}", frame.owner());
            }
            let kernel = value & GUEST_KERNEL != 0;
            assert!(!kernel || value & pte::USER != 0);
        }
    }

    /// Checks that the CPU's cached translations give a hostile guest no forbidden access.
    pub(super) fn audit_cpu(&self, cpu: &Cpu) {
        for &mfn in &cpu.readable {
            let owner = self.direct.frame(Mfn(mfn)).unwrap().owner();
            assert_ne!(owner, Owner::Hypervisor, "a stale translation reaches frame {mfn}");
        }
        for &mfn in &cpu.writable {
            let held = self.direct.frame(Mfn(mfn)).unwrap().held_as();
            let safe = matches!(held, None | Some(FrameType::Writable | FrameType::None));
            assert!(safe, "frame {mfn} is {held:?} and a stale translation allows writing to it");
        }
        for &(mfn, level) in &cpu.tables {
            let held = self.direct.frame(Mfn(mfn)).unwrap().held_as();
            let same = match held {
                None => true,
                Some(FrameType::Table(now)) => now.number() == level,
                Some(_) => false,
            };
            assert!(same, "frame {mfn} is {held:?}, and cached as a table of level {level}");
        }
    }

    /// Lets the guest run: the CPU caches everything that it can reach from the roots, as a processor would.
    pub(super) fn run(&mut self) {
        let mut cpu = std::mem::take(&mut self.cpu);
        for root in [Some(self.tables.kernel_root()), self.tables.user_root()].into_iter().flatten() {
            self.reach(root, 4, true, &mut cpu);
        }
        self.cpu = cpu;
        self.audit_cpu(&self.cpu);
    }

    pub(super) fn reach(&self, table: Mfn, level: u8, writable: bool, cpu: &mut Cpu) {
        cpu.tables.insert((table.0, level));
        for (index, value) in self.read_table(table).into_iter().enumerate() {
            let reserved = level == 4 && !is_guest_slot(Level::L4, index);
            if !pte::is_present(value) || reserved {
                continue;
            }
            let target = entry::target(value);
            let writable = writable && value & pte::RW != 0;
            assert!(level == 1 || value & pte::PSE == 0, "a superpage");
            if level > 1 {
                self.reach(target, level - 1, writable, cpu);
            } else if value & pte::USER != 0 {
                cpu.readable.insert(target.0);
                if writable {
                    cpu.writable.insert(target.0);
                }
            }
        }
    }
}
