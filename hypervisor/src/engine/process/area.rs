//! Where things are in a guest process, and the memory that the monitor shares with it.
//!
//! Besides the guest's pages a guest process maps three pieces of the engine, at the same addresses in each: the
//! stub's code, a *room* that it can write (register blocks, FPU images, the signal stack) and a *board*
//! that it can only read (filters, set-up script, the batch of calls for the mapper). Room and board are one
//! memfd for each process, so that no process sees another's. The room is the guest's to scribble on:
//! whatever is read from it is a claim, bounded here and judged by [`super::context`].
//!
//! Nothing of the host may be written into either: no host address, no secret.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
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

const FILE_SIZE: u64 = ROOM_SIZE + BOARD_SIZE;
/// Where the board is in the memfd; the room is at 0.
pub(super) const BOARD_FILE_OFFSET: u64 = ROOM_SIZE;

/// The monitor's view of one process's room and board.
#[derive(Debug)]
pub(super) struct Area {
    memfd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the pointer is to the mapping that this value owns, which does not depend on a thread.
unsafe impl Send for Area {}

impl Area {
    /// Fresh, zeroed memory; no page of it is touched.
    pub fn new() -> io::Result<Self> {
        let memfd = sys::memfd(c"paravane-room", libc::MFD_CLOEXEC, FILE_SIZE)?;
        let base = sys::map_shared(memfd.as_fd(), FILE_SIZE)?;
        Ok(Self { memfd, base })
    }
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
    /// A pointer to `len` bytes at `offset` of the file.
    ///
    /// Every access goes through here. Offsets are ours or were bounded by [`offset_in_room`]; a wrong one
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
        if sys::punch_hole(self.memfd.as_fd(), 0, ROOM_SIZE).is_err() {
            self.write_room(0, &[0; ROOM_SIZE as usize]);
        }
    }
    /// Forgets the calls of all batches, for a process whose mapper has nothing to do.
    pub fn clear_steps(&self) {
        let (start, len) = (BOARD_FILE_OFFSET + board::STEPS, BOARD_SIZE - board::STEPS);
        if sys::punch_hole(self.memfd.as_fd(), start, len).is_err() {
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

/// Turns an address that a guest process claims into an offset in the room, if `len` bytes there are in it.
pub(super) fn offset_in_room(address: u64, len: u64) -> Option<u64> {
    let offset = address.checked_sub(CODE + ROOM)?;
    (offset.checked_add(len)? <= ROOM_SIZE).then_some(offset)
}

/// The address in a guest process of an offset in its room.
pub(super) const fn room_va(offset: u64) -> u64 {
    CODE + ROOM + offset
}

/// The address in a guest process of an offset in its board.
pub(super) const fn board_va(offset: u64) -> u64 {
    CODE + BOARD + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_about_the_room_are_bounded() {
        assert_eq!(offset_in_room(room_va(0x100), 8), Some(0x100));
        assert_eq!(offset_in_room(room_va(ROOM_SIZE - 8), 8), Some(ROOM_SIZE - 8));
        assert_eq!(offset_in_room(room_va(ROOM_SIZE - 7), 8), None);
        assert_eq!(offset_in_room(room_va(0) - 1, 8), None);
        assert_eq!(offset_in_room(u64::MAX, 8), None);
        assert_eq!(offset_in_room(room_va(0), u64::MAX), None);
        assert_eq!(offset_in_room(board_va(0), 8), None);
    }

    #[test]
    fn pieces_do_not_overlap() {
        const {
            assert!(CODE_SIZE <= ROOM && ROOM + ROOM_SIZE <= BOARD && CODE + BOARD + BOARD_SIZE < TASK_END);
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
