//! Frames that hold code from which something was made: translations of it, or patches in it.
//!
//! Such a frame is write-protected like a table in use, so that every store to it is seen, by whatever linear address
//! it is made. [`Shadow::store`] performs it and notes it here, and whoever made something from the code asks for the
//! notes ([`Shadow::take_code_writes`]) before the guest runs again.
//!
//! Where code was replaced ([`Shadow::replace_code`]), the original bytes are kept. What the hypervisor reads in the
//! guest's stead, it reads as if nothing were replaced; the guest's own loads see what is in memory. A store to
//! replaced bytes puts the originals back first.
//!
//! Code here may not decide what is code, nor what becomes of something that was made from it.

use super::state::Shadow;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::log::TableLog;

/// The most bytes that can be replaced in one piece.
pub const MAX_REPLACED: usize = 32;
/// How many stores are told apart between two entries.
const NOTED: usize = 16;

/// A store to a protected frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeWrite {
    /// The guest frame.
    pub pfn: u64,
    /// Where in it the store begins.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// The bytes that were replaced at one place, which does not cross a frame's end.
#[derive(Clone, Copy, Debug)]
struct Replaced {
    at: Maddr,
    len: usize,
    original: [u8; MAX_REPLACED],
    new: [u8; MAX_REPLACED],
}

impl Replaced {
    /// The bytes of `held`, which are there now, with the originals in the place of ours. What is not ours any more was
    /// written in a way that is not seen here, such as by a device: it stays.
    fn undone(&self, held: &mut [u8]) {
        for ((byte, new), original) in held.iter_mut().zip(self.new).zip(self.original) {
            if *byte == new {
                *byte = original;
            }
        }
    }
    fn overlaps(&self, at: Maddr, len: usize) -> bool {
        self.at.0 < at.0.saturating_add(len as u64) && at.0 < self.at.0.saturating_add(self.len as u64)
    }
}

/// What is known about code.
#[derive(Debug, Default)]
pub(super) struct Code {
    /// The protected frames, in order.
    frames: Vec<u64>,
    /// What was replaced, in order of addresses; no two overlap.
    replaced: Vec<Replaced>,
    notes: [CodeWrite; NOTED],
    noted: usize,
    /// There were more stores than `notes` has room for.
    overflow: bool,
}

impl Code {
    pub(super) fn contains(&self, pfn: u64) -> bool {
        !self.frames.is_empty() && self.frames.binary_search(&pfn).is_ok()
    }

    pub(super) fn note(&mut self, write: CodeWrite) {
        let last = self.noted.checked_sub(1).and_then(|last| self.notes.get_mut(last));
        if let Some(last) = last
            && last.pfn == write.pfn
            && last.offset + last.len == write.offset
        {
            last.len += write.len;
        } else if let Some(place) = self.notes.get_mut(self.noted) {
            *place = write;
            self.noted += 1;
        } else {
            self.overflow = true;
        }
    }

    /// The replaced pieces that an access of `len` bytes at `at`, within a frame, touches: a range of their list.
    fn touched(&self, at: Maddr, len: usize) -> std::ops::Range<usize> {
        let from = self.replaced.partition_point(|r| r.at.0.saturating_add(r.len as u64) <= at.0);
        let rest = self.replaced.get(from..).unwrap_or_default();
        from..from + rest.iter().take_while(|r| r.overlaps(at, len)).count()
    }

    /// Puts back what a store is about to touch.
    pub(super) fn put_back(
        &mut self,
        mem: &MachineMemory,
        at: Maddr,
        len: usize,
    ) -> Result<(), BadMachineAddress> {
        if self.replaced.is_empty() {
            return Ok(());
        }
        for replaced in self.replaced.drain(self.touched(at, len)) {
            let mut held = [0; MAX_REPLACED];
            let Some(held) = held.get_mut(..replaced.len) else { continue };
            mem.read(replaced.at, held)?;
            replaced.undone(held);
            mem.write(replaced.at, held)?;
        }
        Ok(())
    }
}

impl Shadow {
    /// Write-protects the guest frame `pfn`, because something is made from the code in it.
    pub fn protect_code(&mut self, mem: &MachineMemory, log: &mut TableLog, pfn: u64) {
        if let Err(place) = self.code.frames.binary_search(&pfn) {
            self.code.frames.insert(place, pfn);
            self.protect_writers(mem, log, pfn);
        }
    }

