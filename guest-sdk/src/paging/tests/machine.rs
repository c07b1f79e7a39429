//! A hypervisor for tests: real page tables in real memory, and the one rule of direct paging checked after
//! every change: nothing that is reached as a table is mapped writable.

use std::collections::BTreeSet;
use std::vec::Vec;

use paravane_abi::addr::table_index;
use paravane_abi::hypercall::{MMU_UPDATE, MMUEXT_OP, MULTICALL};
use paravane_abi::mmu::{MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate, MmuextOp};
use paravane_abi::multicall::MulticallEntry;
use paravane_abi::{Errno, pte};

use crate::hypercall::Hypercalls;
use crate::memory::{Memory, Pfn, Tables};
use crate::paging::mmu::TABLE;
use crate::paging::{FrameSource, Mmu};
use crate::queue::Queue;

/// Where the tests' kernel sees its memory.
pub const VIRT_BASE: u64 = 0x4000_0000;
/// Machine frames are pseudo-physical ones in reverse order, after these.
const FIRST_MFN: u64 = 1000;

/// Memory and the tables that translate its frames. Leaked: tests are short.
#[derive(Clone, Copy, Debug)]
pub struct World {
    words: *mut u64,
    pub frames: u64,
    pub memory: Memory,
    pub root: Pfn,
    /// The first frame that the initial tables do not use.
    pub first_free: u64,
}

impl World {
    /// `frames` frames, the first `mapped` of them in the direct map.
    pub fn new(frames: u64, mapped: u64) -> Self {
        let words = Vec::leak(vec![0_u64; frames as usize * 512]).as_mut_ptr();
        let p2m: Vec<u64> = (0..frames).map(|pfn| FIRST_MFN + frames - 1 - pfn).collect();
        let mut m2p = vec![u64::MAX; FIRST_MFN as usize];
        m2p.extend((0..frames).rev());
        let tables = Tables {
            virt_base: VIRT_BASE,
            window: words,
            p2m: Vec::leak(p2m).as_ptr(),
            frames,
            m2p: m2p.as_ptr(),
            machine_frames: m2p.len() as u64,
        };
        Vec::leak(m2p);
        // SAFETY: all three are leaked, and as long as said.
        let memory = unsafe { Memory::new(tables) };
        let mut world = Self { words, frames, memory, root: Pfn(0), first_free: 1 };
        let tables: Vec<Pfn> = (0..mapped).map(|pfn| world.map_at_start(pfn)).collect();
        // The tables themselves are read-only from the start.
        for pfn in 0..world.first_free {
            let entry = world.word(tables[pfn as usize], table_index(memory.va(Pfn(pfn)), 1));
            // SAFETY: inside the memory, and not used otherwise yet.
            unsafe { *entry &= !pte::RW };
        }
        world
    }

    fn map_at_start(&mut self, pfn: u64) -> Pfn {
        let (va, mut table) = (self.memory.va(Pfn(pfn)), self.root);
        for level in [4, 3, 2] {
            let entry = self.word(table, table_index(va, level));
            // SAFETY: inside the memory, and not used otherwise yet.
            unsafe {
                if *entry == 0 {
                    *entry = pte::make(self.mfn(Pfn(self.first_free)), TABLE);
                    self.first_free += 1;
                }
                table = self.pfn(pte::mfn(*entry));
            }
        }
        // SAFETY: as above.
        unsafe { *self.word(table, table_index(va, 1)) = pte::make(self.mfn(Pfn(pfn)), TABLE) };
        table
    }

    pub fn mfn(&self, pfn: Pfn) -> u64 {
        self.memory.mfn(pfn).unwrap().0
    }

    fn pfn(&self, mfn: u64) -> Pfn {
        self.memory.pfn(crate::memory::Mfn(mfn)).unwrap()
    }

    fn word(&self, table: Pfn, index: usize) -> *mut u64 {
        assert!(table.0 < self.frames);
        self.words.wrapping_add(table.0 as usize * 512 + index)
    }

    /// The present entries of a table, with their indices.
    fn entries(&self, table: Pfn) -> impl Iterator<Item = (usize, u64)> {
        let world = *self;
        // SAFETY: inside the memory; the tests have one thread.
        (0..512).map(move |i| (i, unsafe { *world.word(table, i) })).filter(|(_, e)| pte::is_present(*e))
    }

    /// What the processor would find: the entry that maps `va` under `root`.
    pub fn walk(&self, root: Pfn, va: u64) -> Option<u64> {
        let mut table = root;
        for level in [4, 3, 2] {
            let entry = self.entries(table).find(|(i, _)| *i == table_index(va, level))?.1;
            table = self.pfn(pte::mfn(entry));
        }
        self.entries(table).find(|(i, _)| *i == table_index(va, 1)).map(|(_, entry)| entry)
    }
}

