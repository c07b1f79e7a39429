//! The paging code on a machine that checks every rule of a paravirtual one.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::memory::contents::Contents;

const VA: u64 = SLOT_SIZE + 0x1234_5000;

/// Tables in a map; writes to live tables are queued until a flush, as a paravirtual machine does.
#[derive(Default)]
pub(crate) struct Machine {
    /// What is in frames that are no tables; zeroes where nothing is.
    bytes: HashMap<Frame, Vec<u8>>,
    tables: HashMap<Frame, [u64; ENTRIES]>,
    adopted: HashSet<Frame>,
    pinned: HashSet<Frame>,
    queue: Vec<(Frame, usize, u64)>,
    root: Option<Frame>,
    flushes: Vec<Stale>,
    live_writes: usize,
}

impl Contents for Machine {
    fn copy_out(&self, frame: Frame, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.get(&frame).unwrap_or(&vec![0; 4096])[offset..offset + into.len()]);
    }
    fn copy_in(&mut self, frame: Frame, offset: usize, from: &[u8]) {
        assert!(!self.adopted.contains(&frame), "a live table was overwritten");
        let bytes = self.bytes.entry(frame).or_insert_with(|| vec![0; 4096]);
        bytes[offset..offset + from.len()].copy_from_slice(from);
    }
    fn copy_frame(&mut self, from: Frame, to: Frame) {
        let bytes = self.bytes.get(&from).cloned().unwrap_or(vec![0; 4096]);
        self.bytes.insert(to, bytes);
    }
    fn zero(&mut self, frame: Frame) {
        self.bytes.insert(frame, vec![0; 4096]);
    }
}

impl Mmu for Machine {
    const KERNEL_WITH_PROGRAMS: bool = false;
    fn entry(&self, frame: Frame, bits: u64) -> u64 {
        // Machine frames differ from pseudo-physical ones, so that code which confuses them fails here.
        (frame.0 + 0x1000) << 12 | bits
    }
    fn frame(&self, entry: u64) -> Frame {
        Frame((entry & !NO_EXECUTE & !0xfff) / PAGE_SIZE - 0x1000)
    }
    fn read(&self, table: Frame, index: usize) -> u64 {
        assert!(!self.queue.iter().any(|&(t, i, _)| (t, i) == (table, index)), "a queued write was read");
        self.tables[&table][index]
    }
    fn clear(&mut self, table: Frame) {
        assert!(!self.adopted.contains(&table));
        self.tables.insert(table, [0; ENTRIES]);
    }
    fn fill(&mut self, table: Frame, index: usize, entry: u64) {
        assert!(!self.adopted.contains(&table), "a live table was written directly");
        self.tables.get_mut(&table).unwrap()[index] = entry;
    }
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        assert!(self.adopted.contains(&table), "a dead table was written through the machine");
        self.live_writes += 1;
        self.queue.push((table, index, entry));
    }
    fn adopt(&mut self, table: Frame) {
        assert!(self.adopted.insert(table), "adopted twice");
    }
    fn release(&mut self, table: Frame) {
        assert!(self.adopted.remove(&table), "released twice");
    }
    fn pin(&mut self, root: Frame) {
        self.assert_adopted_below(root, 4);
        assert!(self.pinned.insert(root));
    }
    fn unpin(&mut self, root: Frame) {
        assert_ne!(self.root, Some(root), "the address space in use was given up");
        assert!(self.pinned.remove(&root));
    }
    fn flush(&mut self, stale: Stale) {
        for (table, index, entry) in std::mem::take(&mut self.queue) {
            self.tables.get_mut(&table).unwrap()[index] = entry;
        }
        self.flushes.push(stale);
    }
    fn switch(&mut self, root: Frame) {
        assert!(self.pinned.contains(&root), "not pinned");
        self.root = Some(root);
    }
}

impl Machine {
    fn assert_adopted_below(&self, table: Frame, level: u8) {
        assert!(self.adopted.contains(&table), "a table of level {level} was linked before it was adopted");
        if level > 1 {
            for entry in self.tables[&table].iter().filter(|&e| e & PRESENT != 0) {
                self.assert_adopted_below(self.frame(*entry), level - 1);
            }
        }
    }
}

/// A machine, and the address space it was started in: an L4 whose kernel slot leads to an empty L3.
fn boot(frames: &mut FrameAllocator<'_>) -> (Machine, AddressSpace) {
    let mut machine = Machine::default();
    let [root, l3] = [(); 2].map(|()| frames.allocate().unwrap());
    machine.clear(root);
    machine.clear(l3);
    let link = machine.entry(l3, PRESENT | WRITABLE);
    machine.fill(root, KERNEL_SLOT, link);
    machine.adopt(root);
    machine.adopt(l3);
    machine.pin(root);
    machine.switch(root);
    (machine, AddressSpace::adopt_boot(root))
}

