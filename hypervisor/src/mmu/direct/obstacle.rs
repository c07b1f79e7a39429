//! What stood in the way of an operation that was refused, for people: its error number says too little.
//!
//! It is noted where an operation is refused, and nowhere else. Nothing here may decide anything.

use std::fmt;

use paravane_abi::addr;
use paravane_abi::pte;

use super::entry;
use super::frame::{Frame, FrameType, Level, Owner};
use super::state::{BUDGET, DirectPaging, Pass};
use super::table::is_guest_slot;
use crate::machine::memory::{MachineMemory, Mfn, PAGE_SHIFT};

/// What stood in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A frame was to be used in a way that its present use excludes.
    Use {
        /// The frame.
        mfn: Mfn,
        /// What it was to be; [`FrameType::None`] for a page that is only read.
        wanted: FrameType,
        /// What it is, if there is such a frame.
        found: Option<Frame>,
    },
    /// An entry has bits that no guest may set.
    Bits {
        /// The entry.
        entry: u64,
    },
    /// The entry to change is not one of a page table: the frame is not used as one.
    NoTable {
        /// The frame.
        mfn: Mfn,
    },
    /// No tables lead to an address whose entry was to be changed.
    NoEntry {
        /// The address.
        va: u64,
    },
    /// A table was to be pinned that is pinned, or unpinned that is not.
    Pin {
        /// The frame.
        mfn: Mfn,
        /// Whether it is pinned.
        pinned: bool,
    },
}

impl Obstacle {
    /// The frame that it is about.
    pub const fn frame(&self) -> Option<Mfn> {
        match *self {
            Self::Use { mfn, .. } | Self::NoTable { mfn } | Self::Pin { mfn, .. } => Some(mfn),
            Self::Bits { .. } | Self::NoEntry { .. } => None,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Use { mfn: Mfn(mfn), wanted, found } => {
                let Some(frame) = found else {
                    return write!(f, "there is no machine frame {mfn:#x}");
                };
                if let Some(why) = not_the_guests(frame.owner()) {
                    return write!(f, "machine frame {mfn:#x} {why}");
                }
                write!(f, "machine frame {mfn:#x} {}, ", Present(frame))?;
                match (wanted, frame.kind()) {
                    (FrameType::Table(_), kind) if kind == wanted => {
                        f.write_str("and would be part of itself: a table cannot link itself or what links it")
                    }
                    (FrameType::Table(level), FrameType::Writable) => {
                        let n = level.number();
                        write!(f, "and cannot be a page table (level {n}) until nothing maps it writable")
                    }
                    (FrameType::Table(level), _) => {
                        write!(f, "and cannot be a page table (level {}) meanwhile", level.number())
                    }
                    (_, FrameType::Table(_)) => f.write_str(
                        "and cannot be written to, or mapped writable, until it is unpinned and nothing links it: map \
                         it read-only, and change it by mmu_update (SDK: paging)",
                    ),
                    _ => f.write_str("and cannot be used otherwise meanwhile"),
                }
            }
            Self::Bits { entry } => write!(
                f,
                "the entry {entry:#x} has a bit that no guest may set (PWT, PCD, PSE or PAT; above level 1 G, too)"
            ),
            Self::NoTable { mfn: Mfn(mfn) } => {
                write!(f, "machine frame {mfn:#x} is not in use as a page table of the level of that entry")
            }
            Self::NoEntry { va } => {
                write!(f, "no page table (level 1) covers {va:#x}: link one first (SDK: paging::Mmu)")
            }
            Self::Pin { mfn: Mfn(mfn), pinned: true } => {
                write!(f, "machine frame {mfn:#x} is pinned already")
            }
            Self::Pin { mfn: Mfn(mfn), pinned: false } => write!(f, "machine frame {mfn:#x} is not pinned"),
        }
    }
}

const fn not_the_guests(owner: Owner) -> Option<&'static str> {
    match owner {
        Owner::Guest => None,
        Owner::Hypervisor => Some("is not the guest's"),
        Owner::Shared => Some("is the shared page: it can be mapped, and nothing else"),
        Owner::ReadOnly => {
            Some("is the hypervisor's table of frames: it can be mapped read-only, and nothing else")
        }
    }
}

/// What a frame is at present.
struct Present(Frame);

