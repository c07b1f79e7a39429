//! Frames, and the addresses at which a kernel accesses them.
//!
//! A *pseudo-physical* frame number ([`Pfn`]) counts the domain's own memory from 0; page tables hold *machine* frame
//! numbers ([`Mfn`]). The domain's physical-to-machine list and the hypervisor's machine-to-physical table translate
//! between them. A kernel built with this SDK accesses frame `p` at `VIRT_BASE + p * 4096` once it is mapped there
//! (the *direct map*).
//!
//! This is the only module of the SDK that turns a frame into a pointer.

use core::fmt;
use core::mem::MaybeUninit;

use paravane_abi::addr::{INVALID_P2M_ENTRY, PAGE_SHIFT, PAGE_SIZE};

/// A pseudo-physical frame number: the domain's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

/// A machine frame number, as in page-table entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mfn(pub u64);

impl Mfn {
    /// The machine address of the frame's first byte.
    pub const fn maddr(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Display for Mfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mfn {:#x}", self.0)
    }
}

/// The domain's memory as its kernel sees it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    virt_base: u64,
    window: *mut u64,
    p2m: *const u64,
    frames: u64,
    m2p: *const u64,
    machine_frames: u64,
}

// SAFETY: the pointers are to tables that exist as long as the domain and are read by volatile accesses; writes
// through `window` are of one aligned word each.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Where the tables behind a [`Memory`] are.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Virtual address of pseudo-physical address 0.
    pub virt_base: u64,
    /// The same address as a pointer that the kernel can dereference.
    pub window: *mut u64,
    /// The physical-to-machine list.
    pub p2m: *const u64,
    /// How many frames it lists.
    pub frames: u64,
    /// The machine-to-physical table.
    pub m2p: *const u64,
    /// How many machine frames it covers.
    pub machine_frames: u64,
}

impl Memory {
    /// Describes the domain's memory.
    ///
    /// # Safety
    /// For as long as the value or a copy of it is used: `p2m` is readable for `frames` words, `m2p` for
    /// `machine_frames` words, and `window` reaches every frame that methods here are asked to access.
    pub const unsafe fn new(tables: Tables) -> Self {
        let Tables { virt_base, window, p2m, frames, m2p, machine_frames } = tables;
        Self { virt_base, window, p2m, frames, m2p, machine_frames }
    }

    /// How many frames the domain was given.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Virtual address of pseudo-physical address 0.
    pub const fn virt_base(&self) -> u64 {
        self.virt_base
    }

    /// The machine frame behind a pseudo-physical one.
    pub fn mfn(&self, pfn: Pfn) -> Option<Mfn> {
        if pfn.0 >= self.frames {
            return None;
        }
        // SAFETY: in bounds by the test above, readable by the contract of `new`.
        let mfn = unsafe { self.p2m.add(usize::try_from(pfn.0).ok()?).read_volatile() };
        (mfn != INVALID_P2M_ENTRY).then_some(Mfn(mfn))
    }

    /// The domain's own frame behind a machine frame number, if both tables agree that it is one.
    pub fn pfn(&self, mfn: Mfn) -> Option<Pfn> {
        if mfn.0 >= self.machine_frames {
            return None;
        }
        // SAFETY: in bounds by the test above, readable by the contract of `new`.
        let pfn = Pfn(unsafe { self.m2p.add(usize::try_from(mfn.0).ok()?).read_volatile() });
        (self.mfn(pfn) == Some(mfn)).then_some(pfn)
    }

    /// The address of a frame in the direct map, whether or not it is mapped there yet.
    pub const fn va(&self, pfn: Pfn) -> u64 {
        self.virt_base.wrapping_add(pfn.0 * PAGE_SIZE)
    }

    /// The frame at an address of the direct map.
    pub const fn pfn_at(&self, va: u64) -> Option<Pfn> {
        let pfn = va.wrapping_sub(self.virt_base) >> PAGE_SHIFT;
        if va >= self.virt_base && pfn < self.frames { Some(Pfn(pfn)) } else { None }
    }

    /// Reads one word of a frame that is mapped in the direct map.
    pub(crate) fn load(&self, pfn: Pfn, index: usize) -> u64 {
        // SAFETY: `word` is inside a frame of the domain, reachable by the contract of `new`.
        unsafe { self.word(pfn, index).read_volatile() }
    }

    /// Writes one word of a frame that is mapped writable in the direct map and that the caller owns.
    pub(crate) fn store(&self, pfn: Pfn, index: usize, value: u64) {
        // SAFETY: as for `load`; the caller owns the frame's contents.
        unsafe { self.word(pfn, index).write_volatile(value) }
    }

    /// Fills a frame that the caller owns with zeroes.
    pub(crate) fn zero(&self, pfn: Pfn) {
        // SAFETY: as for `store`, for all 512 words of the frame.
        unsafe { self.word(pfn, 0).write_bytes(0, 512) }
    }

    /// Copies from a frame that is mapped in the direct map. The bytes may change meanwhile.
    pub(crate) fn copy_out(&self, pfn: Pfn, offset: usize, into: &mut [u8]) {
        let from = self.within(pfn, offset, into.len());
        // SAFETY: in bounds of a frame of the domain, reachable by the contract of `new`, and no place of `into`.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }

    /// Copies to a frame that is mapped writable in the direct map and that the caller owns.
    pub(crate) fn copy_in(&self, pfn: Pfn, offset: usize, from: &[u8]) {
        let to = self.within(pfn, offset, from.len());
        // SAFETY: as for `copy_out`; the caller owns the frame's contents.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    fn within(&self, pfn: Pfn, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= 4096 && len <= 4096 - offset, "{len} bytes at {offset} are not in one frame");
        self.word(pfn, 0).cast::<u8>().wrapping_add(offset)
    }

    /// The bytes of `frames` consecutive frames, for ever.
    ///
    /// # Safety
    /// The frames are mapped writable in the direct map, and nothing else uses them.
    pub(crate) unsafe fn bytes(&self, first: Pfn, frames: u64) -> &'static mut [MaybeUninit<u8>] {
        let within = first.0.checked_add(frames).is_some_and(|end| end <= self.frames);
        assert!(within, "{frames} frames from {first} on are not frames of this domain");
        let start = self.window.wrapping_add(first.0 as usize * 512).cast();
        // SAFETY: in bounds by the assertion; the rest is the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(start, (frames * PAGE_SIZE) as usize) }
    }

    fn word(&self, pfn: Pfn, index: usize) -> *mut u64 {
        assert!(pfn.0 < self.frames && index < 512, "{pfn} is not a frame of this domain");
        self.window.wrapping_add(pfn.0 as usize * 512 + index)
    }
}
