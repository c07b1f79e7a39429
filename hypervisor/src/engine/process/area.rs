//! Where things are in a guest process, and the memory that the monitor shares with it.
//!
//! Besides the guest's pages a guest process maps three pieces of the engine, at the same addresses in each: the
//! stub's code, a *room* that it can write (register blocks, FPU images, the signal stack) and a *board*
//! that it can only read (filters, set-up script, the batch of calls for the mapper). What belongs to one virtual
//! CPU is a *lane*: a copy of the three, a guest thread and a mapper. Lanes lie [`STRIDE`] apart. All rooms and boards
//! of a process are one memfd, so that no process sees another's. The rooms are the guest's to scribble on, any of its
//! threads on any of them and at any time: whatever is read from there is read once, and is a claim, bounded here
//! and judged by [`super::context`].
//!
//! Nothing of the host may be written into either: no host address, no secret.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sys;

/// First linear address that a guest cannot have: what lies from here up is ours.
pub const GUEST_END: u64 = 0x7e00_0000_0000;
/// Where every guest process finds the machine-to-physical table, read-only.
pub(super) const M2P_VA: u64 = GUEST_END;
/// Where the stub's code is.
pub(super) const CODE: u64 = 0x7e80_0000_0000;
/// Bytes of the stub's code.
pub(super) const CODE_SIZE: u64 = 0x1000;
/// The room, from [`CODE`].
pub(super) const ROOM: u64 = 0x1_0000;
/// Bytes of the room.
pub(super) const ROOM_SIZE: u64 = 0x2_0000;
/// The board, from [`CODE`].
pub(super) const BOARD: u64 = 0x10_0000;
/// Bytes of the board.
pub(super) const BOARD_SIZE: u64 = 0x4_0000;
/// From one lane's code, room and board to the next one's. A power of two, which divides the address of the first.
pub(super) const STRIDE: u64 = 0x20_0000;
/// How many lanes there can be.
pub(super) const MAX_LANES: u8 = 64;
/// First address past what Linux gives a process with 4-level tables.
pub(super) const TASK_END: u64 = 0x7fff_ffff_f000;

/// Offsets in the room.
pub(super) mod room {
    /// What a hypercall saves: 15 general registers, rsp, rip, rflags.
    pub const EXIT: u64 = 0x000;
    /// What a resumption loads: 15 general registers.
    pub const RESUME: u64 = 0x100;
    /// IRETQ's frame: rip, cs, rflags, rsp, ss.
    pub const IRET: u64 = 0x180;
    /// FS.base to load.
    pub const FS: u64 = 0x1b0;
    /// GS.base to load.
    pub const GS: u64 = 0x1b8;
    /// Address of the FPU image to load, or 0.
    pub const LOAD_FPU: u64 = 0x1c0;
    /// Bit 0: load FS.base; bit 1: load GS.base.
    pub const LOAD_BASES: u64 = 0x1c8;
    /// How many kicks found the stub outside guest code since the last entry.
    pub const KICKED: u64 = 0x1d0;
    /// Address of the script's step that failed.
    pub const FAILED_AT: u64 = 0x1d8;
    /// Where a hypercall saves the FPU state.
    pub const FPU_OUT: u64 = 0x1000;
    /// Where the monitor puts an FPU state that comes from another process.
    pub const FPU_IN: u64 = 0x5000;
    /// Room for one FPU image.
    pub const FPU_SIZE: u64 = 0x4000;
    /// The signal stack; it ends where the room ends.
    pub const STACK: u64 = 0x1_0000;
}

/// Offsets in the board.
pub(super) mod board {
    /// Number of the batch that the mapper is to carry out: a futex.
    pub const BATCH: u64 = 0x000;
    /// The answer (`seccomp_notif_resp`) with which the mapper resumes the guest.
    pub const ANSWER: u64 = 0x040;
    /// Syscall User Dispatch's selector: from the first entry on, every call but the hand-over traps.
    pub const DISPATCH: u64 = 0x080;
    /// Structures that the set-up script points to.
    pub const DATA: u64 = 0x100;
    /// The mapper's set-up script.
    pub const SCRIPT: u64 = 0x0a00;
    /// The guest thread's set-up script.
    pub const GUEST_SCRIPT: u64 = 0x1800;
    /// The batch: steps of [`super::STEP`] bytes.
    pub const STEPS: u64 = 0x2000;
}

/// Bytes of one step of a script or batch: the call's number and six arguments.
pub(super) const STEP: u64 = 56;

/// Bytes of one lane's room and board, as they follow each other in the memfd.
const FILE_SIZE: u64 = ROOM_SIZE + BOARD_SIZE;
/// Where the board is in the lane's part of the memfd; the room is at 0.
pub(super) const BOARD_FILE_OFFSET: u64 = ROOM_SIZE;

