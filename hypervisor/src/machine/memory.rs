//! Machine memory: the frames of a guest, and those of the hypervisor that belong to it.
//!
//! A *machine address* is an offset into this one region; a *machine frame number* (MFN) is that address divided by
//! 4096. Under KVM machine addresses are guest-physical addresses; under the process engine they are offsets into a
//! memfd. The first frames belong to the hypervisor (gate, M2P, shared info, shadow tables), the others to the guest:
//! its pseudo-physical frame (PFN) `p` is MFN `guest_base + p`.
//!
//! Every access is checked and goes through `vm-memory`; no address makes anything here panic. Any thread may access
//! the memory. This is the only place that turns a machine address into host memory; no other module may keep a host
//! pointer. Devices access frames through [`MachineMemory::borrow_frames`], which is bounded in the same way.

use std::ffi::CString;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion,
    VolatileMemory,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::host::limit::Advice;

/// Bytes of a page and of a frame.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Bytes that [`MachineMemory::fill`] populates at once: they are still in the processor's cache when they are written.
const FILL_STEP: usize = 64 * PAGE_SIZE as usize;

/// The name of [`Backing::Memfd`]'s memfd.
pub const MEMFD_NAME: &str = "paravane-memory";

/// A machine address: byte offset into machine memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Maddr(pub u64);

/// A machine frame number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mfn(pub u64);

impl Mfn {
    /// The address of the frame's first byte. It saturates for frame numbers that are too large, and is then outside
    /// every machine's memory.
    pub const fn maddr(self) -> Maddr {
        Maddr(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl Maddr {
    /// The frame that holds this address.
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }
    /// The offset within the frame.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

/// An address range that is not entirely machine memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("machine address {addr:#x} (+{len:#x}) is outside machine memory")]
pub struct BadMachineAddress {
    /// First byte of the access.
    pub addr: u64,
    /// Length of the access in bytes.
    pub len: usize,
}

/// Machine memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The host refused the mapping.
    #[error("cannot map {bytes} bytes of guest memory: {reason}; lower --mem or free memory on the host")]
    Map {
        /// The number of bytes asked for.
        bytes: u64,
        /// The host's error.
        reason: String,
    },
    /// The host refused a memfd.
    #[error(
        "cannot make a memfd of {bytes} bytes for guest memory: {error}{}; or use --engine kvm",
        file_advice(error)
    )]
    File {
        /// The number of bytes asked for.
        bytes: u64,
        /// The host's error.
        error: std::io::Error,
    },
}

/// What to do about a memfd that the host refuses. A memfd counts as an open file, and the limit of file sizes applies.
fn file_advice(error: &std::io::Error) -> String {
    let limits = [Advice::of_files(error), Advice::of_writes(error)];
    let named = limits.into_iter().find(|advice| advice.is_some()).map(|advice| advice.to_string());
    named.unwrap_or_else(|| "; allow memfd_create and ftruncate, lower --mem".to_owned())
}

/// What backs machine memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory: the cheapest, for an engine in this address space (KVM).
    Anonymous,
    /// A memfd that other processes can map, for the process engine.
    Memfd,
}

/// One domain's machine memory: hypervisor frames first, guest frames after.
#[derive(Debug)]
pub struct MachineMemory {
    mmap: GuestMemoryMmap,
    memfd: Option<File>,
    frames: u64,
    guest_base: u64,
    /// How often devices gave buffers back.
    foreign_writes: AtomicU64,
    /// A bit for each of the guest's frames: a device was given a buffer in it.
    lent: Box<[AtomicU64]>,
}