/// The hypervisor.
#[derive(Debug)]
pub struct Machine {
    world: World,
    pinned: BTreeSet<u64>,
    pub current: u64,
}

impl Machine {
    pub fn new(world: World) -> Self {
        let root = world.mfn(world.root);
        let machine = Self { world, pinned: BTreeSet::from([root]), current: root };
        assert_eq!(machine.check(), Ok(()));
        machine
    }

    /// The rule.
    pub fn check(&self) -> Result<(), Errno> {
        let (mut tables, mut writable) = (BTreeSet::new(), BTreeSet::new());
        for root in &self.pinned {
            self.gather(self.world.pfn(*root), 4, &mut tables, &mut writable);
        }
        if tables.is_disjoint(&writable) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn gather(&self, table: Pfn, level: u8, tables: &mut BTreeSet<u64>, writable: &mut BTreeSet<u64>) {
        if !tables.insert(self.world.mfn(table)) {
            return;
        }
        for (_, entry) in self.world.entries(table) {
            if level > 1 {
                self.gather(self.world.pfn(pte::mfn(entry)), level - 1, tables, writable);
            } else if entry & pte::RW != 0 {
                writable.insert(pte::mfn(entry));
            }
        }
    }

    fn update(&mut self, update: MmuUpdate) -> Result<(), Errno> {
        let table = self.world.memory.pfn(crate::memory::Mfn(update.maddr() >> 12)).ok_or(Errno::EINVAL)?;
        let word = self.world.word(table, (update.maddr() as usize & 0xfff) / 8);
        // SAFETY: inside the memory; the tests have one thread.
        let old = unsafe { word.replace(update.val) };
        // SAFETY: as above.
        self.check().inspect_err(|_| unsafe { *word = old })
    }

    fn extended(&mut self, op: MmuextOp) -> Result<(), Errno> {
        match op.cmd {
            MMUEXT_PIN_L4_TABLE if !self.pinned.insert(op.arg1) => Err(Errno::EINVAL),
            MMUEXT_PIN_L4_TABLE => self.check().inspect_err(|_| {
                self.pinned.remove(&op.arg1);
            }),
            MMUEXT_UNPIN_TABLE if !self.pinned.remove(&op.arg1) => Err(Errno::EINVAL),
            MMUEXT_NEW_BASEPTR if !self.pinned.contains(&op.arg1) => Err(Errno::EINVAL),
            MMUEXT_NEW_BASEPTR => {
                self.current = op.arg1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn list<T: Copy>(args: [u64; 6], mut f: impl FnMut(T) -> Result<(), Errno>) -> Result<(), Errno> {
        for i in 0..args[1] {
            // SAFETY: the caller's list has that many elements.
            let outcome = f(unsafe { (args[0] as *const T).add(i as usize).read() });
            if outcome.is_err() {
                // SAFETY: the caller's count of what was done.
                unsafe { (args[2] as *mut u32).write(i as u32) };
            }
            outcome?;
        }
        Ok(())
    }
}

impl Hypercalls for Machine {
    unsafe fn call(&mut self, number: u64, args: [u64; 6]) -> i64 {
        let outcome = match number {
            MMU_UPDATE => Self::list(args, |update| self.update(update)),
            MMUEXT_OP => Self::list(args, |op| self.extended(op)),
            MULTICALL => {
                for i in 0..args[1] {
                    // SAFETY: as in `list`; results are ours to write.
                    let entry = unsafe { &mut *(args[0] as *mut MulticallEntry).add(i as usize) };
                    // SAFETY: the caller's promise holds for each entry.
                    entry.result = unsafe { self.call(entry.op, entry.args) }.cast_unsigned();
                }
                Ok(())
            }
            _ => Err(Errno::ENOSYS),
        };
        outcome.map_or_else(Errno::as_result, |()| 0)
    }
}

/// Frames on a stack.
#[derive(Debug)]
pub struct Pool(pub Vec<Pfn>);

// SAFETY: each frame is in the pool or somebody's.
unsafe impl FrameSource for Pool {
    fn take(&mut self) -> Option<Pfn> {
        self.0.pop()
    }
    fn give(&mut self, frame: Pfn) {
        assert!(!self.0.contains(&frame), "{frame} was given back twice");
        self.0.push(frame);
    }
}

/// A machine with 4096 frames, 1024 of them mapped, and free frames to make tables of.
pub fn machine() -> (World, Mmu<'static, Machine>, Pool) {
    let world = World::new(4096, 1024);
    let queue = Box::leak(Box::new(Queue::new(Machine::new(world))));
    // SAFETY: the tables of the world are in use, with the direct map of its memory.
    let mmu = unsafe { Mmu::new(queue, world.memory, world.root) };
    (world, mmu, Pool((world.first_free..1024).rev().map(Pfn).collect()))
}
