//! What blocks came from: frames of the guest, and linear pages that led there.

use paravane_abi::pte;

use super::cache::Cache;
use super::near::ByPage;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SHIFT, PAGE_SIZE};
use crate::x86::walk::{PseudoPhysicalTables, walk};

const NONE: u32 = u32::MAX;

/// A block of a page, in a list.
#[derive(Clone, Copy, Debug)]
struct Member {
    block: u32,
    next: u32,
}

/// What is known of a frame.
#[derive(Clone, Copy, Debug)]
struct Frame {
    list: u32,
    /// Of its bytes before a block was made of it, if a device could write to it then.
    digest: Option<u64>,
}

/// Of the bytes of a frame. Who finds two with the same has found how to keep its own old code.
fn digest(memory: &MachineMemory, pfn: u64) -> Option<u64> {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = [0; PAGE_SIZE as usize];
    memory.read(memory.pfn_to_mfn(pfn)?.maddr(), &mut bytes).ok()?;
    let words = bytes.chunks_exact(8).filter_map(|word| <[u8; 8]>::try_from(word).ok());
    Some(words.fold(1, |sum: u64, word| (sum.rotate_left(29) ^ u64::from_le_bytes(word)).wrapping_mul(ODD)))
}

/// Code by frame and by linear page.
#[derive(Debug)]
pub(super) struct Pages {
    /// For each frame with code: its blocks.
    frames: ByPage<Frame>,
    /// For each linear page with code: the frame that it led to, and its blocks.
    linear: ByPage<(u64, u32)>,
    members: Vec<Member>,
    /// For [`Pages::check`], which must not allocate; otherwise empty.
    stale: Vec<u64>,
}

impl Pages {
    /// Room for so many blocks.
    pub fn new(blocks: usize) -> Self {
        let linear = ByPage::with_capacity_and_hasher(blocks / 8, Default::default());
        Self {
            frames: ByPage::with_capacity_and_hasher(blocks / 8, Default::default()),
            stale: Vec::with_capacity(linear.capacity()),
            linear,
            members: Vec::with_capacity(blocks * 2),
        }
    }

    /// Whether there is room for another block.
    pub fn has_room(&self) -> bool {
        self.members.len() + 4 <= self.members.capacity()
            && self.frames.len() + 4 <= self.frames.capacity()
            && self.linear.len() + 2 <= self.linear.capacity()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.linear.clear();
        self.members.clear();
    }

    /// All frames with code.
    pub fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.frames.keys().copied()
    }

    /// A block is about to be made of code in the frame `pfn`.
    pub fn begin(&mut self, memory: &MachineMemory, pfn: u64) {
        self.frames.entry(pfn).or_insert_with(|| Frame {
            list: NONE,
            digest: memory.is_lent(pfn).then(|| digest(memory, pfn)).flatten(),
        });
    }

    /// Notes that a block has code from `va` on, in the frame `pfn`.
    pub fn add(&mut self, va: u64, pfn: u64, block: u32) {
        let frame = self.frames.entry(pfn).or_insert(Frame { list: NONE, digest: None });
        let at = u32::try_from(self.members.len()).unwrap_or(NONE);
        let next = std::mem::replace(&mut frame.list, at);
        self.members.push(Member { block, next });
        let (_, list) = self.linear.entry(va >> PAGE_SHIFT).or_insert((pfn, NONE));
        let next = std::mem::replace(list, at + 1);
        self.members.push(Member { block, next });
    }

    fn kill_list(&mut self, mut at: u32, memory: &MachineMemory, cache: &mut Cache) {
        while let Some(member) = self.members.get(at as usize) {
            cache.kill(memory, member.block);
            at = member.next;
        }
    }

    /// The frame was written to: its blocks go.
    pub fn written(&mut self, pfn: u64, memory: &MachineMemory, cache: &mut Cache) -> bool {
        let Some(frame) = self.frames.remove(&pfn) else { return false };
        self.kill_list(frame.list, memory, cache);
        true
    }

    /// A device has written somewhere: the first frame with code that has changed by it, as far as can be told.
    pub fn changed_by_device(&self, memory: &MachineMemory) -> Option<u64> {
        let changed = |(pfn, frame): (&u64, &Frame)| {
            let changed =
                memory.is_lent(*pfn) && (frame.digest.is_none() || frame.digest != digest(memory, *pfn));
            changed.then_some(*pfn)
        };
        self.frames.iter().find_map(changed)
    }

    /// Looks anew where linear pages lead: all of them, or that of `only`. Blocks of those that lead elsewhere go.
    pub fn check(
        &mut self,
        only: Option<u64>,
        memory: &MachineMemory,
        cache: &mut Cache,
        mut frame_of: impl FnMut(u64) -> Option<u64>,
    ) {
        let only = only.map(|va| va >> PAGE_SHIFT);
        match only {
            Some(page) => {
                if let Some((pfn, _)) = self.linear.get(&page)
                    && frame_of(page << PAGE_SHIFT) != Some(*pfn)
                {
                    self.stale.push(page);
                }
            }
            None => {
                let moved =
                    self.linear.iter().filter(|(page, (pfn, _))| frame_of(*page << PAGE_SHIFT) != Some(*pfn));
                self.stale.extend(moved.map(|(page, _)| *page));
            }
        }
        while let Some(page) = self.stale.pop() {
            if let Some((_, list)) = self.linear.remove(&page) {
                self.kill_list(list, memory, cache);
            }
        }
    }
}