/// One of the lanes of a machine's processes, all of which have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    index: u8,
    count: u8,
}

impl Lane {
    /// All lanes of a machine with this many virtual CPUs.
    pub fn all(count: u8) -> Vec<Self> {
        (0..count.clamp(1, MAX_LANES)).map(|index| Self { index, count }).collect()
    }
    /// The first lane of a machine with this many.
    pub const fn first(count: u8) -> Self {
        Self { index: 0, count }
    }
    /// This one and all others of its machine.
    pub fn everyone(self) -> impl Iterator<Item = Self> {
        (0..self.count).map(move |index| Self { index, ..self })
    }
    /// The one after it.
    pub fn next(self) -> Option<Self> {
        let index = self.index.checked_add(1).filter(|index| *index < self.count)?;
        Some(Self { index, ..self })
    }
    pub fn is_first(self) -> bool {
        self.index == 0
    }
    /// Whether it is the only one.
    pub fn is_alone(self) -> bool {
        self.count == 1
    }
    pub fn index(self) -> usize {
        self.index.into()
    }
    /// Its bit in a set of lanes.
    pub fn bit(self) -> u64 {
        1 << self.index
    }
    pub fn count(self) -> u64 {
        self.count.into()
    }
    /// Where its code begins.
    pub const fn start(self) -> u64 {
        CODE + self.index as u64 * STRIDE
    }
    /// Where its part of the memfd begins.
    pub fn file_offset(self) -> u64 {
        u64::from(self.index) * FILE_SIZE
    }
    /// The address in a guest process of an offset in its room.
    pub const fn room_va(self, offset: u64) -> u64 {
        self.start() + ROOM + offset
    }
    /// The address in a guest process of an offset in its board.
    pub const fn board_va(self, offset: u64) -> u64 {
        self.start() + BOARD + offset
    }
    /// Turns an address that a guest process claims into an offset in the room, if `len` bytes there are in it.
    pub fn offset_in_room(self, address: u64, len: u64) -> Option<u64> {
        let offset = address.checked_sub(self.room_va(0))?;
        (offset.checked_add(len)? <= ROOM_SIZE).then_some(offset)
    }
}

/// The monitor's view of the room and board of one lane of one process.
#[derive(Debug)]
pub(super) struct Area {
    memfd: Arc<OwnedFd>,
    /// Where its part of the memfd begins.
    start: u64,
    base: NonNull<u8>,
}