impl MachineMemory {
    /// Maps `hypervisor_frames + guest_frames` frames of zeroed memory; no page is touched.
    pub fn new(hypervisor_frames: u64, guest_frames: u64, backing: Backing) -> Result<Self, CreateError> {
        let frames = hypervisor_frames.saturating_add(guest_frames);
        let bytes = frames.saturating_mul(PAGE_SIZE);
        let fail = |reason: String| CreateError::Map { bytes, reason };
        let len = usize::try_from(bytes).map_err(|e| fail(e.to_string()))?;
        let memfd = match backing {
            Backing::Anonymous => None,
            Backing::Memfd => Some(create_memfd(bytes).map_err(|error| CreateError::File { bytes, error })?),
        };
        let file = match &memfd {
            None => None,
            Some(f) => Some(FileOffset::new(f.try_clone().map_err(|e| fail(e.to_string()))?, 0)),
        };
        let mmap = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, file)])
            .map_err(|e| fail(e.to_string()))?;
        let lent = (0..guest_frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let foreign_writes = AtomicU64::new(0);
        Ok(Self { mmap, memfd, frames, guest_base: hypervisor_frames, foreign_writes, lent })
    }

    /// The number of all frames, the hypervisor's and the guest's.
    pub fn frames(&self) -> u64 {
        self.frames
    }
    /// The MFN of the guest's PFN 0: the number of frames that are the hypervisor's.
    pub fn guest_base(&self) -> Mfn {
        Mfn(self.guest_base)
    }
    /// The number of the guest's frames.
    pub fn guest_frames(&self) -> u64 {
        self.frames - self.guest_base
    }
    /// Whether `mfn` is one of the guest's frames.
    pub fn is_guest_frame(&self, mfn: Mfn) -> bool {
        mfn.0 >= self.guest_base && mfn.0 < self.frames
    }
    /// Whether `mfn` is a frame of this machine at all.
    pub fn is_frame(&self, mfn: Mfn) -> bool {
        mfn.0 < self.frames
    }
    /// The MFN of a guest PFN, if the guest has that PFN.
    pub fn pfn_to_mfn(&self, pfn: u64) -> Option<Mfn> {
        (pfn < self.guest_frames()).then(|| Mfn(self.guest_base + pfn))
    }
    /// The PFN of one of the guest's frames.
    pub fn mfn_to_pfn(&self, mfn: Mfn) -> Option<u64> {
        self.is_guest_frame(mfn).then(|| mfn.0 - self.guest_base)
    }

    /// Copies machine memory into `buf`.
    pub fn read(&self, addr: Maddr, buf: &mut [u8]) -> Result<(), BadMachineAddress> {
        let len = buf.len();
        self.mmap.read_slice(buf, GuestAddress(addr.0)).map_err(|_| BadMachineAddress { addr: addr.0, len })
    }
    /// Copies `buf` into machine memory.
    pub fn write(&self, addr: Maddr, buf: &[u8]) -> Result<(), BadMachineAddress> {
        self.mmap
            .write_slice(buf, GuestAddress(addr.0))
            .map_err(|_| BadMachineAddress { addr: addr.0, len: buf.len() })
    }
    /// Copies `buf` into machine memory that this process will not access soon.
    ///
    /// The same as [`MachineMemory::write`], but a memfd is written through its descriptor. That saves mapping its
    /// pages into this process, which takes as long as copying them (about 1 us a page). Anonymous memory has to be
    /// mapped: many pages at once, which saves a fault for each (a quarter of a microsecond).
    pub fn fill(&self, addr: Maddr, buf: &[u8]) -> Result<(), BadMachineAddress> {
        use std::os::unix::fs::FileExt;
        let end = addr.0.checked_add(buf.len() as u64);
        let written = self
            .memfd
            .as_ref()
            .filter(|_| end.is_some_and(|end| end <= self.len()))
            .is_some_and(|file| file.write_all_at(buf, addr.0).is_ok());
        if written {
            return Ok(());
        }
        let mut start = addr;
        for part in buf.chunks(FILL_STEP) {
            let len = part.len() as u64;
            // One page is cheaper touched.
            if len > PAGE_SIZE {
                self.populate(start.mfn().maddr(), len + start.offset());
            }
            self.write(start, part)?;
            start.0 += len;
        }
        Ok(())
    }
    /// Reads a plain-data value.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, addr: Maddr) -> Result<T, BadMachineAddress> {
        let mut value = T::new_zeroed();
        self.read(addr, value.as_mut_bytes())?;
        Ok(value)
    }
    /// Writes a plain-data value.
    pub fn write_obj<T: IntoBytes + Immutable>(
        &self,
        addr: Maddr,
        value: &T,
    ) -> Result<(), BadMachineAddress> {
        self.write(addr, value.as_bytes())
    }
    /// Reads an aligned u64 in one access (a page-table entry, an event word), with acquire ordering.
    pub fn load_u64(&self, addr: Maddr) -> Result<u64, BadMachineAddress> {
        self.mmap
            .load(GuestAddress(addr.0), Ordering::Acquire)
            .map_err(|_| BadMachineAddress { addr: addr.0, len: 8 })
    }
    /// Writes an aligned u64 in one access, with release ordering.
    pub fn store_u64(&self, addr: Maddr, value: u64) -> Result<(), BadMachineAddress> {
        self.mmap
            .store(value, GuestAddress(addr.0), Ordering::Release)
            .map_err(|_| BadMachineAddress { addr: addr.0, len: 8 })
    }
    /// Zeroes a frame.
    pub fn zero_frame(&self, mfn: Mfn) -> Result<(), BadMachineAddress> {
        self.write(mfn.maddr(), &[0u8; PAGE_SIZE as usize])
    }

    /// Where machine memory begins in this process: for an engine's memory slot, not for access.
    pub fn host_address(&self) -> u64 {
        self.mmap.iter().next().map_or(0, |r| {
            r.get_host_address(vm_memory::MemoryRegionAddress(0)).map_or(0, |p| p as usize as u64)
        })
    }
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mmap.iter().map(|r| r.len()).sum()
    }
    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The memfd, if this is [`Backing::Memfd`].
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(|f| f.as_fd())
    }
    /// What backs this memory.
    pub fn backing(&self) -> Backing {
        if self.memfd.is_some() { Backing::Memfd } else { Backing::Anonymous }
    }
    /// Asks the host to allocate memory for these pages now, which is cheaper than allocating each when the guest first
    /// touches it. The host may fail to do so; it then allocates them at the first touch.
    pub fn populate(&self, addr: Maddr, len: u64) {
        if len != 0
            && let Ok(slice) = self.mmap.get_slice(GuestAddress(addr.0), len as usize)
        {
            let start = slice.ptr_guard_mut().as_ptr();
            // SAFETY: the slice proves that the pages are mapped; their content does not change.
            unsafe { libc::madvise(start.cast(), slice.len(), libc::MADV_POPULATE_WRITE) };
        }
    }
    /// Puts what a file holds in place of these frames: frame n as it is at `at` + n pages. Of a page that is written
    /// this memory gets a copy then; the others stay shared with everybody who has the file mapped. For
    /// [`Backing::Anonymous`]: other processes that map a memfd would see nothing of it.
    ///
    /// The file must stay as long as it is: the host ends a program that uses a page past a file's end.
    ///
    /// # Errors
    /// When the frames do not exist, or the host refuses.
    pub fn map_from(&self, file: &File, at: u64, frames: Range<Mfn>) -> std::io::Result<()> {
        use std::os::fd::AsRawFd;
        let count = frames.end.0.saturating_sub(frames.start.0);
        if count == 0 {
            return Ok(());
        }
        let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let len =
            count.checked_mul(PAGE_SIZE).and_then(|len| usize::try_from(len).ok()).ok_or_else(invalid)?;
        let offset = at.checked_add(frames.start.maddr().0).and_then(|at| libc::off_t::try_from(at).ok());
        let offset = offset.filter(|at| at.cast_unsigned().is_multiple_of(PAGE_SIZE)).ok_or_else(invalid)?;
        let slice = self.mmap.get_slice(GuestAddress(frames.start.maddr().0), len).map_err(|_| invalid())?;
        let start = slice.ptr_guard_mut().as_ptr();
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
        // SAFETY: the slice proves that these pages are this memory's own mapping, which stays readable and writable,
        // and of the same length; nobody holds a reference into guest memory.
        let mapped = unsafe { libc::mmap(start.cast(), len, prot, flags, file.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }
    /// How many of these frames have host memory, because they were touched. `None` if the host does not say, or if the
    /// frames do not exist.
    pub fn existing_frames(&self, frames: Range<Mfn>) -> Option<u64> {
        const STEP: u64 = 1 << 14;
        let mut states = [0u8; STEP as usize];
        let mut existing = 0;
        for first in (frames.start.0..frames.end.0).step_by(STEP as usize) {
            let count = usize::try_from(STEP.min(frames.end.0 - first)).ok()?;
            let len = count * PAGE_SIZE as usize;
            let slice = self.mmap.get_slice(GuestAddress(Mfn(first).maddr().0), len).ok()?;
            let start = slice.ptr_guard_mut().as_ptr();
            // SAFETY: the slice proves that the pages are mapped, and `states` has a byte for each of them.
            let told = unsafe { libc::mincore(start.cast(), len, states.as_mut_ptr()) } == 0;
            let states = told.then_some(states.get(..count)?)?;
            existing += states.iter().map(|state| u64::from(state & 1)).sum::<u64>();
        }
        Some(existing)
    }
    /// Says that a device has written to guest memory, before it tells the driver. Any thread may call this.
    pub fn note_foreign_write(&self) {
        self.foreign_writes.fetch_add(1, Ordering::Release);
    }
    /// How often a device has: who keeps something derived from memory compares it when this number has changed.
    pub fn foreign_writes(&self) -> u64 {
        self.foreign_writes.load(Ordering::Acquire)
    }
    /// Says that a device is given a buffer to write to, before it does. Any thread may call this.
    pub fn note_lent(&self, addr: Maddr, len: u64) {
        let last = Maddr(addr.0.saturating_add(len.saturating_sub(1)));
        for pfn in (addr.mfn().0..=last.mfn().0).filter_map(|mfn| self.mfn_to_pfn(Mfn(mfn))) {
            let (word, bit) =
                (usize::try_from(pfn / 64).ok().and_then(|n| self.lent.get(n)), 1 << (pfn % 64));
            // Most have been for long. The count of writes orders this for who looks.
            if let Some(word) = word.filter(|word| word.load(Ordering::Relaxed) & bit == 0) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
    /// Whether a device was ever given a buffer in this frame.
    pub fn is_lent(&self, pfn: u64) -> bool {
        let word = usize::try_from(pfn / 64).ok().and_then(|n| self.lent.get(n));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (pfn % 64) & 1 != 0)
    }
    /// The `vm-memory` view, for devices built on rust-vmm crates.
    pub fn inner(&self) -> &GuestMemoryMmap {
        &self.mmap
    }
    /// Frames as a mapping of their own, for a device's view. It does not own the memory, and does not keep it alive.
    pub fn borrow_frames(&self, first: Mfn, frames: u64) -> Result<MmapRegion, BadMachineAddress> {
        let bytes = frames.checked_mul(PAGE_SIZE).and_then(|len| usize::try_from(len).ok());
        let len = bytes.ok_or(BadMachineAddress { addr: first.maddr().0, len: usize::MAX })?;
        let bad = BadMachineAddress { addr: first.maddr().0, len };
        let slice = self.mmap.get_slice(GuestAddress(first.maddr().0), len).map_err(|_| bad)?;
        let start = slice.ptr_guard_mut().as_ptr();
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_NORESERVE);
        // SAFETY: the slice proves that `len` bytes from `start` are mapped for reading and writing; the caller
        // keeps this memory while it uses the region (`DeviceMemory` holds both).
        unsafe { MmapRegion::build_raw(start, len, prot, flags) }.map_err(|_| bad)
    }
    /// Sets the bits of `mask` in an aligned u64, atomically also for a running guest; returns the old value.
    pub fn fetch_or_u64(&self, addr: Maddr, mask: u64) -> Result<u64, BadMachineAddress> {
        self.atomic_u64(addr, |a| a.fetch_or(mask, Ordering::AcqRel))
    }
    /// Clears the bits of `mask` in the same way; returns the old value.
    pub fn fetch_and_not_u64(&self, addr: Maddr, mask: u64) -> Result<u64, BadMachineAddress> {
        self.atomic_u64(addr, |a| a.fetch_and(!mask, Ordering::AcqRel))
    }
    /// Replaces `current` by `new` in the same way. The inner result is `Err(actual)` if the value was not `current`.
    pub fn compare_exchange_u64(
        &self,
        addr: Maddr,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, BadMachineAddress> {
        self.atomic_u64(addr, |a| a.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire))
    }

    fn atomic_u64<R>(&self, addr: Maddr, f: impl FnOnce(&AtomicU64) -> R) -> Result<R, BadMachineAddress> {
        let bad = BadMachineAddress { addr: addr.0, len: 8 };
        let slice = self.mmap.get_slice(GuestAddress(addr.0), 8).map_err(|_| bad)?;
        let atomic = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| bad)?;
        Ok(f(atomic))
    }
}