    /// Nothing that was made from the code in `pfn` is left: stores to it need not be seen.
    pub fn unprotect_code(&mut self, pfn: u64) {
        if let Ok(place) = self.code.frames.binary_search(&pfn) {
            self.code.frames.remove(place);
        }
    }

    /// Whether the guest frame is protected because of the code in it.
    pub fn is_code(&self, pfn: u64) -> bool {
        self.code.contains(pfn)
    }

    /// Whether the guest frame is write-protected: a table in use, or code.
    pub fn is_protected(&self, pfn: u64) -> bool {
        self.pool.is_table(pfn) || self.code.contains(pfn)
    }

    /// Lets the guest write a frame of code with any instruction, after all that was replaced in it is put back: the
    /// whole frame is noted as written.
    pub fn release_code(&mut self, mem: &MachineMemory, at: Maddr) -> Result<(), BadMachineAddress> {
        let frame = at.mfn();
        let outside = BadMachineAddress { addr: at.0, len: 1 };
        let pfn = mem.mfn_to_pfn(frame).ok_or(outside)?;
        self.code.put_back(mem, frame.maddr(), PAGE_SIZE as usize)?;
        self.code.note(CodeWrite { pfn, offset: 0, len: PAGE_SIZE });
        self.unprotect_code(pfn);
        Ok(())
    }

    /// Replaces the bytes at `at`, within one protected frame; the originals are kept.
    ///
    /// What was replaced there before is put back first.
    pub fn replace_code(
        &mut self,
        mem: &MachineMemory,
        at: Maddr,
        new: &[u8],
    ) -> Result<(), BadMachineAddress> {
        let outside = BadMachineAddress { addr: at.0, len: new.len() };
        if new.len() > MAX_REPLACED || at.offset() + new.len() as u64 > PAGE_SIZE {
            return Err(outside);
        }
        self.code.put_back(mem, at, new.len())?;
        let mut replaced =
            Replaced { at, len: new.len(), original: [0; MAX_REPLACED], new: [0; MAX_REPLACED] };
        mem.read(at, replaced.original.get_mut(..new.len()).ok_or(outside)?)?;
        replaced.new.get_mut(..new.len()).ok_or(outside)?.copy_from_slice(new);
        mem.write(at, new)?;
        let place = self.code.replaced.partition_point(|r| r.at < at);
        self.code.replaced.insert(place, replaced);
        Ok(())
    }

    /// Puts the originals back wherever code was replaced within `len` bytes from `at`, within one frame.
    pub fn restore_code(
        &mut self,
        mem: &MachineMemory,
        at: Maddr,
        len: usize,
    ) -> Result<(), BadMachineAddress> {
        self.code.put_back(mem, at, len)
    }

    /// Reads guest memory within one frame, as if no code had been replaced.
    pub fn read(&self, mem: &MachineMemory, at: Maddr, buf: &mut [u8]) -> Result<(), BadMachineAddress> {
        mem.read(at, buf)?;
        if self.code.replaced.is_empty() {
            return Ok(());
        }
        let touched = self.code.replaced.get(self.code.touched(at, buf.len())).unwrap_or_default();
        for replaced in touched {
            let mut held = [0; MAX_REPLACED];
            let Some(held) = held.get_mut(..replaced.len) else { continue };
            mem.read(replaced.at, held)?;
            replaced.undone(held);
            for (address, byte) in (replaced.at.0..).zip(held) {
                let index = address.checked_sub(at.0).and_then(|i| usize::try_from(i).ok());
                if let Some(place) = index.and_then(|i| buf.get_mut(i)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }

    /// Hands out the stores to protected frames since the last call; returns whether there were more of them than could
    /// be noted, so that any protected frame may have been written to.
    pub fn take_code_writes(&mut self, mut each: impl FnMut(CodeWrite)) -> bool {
        let noted = std::mem::take(&mut self.code.noted);
        self.code.notes.iter().take(noted).copied().for_each(&mut each);
        std::mem::take(&mut self.code.overflow)
    }
}
