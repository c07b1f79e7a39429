//! The guest's linear memory, read and written by the host on the guest's behalf.
//!
//! The one gate for every pointer that a guest passes: page by page through the guest's own tables, with the rights of
//! CPL 3, never in the range that is reserved for the hypervisor. A pointer that fails is EFAULT.
//!
//! Writing is only for who holds the domain lock: it keeps the entry that the walk found, and with it the frame
//! writable memory, until the bytes are there. Without the lock another vCPU could have made a page table of the frame.
//! Who writes without it (devices, event bits, rings) goes by frame, and holds that as writable memory
//! ([`DirectPaging::get_writable`]).
//!
//! [`DirectPaging::get_writable`]: crate::mmu::direct::DirectPaging::get_writable

use paravane_abi::errno::Errno;
use paravane_abi::trap::{PFEC_PRESENT, PFEC_WRITE, TRAP_GP_FAULT, TRAP_PAGE_FAULT};
use paravane_abi::{addr, pte};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::guest_pointer::GuestPtr;
use crate::machine::memory::{MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::x86::exception::Fault;
use crate::x86::walk::{Access, MachineTables, walk_for};

/// The linear memory of one of the guest's address spaces, with the rights of CPL 3.
#[derive(Clone, Copy)]
pub struct GuestMemory<'a> {
    memory: &'a MachineMemory,
    root: Mfn,
}

impl<'a> GuestMemory<'a> {
    /// The address space whose top-level table is `root`.
    pub fn new(memory: &'a MachineMemory, root: Mfn) -> Self {
        Self { memory, root }
    }

    /// The machine address behind `va`, if a CPL 3 access of this kind may use it; EFAULT if not.
    pub fn translate(&self, va: u64, write: bool) -> Result<Maddr, Errno> {
        if addr::is_hypervisor(va) {
            return Err(Errno::EFAULT);
        }
        let access = Access { write, user: true, fetch: false };
        let t = walk_for(self.memory, &MachineTables, self.root.maddr().0, va, access)
            .map_err(|_| Errno::EFAULT)?;
        let used = pte::ACCESSED | if write { pte::DIRTY } else { 0 };
        if t.leaf().value & used != used {
            self.memory.fetch_or_u64(t.leaf().entry, used).map_err(|_| Errno::EFAULT)?;
        }
        t.maddr.ok_or(Errno::EFAULT)
    }

    /// Checks that `len` bytes at `va` can be written, on every page that they touch: for what is written only after
    /// something that cannot be taken back. EFAULT if not.
    pub fn check_bytes_writable(&self, va: u64, len: usize) -> Result<(), Errno> {
        self.for_each_page(va, len, true, |_, _| Ok(()))
    }

    /// The fault that an access of `len` bytes at `va`, which has just failed, is for the guest; `wanted` is
    /// PFEC_WRITE for a store.
    pub fn fault_at(&self, va: u64, len: usize, wanted: u32) -> Fault {
        let write = wanted & PFEC_WRITE != 0;
        let in_page = PAGE_SIZE - va % PAGE_SIZE;
        // The first byte is at fault, unless the access goes over into a page that is.
        let crosses = in_page < len as u64 && self.translate(va, write).is_ok();
        let address = if crosses { va.wrapping_add(in_page) } else { va };
        let access = Access { write, user: true, fetch: false };
        let root = self.root.maddr().0;
        match walk_for(self.memory, &MachineTables, root, address, access).map_err(|w| w.error_code(access)) {
            Err(None) => Fault { vector: TRAP_GP_FAULT, error_code: 0, address: 0 },
            Err(Some(error_code)) => Fault { vector: TRAP_PAGE_FAULT, error_code, address },
            // The hypervisor's range: mapped, and not for the guest.
            Ok(_) => Fault { vector: TRAP_PAGE_FAULT, error_code: PFEC_PRESENT | wanted, address },
        }
    }

    /// Calls `f(address, range of the buffer)` for each page that `[va, va+len)` touches.
    fn for_each_page(
        &self,
        va: u64,
        len: usize,
        write: bool,
        mut f: impl FnMut(Maddr, std::ops::Range<usize>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            let at = va.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
            let part = in_page.min(len - done);
            f(self.translate(at, write)?, done..done + part)?;
            done += part;
        }
        Ok(())
    }

    /// Copies from the guest.
    pub fn read_bytes(&self, va: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let len = buf.len();
        self.for_each_page(va, len, false, |maddr, range| {
            let part = buf.get_mut(range).ok_or(Errno::EFAULT)?;
            self.memory.read(maddr, part).map_err(|_| Errno::EFAULT)
        })
    }

    /// Copies to the guest; what was copied before a fault stays.
    pub fn write_bytes(&self, va: u64, buf: &[u8]) -> Result<(), Errno> {
        self.for_each_page(va, buf.len(), true, |maddr, range| {
            let part = buf.get(range).ok_or(Errno::EFAULT)?;
            self.memory.write(maddr, part).map_err(|_| Errno::EFAULT)
        })
    }

    /// Reads a structure.
    pub fn read<T: FromBytes + IntoBytes>(&self, at: GuestPtr<T>) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(at.address(), value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a structure.
    pub fn write<T: IntoBytes + Immutable>(&self, at: GuestPtr<T>, value: &T) -> Result<(), Errno> {
        self.write_bytes(at.address(), value.as_bytes())
    }

    /// Reads as many elements as `values` has.
    pub fn read_slice<T: FromBytes + IntoBytes>(
        &self,
        at: GuestPtr<T>,
        values: &mut [T],
    ) -> Result<(), Errno> {
        self.read_bytes(at.address(), values.as_mut_bytes())
    }

    /// Writes elements.
    pub fn write_slice<T: IntoBytes + Immutable>(&self, at: GuestPtr<T>, values: &[T]) -> Result<(), Errno> {
        self.write_bytes(at.address(), values.as_bytes())
    }

    /// Checks that a structure can be written, as [`GuestMemory::check_bytes_writable`] does.
    pub fn check_writable<T>(&self, at: GuestPtr<T>) -> Result<(), Errno> {
        self.check_bytes_writable(at.address(), size_of::<T>())
    }
}