// SAFETY: the mapping is this value's own until it is dropped, and which thread accesses it makes no difference. The
// guest writes to it at any time in any case: accesses are raw, of plain bytes, and nothing borrows from it but the
// batch number, which is atomic.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Fresh, zeroed memory for each of `lanes`; no page of it is touched.
    pub fn for_lanes(lanes: &[Lane]) -> io::Result<Vec<Self>> {
        let memfd = sys::memfd(c"paravane-room", libc::MFD_CLOEXEC, lanes.len() as u64 * FILE_SIZE)?;
        let memfd = Arc::new(memfd);
        let area = |lane: &Lane| {
            let start = lane.file_offset();
            let base = sys::map_shared(memfd.as_fd(), start, FILE_SIZE)?;
            Ok(Self { memfd: memfd.clone(), start, base })
        };
        lanes.iter().map(area).collect()
    }
    /// The same for a process of one lane.
    #[cfg(test)]
    pub fn new() -> io::Result<Self> {
        Ok(Self::for_lanes(&Lane::all(1))?.remove(0))
    }
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
    /// A pointer to `len` bytes at `offset` of the file.
    ///
    /// Every access goes through here. Offsets are ours or were bounded by `offset_in_room`; a wrong one
    /// is clamped into the mapping rather than trusted.
    fn at(&self, offset: u64, len: u64) -> *mut u8 {
        let offset = offset.min(FILE_SIZE.saturating_sub(len));
        // SAFETY: offset + len <= FILE_SIZE for every len up to FILE_SIZE, the length of the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }
    fn read(&self, offset: u64) -> u64 {
        // SAFETY: `at` yields 8 bytes inside the mapping; unaligned and volatile because the guest's process
        // chose some of the offsets and may write at any time.
        unsafe { self.at(offset, 8).cast::<[u8; 8]>().read_volatile() }.to_u64()
    }
    fn write(&self, offset: u64, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.at(offset, 8).cast::<[u8; 8]>().write_volatile(value.to_ne_bytes()) }
    }
    /// Reads a word of the room.
    pub fn room(&self, offset: u64) -> u64 {
        self.read(offset)
    }
    /// Writes a word of the room.
    pub fn set_room(&self, offset: u64, value: u64) {
        self.write(offset, value);
    }
    /// Writes a word of the board.
    pub fn set_board(&self, offset: u64, value: u64) {
        self.write(BOARD_FILE_OFFSET + offset, value);
    }
    /// The batch number, which the mapper waits on.
    pub fn batch(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping, which lives as long as `self`; 4-byte aligned since the mapping is
        // page-aligned; the other side only reads it.
        unsafe { &*self.at(BOARD_FILE_OFFSET + board::BATCH, 4).cast::<AtomicU32>() }
    }
    /// Publishes a new batch; the caller wakes the mapper.
    pub fn publish(&self) {
        self.batch().fetch_add(1, Ordering::Release);
    }
    /// Reads bytes of the room.
    pub fn read_room(&self, offset: u64, to: &mut [u8]) {
        let from = self.at(offset, to.len() as u64);
        // SAFETY: `at` yields as many bytes inside the mapping, which is not the caller's slice.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }
    /// Writes bytes of the room.
    pub fn write_room(&self, offset: u64, from: &[u8]) {
        let to = self.at(offset, from.len() as u64);
        // SAFETY: as for `read_room`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }
    /// Empties the room, for a process that the monitor holds at a hand-over.
    pub fn clear_room(&self) {
        if sys::punch_hole(self.memfd.as_fd(), self.start, ROOM_SIZE).is_err() {
            self.write_room(0, &[0; ROOM_SIZE as usize]);
        }
    }
    /// Forgets the calls of all batches, for a process whose mapper has nothing to do.
    pub fn clear_steps(&self) {
        let (start, len) = (BOARD_FILE_OFFSET + board::STEPS, BOARD_SIZE - board::STEPS);
        if sys::punch_hole(self.memfd.as_fd(), self.start + start, len).is_err() {
            self.write_room(start, &[0; (BOARD_SIZE - board::STEPS) as usize]);
        }
    }
    /// Copies an FPU image of `len` bytes from another room into this one's [`room::FPU_IN`].
    pub fn take_fpu(&self, from: &Area, offset: u64, len: u64) {
        let len = len.min(room::FPU_SIZE);
        // SAFETY: both ranges are `len` bytes inside two different mappings.
        unsafe {
            std::ptr::copy_nonoverlapping(from.at(offset, len), self.at(room::FPU_IN, len), len as usize);
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        sys::unmap(self.base, FILE_SIZE);
    }
}

trait ToU64 {
    fn to_u64(self) -> u64;
}

impl ToU64 for [u8; 8] {
    fn to_u64(self) -> u64 {
        u64::from_ne_bytes(self)
    }
}

/// The address in a guest process of an offset in the room of its first lane.
#[cfg(test)]
pub(super) const fn room_va(offset: u64) -> u64 {
    Lane::first(1).room_va(offset)
}

/// The address in a guest process of an offset in the board of its first lane.
#[cfg(test)]
pub(super) const fn board_va(offset: u64) -> u64 {
    Lane::first(1).board_va(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_about_the_room_are_bounded() {
        for lane in Lane::all(MAX_LANES) {
            assert_eq!(lane.offset_in_room(lane.room_va(0x100), 8), Some(0x100));
            assert_eq!(lane.offset_in_room(lane.room_va(ROOM_SIZE - 8), 8), Some(ROOM_SIZE - 8));
            assert_eq!(lane.offset_in_room(lane.room_va(ROOM_SIZE - 7), 8), None);
            assert_eq!(lane.offset_in_room(lane.room_va(0) - 1, 8), None);
            assert_eq!(lane.offset_in_room(u64::MAX, 8), None);
            assert_eq!(lane.offset_in_room(lane.room_va(0), u64::MAX), None);
            assert_eq!(lane.offset_in_room(lane.board_va(0), 8), None);
            let another = lane.next().unwrap_or(Lane::first(MAX_LANES));
            assert_eq!(lane.offset_in_room(another.room_va(0x100), 8), None);
        }
    }

    #[test]
    fn pieces_do_not_overlap() {
        const {
            assert!(CODE_SIZE <= ROOM && ROOM + ROOM_SIZE <= BOARD && BOARD + BOARD_SIZE <= STRIDE);
            assert!(CODE + MAX_LANES as u64 * STRIDE <= TASK_END);
            assert!(STRIDE.is_power_of_two() && CODE.is_multiple_of(STRIDE));
            assert!(room::FPU_OUT + room::FPU_SIZE <= room::FPU_IN);
            assert!(room::FPU_IN + room::FPU_SIZE <= room::STACK && room::STACK < ROOM_SIZE);
        }
        let area = Area::new().unwrap();
        area.set_room(ROOM_SIZE - 8, 7);
        area.set_board(0, 9);
        assert_eq!((area.room(ROOM_SIZE - 8), area.batch().load(Ordering::Relaxed)), (7, 9));
        area.set_room(u64::MAX, 1);
    }
}
