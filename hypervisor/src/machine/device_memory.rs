//! The memory that a device may access, at the addresses that its driver uses.
//!
//! It is a view of machine memory in the form that rust-vmm's crates work on. Every access of a device goes through
//! it and is bounded by it. The transport decides which frames are in it, and sees to it that the guest keeps them
//! writable memory for as long as the device is active.

#![forbid(unsafe_code)]

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use super::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn, PAGE_SIZE};

/// A buffer of a request. It was found to be the device's memory when the request was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Device address of the first byte.
    pub address: u64,
    /// Length in bytes; never 0.
    pub len: u32,
}

impl Segment {
    /// The length in bytes, as a `usize`.
    pub(crate) fn bytes(self) -> usize {
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }
}

/// Consecutive frames, and the device address of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Device address of the first byte, page-aligned.
    pub address: u64,
    /// The first frame.
    pub first: Mfn,
    /// The number of frames.
    pub frames: u64,
}

impl Region {
    /// The address after its last byte.
    fn end(&self) -> u64 {
        self.address.saturating_add(self.frames.saturating_mul(PAGE_SIZE))
    }
}

/// A view could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Two regions overlap, one wraps or is misaligned, or there is no region.
    #[error("the regions overlap, wrap or are misaligned, or there is none")]
    Layout,
    /// A region has frames that do not exist.
    #[error(transparent)]
    Frames(#[from] BadMachineAddress),
}

/// The memory of an active device. Clones share it.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    view: GuestMemoryMmap,
    /// The view borrows its mapping from this. `None` in tests.
    machine: Option<Arc<MachineMemory>>,
    /// In order of addresses.
    regions: Arc<[Region]>,
}

impl DeviceMemory {
    /// A view of `regions`, in any order. The caller has checked that the device may write to these frames.
    ///
    /// # Errors
    /// As [`MemoryError`] says.
    pub fn new(machine: &Arc<MachineMemory>, regions: &[Region]) -> Result<Self, MemoryError> {
        let mut sorted: Vec<Region> = regions.iter().filter(|r| r.frames > 0).copied().collect();
        sorted.sort_by_key(|r| r.address);
        let mut views = Vec::with_capacity(sorted.len());
        for r in &sorted {
            if !r.address.is_multiple_of(PAGE_SIZE) {
                return Err(MemoryError::Layout);
            }
            let mapping = machine.borrow_frames(r.first, r.frames)?;
            views.push(GuestRegionMmap::new(mapping, GuestAddress(r.address)).ok_or(MemoryError::Layout)?);
        }
        let view = GuestMemoryMmap::from_regions(views).map_err(|_| MemoryError::Layout)?;
        Ok(Self { view, machine: Some(Arc::clone(machine)), regions: sorted.into() })
    }

    /// Memory that is not a machine's, for tests of devices.
    #[cfg(test)]
    pub fn standing_alone(view: GuestMemoryMmap) -> Self {
        Self { view, machine: None, regions: Arc::default() }
    }

    /// Says that the device has written to it. To be called before the driver is told of a buffer.
    pub fn wrote(&self) {
        if let Some(machine) = &self.machine {
            machine.note_foreign_write();
        }
    }

    /// Says that the device is given this buffer to write to. To be called before it does.
    pub fn lend(&self, buffer: Segment) {
        let Some(machine) = &self.machine else { return };
        let (mut at, end) = (buffer.address, buffer.address.saturating_add(buffer.len.into()));
        let first = self.regions.partition_point(|region| region.end() <= at);
        for region in self.regions.get(first..).unwrap_or_default() {
            let part = end.min(region.end()).saturating_sub(at);
            if part == 0 || at < region.address {
                break;
            }
            machine.note_lent(Maddr(region.first.maddr().0 + (at - region.address)), part);
            at += part;
        }
    }

