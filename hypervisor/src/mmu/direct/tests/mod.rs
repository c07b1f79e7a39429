//! A small machine for the tests, with checks that must hold after every operation.

use std::collections::BTreeSet;
use std::sync::Arc;

use paravane_abi::mmu::MmuextOp;
use paravane_abi::{Errno, pte};

use super::frame::{FrameType, Level};
use super::{DirectPaging, RESERVED_ENTRIES, Stop, VcpuTables};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Flush, VcpuSpace};

mod audit;
mod obstacles;
mod operations;
mod properties;
mod restart;
mod several;
mod xsa;

/// Frames of the test guest.
const FRAMES: u64 = 24;
/// Page-frame numbers of the tables that the guest is started with.
const L4: u64 = 0;
const L3: u64 = 1;
const L2: u64 = 2;
const L1: u64 = 3;
/// The first frame that is ordinary memory, mapped writable at its own number.
const FREE: u64 = 4;

const P: u64 = pte::PRESENT;
const RW: u64 = pte::PRESENT | pte::RW | pte::USER;
const RO: u64 = pte::PRESENT | pte::USER;
/// How entries of tables above L1 look.
const TABLE: u64 = RW | pte::ACCESSED;

const EINVAL: Result<(), Stop> = Err(Stop::Refused(Errno::EINVAL));
const EBUSY: Result<(), Stop> = Err(Stop::Refused(Errno::EBUSY));

/// A guest with four boot tables that map all its frames from linear address 0, its tables read-only.
struct World {
    memory: Arc<MachineMemory>,
    direct: DirectPaging,
    log: TableLog,
    space: VcpuSpace,
    tables: VcpuTables,
    layout: HypervisorLayout,
    cpu: Cpu,
    /// Other vCPUs, whose operations [`several`] makes; this one then does not run on by itself.
    others: Vec<Vcpu>,
}

/// A vCPU whose turn it is not.
struct Vcpu {
    number: usize,
    space: VcpuSpace,
    tables: VcpuTables,
}

/// The translations that a CPU may have cached: everything that it could reach since the last flush.
#[derive(Clone, Debug, Default)]
struct Cpu {
    readable: BTreeSet<u64>,
    writable: BTreeSet<u64>,
    tables: BTreeSet<(u64, u8)>,
}

impl World {
    fn new() -> Self {
        Self::with_frames(FRAMES)
    }

    fn with_frames(frames: u64) -> Self {
        let layout = HypervisorLayout::new(frames, 0);
        let memory = MachineMemory::new(layout.hypervisor_frames(), frames, Backing::Anonymous).unwrap();
        let base = layout.hypervisor_frames();
        let mut reserved = [0; RESERVED_ENTRIES];
        reserved[1] = pte::make(1, TABLE);
        let store = |pfn: u64, index: u64, value: u64| {
            memory.store_u64(Maddr(Mfn(base + pfn).maddr().0 + index * 8), value).unwrap();
        };
        store(L4, 0, pte::make(base + L3, TABLE));
        store(L3, 0, pte::make(base + L2, TABLE));
        store(L2, 0, pte::make(base + L1, TABLE));
        for pfn in 0..frames.min(512) {
            store(L1, pfn, pte::make(base + pfn, if pfn < FREE { RO } else { RW }));
        }
        let mut direct = DirectPaging::new(&layout, reserved).unwrap();
        let mut log = TableLog::default();
        let space = VcpuSpace::new(Mfn(base + L4), &log);
        let tables = direct.pin_initial(&memory, &mut log, Mfn(base + L4)).unwrap();
        let memory = Arc::new(memory);
        let mut world =
            Self { memory, direct, log, space, tables, layout, cpu: Cpu::default(), others: Vec::new() };
        world.enter();
        world
    }

    fn mfn(&self, pfn: u64) -> Mfn {
        Mfn(self.layout.hypervisor_frames() + pfn)
    }
    /// An entry that refers to the guest's frame `pfn`.
    fn entry(&self, pfn: u64, flags: u64) -> u64 {
        pte::make(self.mfn(pfn).0, flags)
    }
    /// Where entry `index` of the table in frame `pfn` is.
    fn at(&self, pfn: u64, index: u64) -> Maddr {
        Maddr(self.mfn(pfn).maddr().0 + index * 8)
    }
    fn load(&self, pfn: u64, index: u64) -> u64 {
        self.memory.load_u64(self.at(pfn, index)).unwrap()
    }
    /// A store by the guest itself, to memory that it may write.
    fn poke(&self, pfn: u64, index: u64, value: u64) {
        let held = self.direct.frame(self.mfn(pfn)).unwrap().held_as();
        assert!(matches!(held, None | Some(FrameType::Writable)), "the guest cannot write to {held:?}");
        self.memory.store_u64(self.at(pfn, index), value).unwrap();
    }
    fn held(&self, pfn: u64) -> Option<FrameType> {
        self.direct.frame(self.mfn(pfn)).unwrap().held_as()
    }

    /// Makes one operation, checks all invariants, and lets the guest run on.
    fn op<T>(
        &mut self,
        op: impl FnOnce(&mut DirectPaging, &MachineMemory, &mut TableLog, &mut VcpuSpace, &mut VcpuTables) -> T,
    ) -> T {
        let result = op(&mut self.direct, &self.memory, &mut self.log, &mut self.space, &mut self.tables);
        if self.others.is_empty() {
            self.enter();
        }
        result
    }
    /// The frames that the log reports to the engine as tables again.
    fn reused(&self) -> Vec<Mfn> {
        self.space.pending(&self.log).reused.iter().copied().collect()
    }
    fn enter(&mut self) {
        if self.space.pending(&self.log).flush == Flush::All {
            self.cpu = Cpu::default();
        }
        self.space.caught_up(&self.log);
        self.audit();
        self.run();
    }

    fn raw_update(&mut self, ptr: u64, val: u64) -> Result<(), Stop> {
        self.op(|d, m, p, _, _| d.mmu_update_one(m, p, ptr, val))
    }
    /// MMU_NORMAL_PT_UPDATE of entry `index` of the table in frame `pfn`.
    fn update(&mut self, pfn: u64, index: u64, val: u64) -> Result<(), Stop> {
        self.raw_update(self.at(pfn, index).0, val)
    }
    fn ext(&mut self, cmd: u32, arg1: u64) -> Result<(), Stop> {
        self.ext2(cmd, arg1, 0)
    }
    fn ext2(&mut self, cmd: u32, arg1: u64, arg2: u64) -> Result<(), Stop> {
        let op = MmuextOp { cmd, arg1, arg2, ..MmuextOp::default() };
        self.op(|d, m, p, s, t| d.mmuext_one(m, p, s, t, &op))
    }
    fn pin(&mut self, pfn: u64, level: Level) -> Result<(), Stop> {
        self.ext(u32::from(level.number()) - 1, self.mfn(pfn).0)
    }
    fn unpin(&mut self, pfn: u64) -> Result<(), Stop> {
        self.ext(paravane_abi::mmu::MMUEXT_UNPIN_TABLE, self.mfn(pfn).0)
    }
    /// Makes the boot L1's mapping of `pfn` read-only, as a guest does before it makes the frame a table.
    fn protect(&mut self, pfn: u64) {
        assert_eq!(self.update(L1, pfn, self.entry(pfn, RO)), Ok(()));
    }
    /// A fresh table in `pfn`, whose single entry is `entry` at `index`.
    fn table(&mut self, pfn: u64, index: u64, entry: u64) {
        self.poke(pfn, index, entry);
        self.protect(pfn);
    }
}