/// Where pages of code lead, by the tables of one address space: the last L1 table is kept, because code lies together.
pub(super) struct Reader<'a> {
    memory: &'a MachineMemory,
    cr3: u64,
    no_execute: bool,
    /// What the table spans, where it is, and whether anything above forbids execution.
    last: Option<(u64, Maddr, bool)>,
}

impl<'a> Reader<'a> {
    /// For the tables that `cr3` names; `no_execute` is EFER.NXE.
    pub fn new(memory: &'a MachineMemory, cr3: u64, no_execute: bool) -> Self {
        Self { memory, cr3, no_execute, last: None }
    }

    /// The frame that the kernel executes at `va`; `None` where it does not, or where only a walk can tell.
    pub fn frame(&mut self, va: u64) -> Option<u64> {
        let span = va >> (PAGE_SHIFT + 9);
        let (_, table, forbidden) = match self.last {
            Some(last) if last.0 == span => last,
            _ => {
                let found = walk(self.memory, &PseudoPhysicalTables, self.cr3 & pte::ADDR_MASK, va).ok()?;
                let entry = found.step(1)?.entry;
                let above =
                    (2..=4).filter_map(|level| found.step(level)).fold(0, |bits, step| bits | step.value);
                *self.last.insert((span, entry.mfn().maddr(), above & pte::NX != 0))
            }
        };
        let entry = self.memory.load_u64(Maddr(table.0 | (va >> PAGE_SHIFT & 511) << 3)).ok()?;
        let forbidden = self.no_execute && (forbidden || entry & pte::NX != 0);
        let number = pte::mfn(entry);
        (entry & pte::PRESENT != 0 && !forbidden && self.memory.pfn_to_mfn(number).is_some())
            .then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Backing;

    #[test]
    fn code_that_a_device_changed_is_found_and_no_other() {
        let memory = MachineMemory::new(1, 8, Backing::Anonymous).unwrap();
        let frame = |pfn| memory.pfn_to_mfn(pfn).unwrap();
        let mut pages = Pages::new(64);
        let mut cache = Cache::new(Maddr(0), 4096);
        let make = |pages: &mut Pages, pfn: u64| {
            pages.begin(&memory, pfn);
            pages.add(0x40_0000 + (pfn << PAGE_SHIFT), pfn, 0);
        };
        memory.note_lent(frame(2).maddr(), 1);
        for pfn in [1, 2, 3] {
            make(&mut pages, pfn);
        }
        assert_eq!(pages.changed_by_device(&memory), None);
        memory.write(Maddr(frame(2).maddr().0 + 4095), &[1]).unwrap();
        assert_eq!(pages.changed_by_device(&memory), Some(2));
        assert!(pages.written(2, &memory, &mut cache));
        make(&mut pages, 2);
        assert_eq!(pages.changed_by_device(&memory), None, "it was made of what is there now");
        // What it was before a device could write to it is not known.
        memory.note_lent(frame(3).maddr(), 1);
        assert_eq!(pages.changed_by_device(&memory), Some(3));
    }
}