    /// The view, for rust-vmm's crates.
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.view
    }

    /// Whether all of these bytes are the device's.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.view.check_range(GuestAddress(address), len))
    }

    /// Copies from the buffers, after their first `skip` bytes, into `buf`; returns how many bytes were copied.
    pub fn gather(&self, segments: &[Segment], skip: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        for part in pieces(segments, skip) {
            let len = part.bytes().min(buf.len() - done);
            let Some(to) = buf.get_mut(done..done + len).filter(|to| !to.is_empty()) else { break };
            if self.view.read_slice(to, GuestAddress(part.address)).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Copies `bytes` into the buffers, after their first `skip` bytes; returns how many bytes were copied.
    pub fn scatter(&self, segments: &[Segment], skip: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in pieces(segments, skip) {
            let len = part.bytes().min(bytes.len() - done);
            let Some(from) = bytes.get(done..done + len).filter(|from| !from.is_empty()) else { break };
            if self.view.write_slice(from, GuestAddress(part.address)).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Appends to `out` the host addresses of `len` bytes of the buffers, after their first `skip` bytes, for system
    /// calls that access guest memory directly. Returns how many bytes the addresses cover: fewer if the buffers are
    /// shorter.
    ///
    /// The pointers are valid for as long as this view or a clone of it lives.
    pub fn iovecs(&self, segments: &[Segment], skip: u64, len: u64, out: &mut Vec<libc::iovec>) -> u64 {
        let mut left = len;
        for part in pieces(segments, skip) {
            let want = u64::from(part.len).min(left);
            let Ok(count) = usize::try_from(want) else { break };
            for slice in self.view.get_slices(GuestAddress(part.address), count) {
                let Ok(slice) = slice else { return len - left };
                let base = slice.ptr_guard_mut().as_ptr();
                out.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
                left -= slice.len() as u64;
            }
            if left == 0 {
                break;
            }
        }
        len - left
    }
}

/// The buffers without their first `skip` bytes.
fn pieces(segments: &[Segment], mut skip: u64) -> impl Iterator<Item = Segment> + '_ {
    segments.iter().filter_map(move |s| {
        let cut = skip.min(u64::from(s.len));
        skip -= cut;
        let len = u64::from(s.len) - cut;
        // `address + len` was checked when the chain was read, so this does not wrap.
        (len > 0).then(|| Segment { address: s.address.wrapping_add(cut), len: (len & 0xffff_ffff) as u32 })
    })
}

#[cfg(test)]
mod tests {
    use crate::machine::device_memory::*;
    use crate::machine::memory::{Backing, Maddr};

    fn machine() -> Arc<MachineMemory> {
        Arc::new(MachineMemory::new(2, 8, Backing::Anonymous).unwrap())
    }

    fn region(address: u64, first: u64, frames: u64) -> Region {
        Region { address, first: Mfn(first), frames }
    }

    #[test]
    fn a_device_sees_its_regions_and_nothing_else() {
        let m = machine();
        // Device pages 16 and 17 are frames 5 and 3.
        let d = DeviceMemory::new(&m, &[region(0x11000, 3, 1), region(0x10000, 5, 1)]).unwrap();
        assert!(d.contains(0x10000, 0x2000));
        assert!(!d.contains(0x0ffff, 2) && !d.contains(0x11fff, 2) && !d.contains(u64::MAX, 2));
        let across = [Segment { address: 0x10ffe, len: 4 }];
        assert_eq!(d.scatter(&across, 0, b"abcdef"), 4);
        assert_eq!(m.read_obj::<[u8; 2]>(Maddr(0x5ffe)), Ok(*b"ab"));
        assert_eq!(m.read_obj::<[u8; 2]>(Maddr(0x3000)), Ok(*b"cd"));
        let mut back = [0; 8];
        assert_eq!(d.gather(&across, 1, &mut back), 3);
        assert_eq!(&back[..3], b"bcd");
        let mut iovecs = Vec::new();
        assert_eq!(d.iovecs(&across, 1, 9, &mut iovecs), 3);
        assert_eq!(iovecs.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn frames_with_buffers_are_known() {
        let m = machine();
        // Device pages 16 and 17 are frames 5 and 3, and these are the guest's 3 and 1.
        let d = DeviceMemory::new(&m, &[region(0x11000, 3, 1), region(0x10000, 5, 1)]).unwrap();
        let lent = || (0..9).filter(|pfn| m.is_lent(*pfn)).collect::<Vec<_>>();
        d.lend(Segment { address: 0x10ff0, len: 16 });
        assert_eq!(lent(), [3]);
        d.lend(Segment { address: 0x10fff, len: 2 });
        assert_eq!(lent(), [1, 3]);
        d.lend(Segment { address: 0xfff0, len: 4 });
        d.lend(Segment { address: u64::MAX, len: u32::MAX });
        assert_eq!(lent(), [1, 3]);
    }

    #[test]
    fn views_that_cannot_exist_are_refused() {
        let m = machine();
        let bad = [
            vec![],
            vec![region(0x800, 3, 1)],
            vec![region(0, 3, 2), region(0x1000, 5, 1)],
            vec![region(u64::MAX - 0xfff, 3, 2)],
        ];
        for regions in bad {
            assert_eq!(DeviceMemory::new(&m, &regions).unwrap_err(), MemoryError::Layout, "{regions:?}");
        }
        for r in [region(0, 10, 1), region(0, 9, 2), region(0, u64::MAX, 1), region(0, 3, u64::MAX)] {
            assert!(matches!(DeviceMemory::new(&m, &[r]), Err(MemoryError::Frames(_))), "{r:?}");
        }
    }
}