impl fmt::Display for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.0;
        let uses = |f: &mut fmt::Formatter<'_>, how: &str, count: u64| match count {
            1 => write!(f, " ({how} once)"),
            count => write!(f, " ({how} {count} times)"),
        };
        let pins = u64::from(frame.pinned());
        match frame.held_as() {
            None | Some(FrameType::None) => return uses(&mut *f, "in use: mapped to be read", frame.refs()),
            Some(FrameType::Writable) => f.write_str("is memory")?,
            Some(FrameType::SegDesc) => f.write_str("has segment descriptors")?,
            Some(FrameType::Table(level)) => write!(f, "is a page table (level {})", level.number())?,
        }
        let counted = frame.type_refs().saturating_sub(pins);
        match frame.kind() {
            FrameType::Writable => uses(&mut *f, "mapped writable", counted)?,
            _ if counted != 0 => uses(&mut *f, "linked, or used by a vCPU,", counted)?,
            _ => {}
        }
        if pins != 0 { f.write_str(" (pinned)") } else { Ok(()) }
    }
}

/// An entry of an address space that refers to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The first address that it is used for.
    pub va: u64,
    /// The level of the table that it is in.
    pub level: Level,
    /// Whether it allows stores.
    pub writable: bool,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { va, level, writable } = self;
        match (level, writable) {
            (Level::L1, true) => write!(f, "mapped writable at {va:#x}"),
            (Level::L1, false) => write!(f, "mapped read-only at {va:#x}"),
            _ => write!(f, "linked by the table of level {} for {va:#x}", level.number()),
        }
    }
}

impl DirectPaging {
    /// What stood in the way of the operation that was refused last, if that is known; once.
    pub fn take_obstacle(&mut self) -> Option<Obstacle> {
        self.work.obstacle.take()
    }

    /// Entries below `root` that refer to `mfn`, `most` of them at most. Looks at as many as one operation may.
    pub fn references(&self, memory: &MachineMemory, root: Mfn, mfn: Mfn, most: usize) -> Vec<Reference> {
        let mut search = Search { direct: self, memory, mfn, most, left: BUDGET, found: Vec::new() };
        search.table(root, Level::L4, 0);
        search.found
    }
}

struct Search<'a> {
    direct: &'a DirectPaging,
    memory: &'a MachineMemory,
    mfn: Mfn,
    most: usize,
    /// Entries that may still be looked at.
    left: u32,
    found: Vec<Reference>,
}

impl Search<'_> {
    fn table(&mut self, table: Mfn, level: Level, base: u64) {
        let held = self.direct.frame(table).and_then(Frame::held_as);
        let Some(left) = self.left.checked_sub(addr::PT_ENTRIES as u32) else { return };
        let entries = self.memory.read_obj::<[u64; addr::PT_ENTRIES]>(table.maddr());
        let (Some(FrameType::Table(_)), Ok(entries)) = (held, entries) else { return };
        self.left = left;
        let shift = PAGE_SHIFT + 9 * (u32::from(level.number()) - 1);
        for (index, &entry) in (0_u64..).zip(&entries) {
            let is_guests = usize::try_from(index).is_ok_and(|index| is_guest_slot(level, index));
            if !is_guests || !pte::is_present(entry) || self.found.len() >= self.most {
                continue;
            }
            // Canonical: bit 47 is that of all above it.
            let va = (((base | index << shift) << 16).cast_signed() >> 16).cast_unsigned();
            let target = entry::target(entry);
            if target == self.mfn {
                let writable = entry & pte::RW != 0;
                self.found.push(Reference { va, level, writable });
            }
            if let Some(below) = level.below() {
                self.table(target, below, base | index << shift);
            }
        }
    }
}

impl Pass<'_> {
    /// Notes that the use of a frame was in the way, and passes the error on.
    pub(super) fn in_use<E>(&mut self, mfn: Mfn, wanted: FrameType, error: E) -> E {
        self.work.obstacle = Some(Obstacle::Use { mfn, wanted, found: self.frames.get(mfn) });
        error
    }

    /// Notes what was in the way, and passes the error on.
    pub(super) fn because<E>(&mut self, obstacle: Obstacle, error: E) -> E {
        self.work.obstacle = Some(obstacle);
        error
    }
}