fn create_memfd(bytes: u64) -> std::io::Result<File> {
    use std::os::fd::FromRawFd;
    let name = CString::new(MEMFD_NAME)?;
    // SAFETY: the name is NUL-terminated; the call has no other precondition.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: memfd_create just returned `fd`, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use crate::machine::memory::*;

    #[test]
    fn accesses_are_bounded() {
        let m = MachineMemory::new(2, 2, Backing::Anonymous).unwrap();
        assert_eq!(m.load_u64(Maddr(4 * PAGE_SIZE - 8)), Ok(0));
        assert!(m.load_u64(Maddr(4 * PAGE_SIZE)).is_err());
        assert!(m.load_u64(Maddr(4 * PAGE_SIZE - 4)).is_err());
        assert!(m.load_u64(Maddr(3)).is_err(), "unaligned atomics are refused, not torn");
        assert!(m.read(Maddr(u64::MAX - 3), &mut [0; 8]).is_err());
        assert!(m.write(Mfn(u64::MAX).maddr(), &[1]).is_err());
        assert_eq!(m.pfn_to_mfn(1), Some(Mfn(3)));
        assert_eq!(m.pfn_to_mfn(2), None);
        assert_eq!(m.mfn_to_pfn(Mfn(1)), None);
    }

    #[test]
    fn both_backings_hold_data() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let m = MachineMemory::new(0, 1, backing).unwrap();
            m.store_u64(Maddr(8), 7).unwrap();
            assert_eq!(m.fetch_or_u64(Maddr(8), 8), Ok(7));
            assert_eq!(m.fetch_and_not_u64(Maddr(8), 1), Ok(15));
            assert_eq!(m.compare_exchange_u64(Maddr(8), 1, 2), Ok(Err(14)));
            assert_eq!(m.read_obj::<u64>(Maddr(8)), Ok(14));
            m.fill(Maddr(PAGE_SIZE - 1), &[5]).unwrap();
            assert_eq!(m.read_obj::<u8>(Maddr(PAGE_SIZE - 1)), Ok(5));
            assert!(m.fill(Maddr(PAGE_SIZE - 1), &[5; 2]).is_err() && m.fill(Maddr(u64::MAX), &[5]).is_err());
            assert_eq!(m.len(), PAGE_SIZE);
            assert_eq!(m.memfd().is_some(), backing == Backing::Memfd);
        }
    }

    #[test]
    fn what_is_filled_in_steps_is_whole() {
        let bytes: Vec<u8> = (0..2 * FILL_STEP + 5).map(|i| (i % 251) as u8).collect();
        let frames = (bytes.len() as u64).div_ceil(PAGE_SIZE) + 1;
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let m = MachineMemory::new(0, frames, backing).unwrap();
            m.fill(Maddr(100), &bytes).unwrap();
            let mut all = vec![0; m.len() as usize];
            m.read(Maddr(0), &mut all).unwrap();
            let (before, after) = (&all[..100], &all[100 + bytes.len()..]);
            assert!(all[100..].starts_with(&bytes), "{backing:?}");
            assert!(before.iter().chain(after).all(|byte| *byte == 0), "{backing:?}");
            assert!(m.fill(Maddr(frames * PAGE_SIZE - 9), &bytes).is_err());
        }
    }

    #[test]
    fn the_host_has_memory_for_touched_frames_only() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let m = MachineMemory::new(0, 1 << 15, backing).unwrap();
            let all = Mfn(0)..Mfn(1 << 15);
            assert_eq!(m.existing_frames(all.clone()), Some(0));
            m.fill(Mfn(3).maddr(), &[1]).unwrap();
            m.write(Mfn((1 << 15) - 1).maddr(), &[1]).unwrap();
            assert_eq!((m.backing(), m.existing_frames(all)), (backing, Some(2)));
            assert_eq!(m.existing_frames(Mfn(4)..Mfn((1 << 15) - 1)), Some(0));
            assert_eq!(m.existing_frames(Mfn(1)..Mfn((1 << 15) + 1)), None);
        }
    }
}