#[test]
fn a_big_range_costs_a_live_space_one_write() {
    let mut map = [0; 64];
    let mut frames = FrameAllocator::new(&mut map);
    frames.add(Frame(8)..Frame(4096));
    let (mut m, mut space) = boot(&mut frames);
    let span = Span::pages(0x4000_0000, 1500);
    space.map_run(&mut m, &mut frames, span, Frame(0), Access::ReadWrite).unwrap();
    assert_eq!(m.live_writes, 1, "the L3 entry");
    m.flush(Stale::Nothing);
    m.assert_adopted_below(space.root(), 4);
    for page in [0, 511, 512, 1499] {
        let va = 0x4000_0000 + page * PAGE_SIZE;
        assert_eq!(space.translate(&m, va), Some((Frame(page), Access::ReadWrite)));
    }
    assert_eq!(space.translate(&m, span.end), None);
}

#[test]
fn pages_are_mapped_protected_and_unmapped_in_batches() {
    let mut map = [0; 64];
    let mut frames = FrameAllocator::new(&mut map);
    frames.add(Frame(8)..Frame(4096));
    let (mut m, mut space) = boot(&mut frames);
    assert_eq!(space.map(&mut m, VA, Frame(9), Access::ReadOnly), Err(MapError::NoTable(VA)));
    space.reserve(&mut m, &mut frames, Span::pages(VA, 700)).unwrap();
    m.flush(Stale::Nothing);
    let pages = || (0..700).map(|i| VA + i * PAGE_SIZE);
    for (i, va) in pages().enumerate() {
        space.map(&mut m, va, Frame(5000 - i as u64), Access::ReadWrite).unwrap();
    }
    m.flush(Stale::Nothing);
    assert_eq!(space.translate(&m, VA + PAGE_SIZE), Some((Frame(4999), Access::ReadWrite)));
    assert!(pages().all(|va| space.protect(&mut m, va, Access::ReadOnly)));
    m.flush(Stale::Everything);
    assert_eq!(space.translate(&m, VA + PAGE_SIZE), Some((Frame(4999), Access::ReadOnly)));
    for (i, va) in pages().enumerate() {
        assert_eq!(space.unmap(&mut m, va), Some(Frame(5000 - i as u64)));
    }
    m.flush(Stale::Everything);
    assert!(pages().all(|va| space.translate(&m, va).is_none()));
    assert_eq!(space.unmap(&mut m, VA), None);
    assert!(!space.protect(&mut m, VA, Access::ReadWrite));
}

#[test]
fn a_space_is_plain_memory_until_it_is_activated_and_after_it_is_destroyed() {
    let mut map = [0; 64];
    let mut frames = FrameAllocator::new(&mut map);
    frames.add(Frame(8)..Frame(4096));
    let (mut m, mut kernel) = boot(&mut frames);
    let before = frames.free_frames();
    let adopted = m.adopted.clone();

    let mut space = AddressSpace::new(&mut m, &mut frames, &kernel).unwrap();
    space.map_run(&mut m, &mut frames, Span::pages(VA, 600), Frame(1), Access::ReadWrite).unwrap();
    assert_eq!(m.live_writes, 0);
    space.activate(&mut m);
    assert_eq!(m.flushes.len(), 1, "one batch");
    assert!(space.protect(&mut m, VA, Access::ReadOnly));
    assert_eq!(m.live_writes, 1);
    m.flush(Stale::Page(VA));
    kernel.activate(&mut m);
    space.destroy(&mut m, &mut frames);

    assert_eq!(frames.free_frames(), before, "every table was freed");
    assert_eq!(m.adopted, adopted);
}

#[test]
fn nothing_is_lost_when_frames_run_out() {
    let mut map = [0; 1];
    let mut frames = FrameAllocator::new(&mut map);
    frames.add(Frame(8)..Frame(13));
    let (mut m, mut space) = boot(&mut frames);
    let span = Span::pages(SLOT_SIZE, 1024);
    let outcome = space.map_run(&mut m, &mut frames, span, Frame(0), Access::ReadWrite);
    assert_eq!(outcome, Err(MapError::OutOfFrames), "an L3, an L2 and two L1 are needed");
    assert_eq!(frames.free_frames(), 3);
    assert_eq!(m.live_writes, 0, "a subtree is linked when it is complete, or not at all");
}
