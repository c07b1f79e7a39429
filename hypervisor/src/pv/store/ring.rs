//! The page that the guest shares with the store: two rings of bytes, and their indices.
//!
//! Source: public/io/xs_wire.h, docs/misc/xenstore-ring.txt. The guest may write anything anywhere at any time: an
//! index is read once for each move, and no more than a ring's bytes are moved whatever it says.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use paravane_abi::xenstore::{XENSTORE_RING_SIZE, XenstoreDomainInterface};

use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};

const SIZE: usize = XENSTORE_RING_SIZE;

/// Why bytes could not be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The producer's index is more than the ring's size ahead of the consumer's.
    #[error("an index lies outside the xenstore's ring")]
    Index,
    /// The page does not exist: a bug of the hypervisor.
    #[error(transparent)]
    Memory(#[from] BadMachineAddress),
}

/// The page.
#[derive(Clone, Copy, Debug)]
pub struct Ring(pub Maddr);

impl Ring {
    const fn at(self, field: usize) -> Maddr {
        Maddr(self.0.0 + field as u64)
    }

    fn index(self, memory: &MachineMemory, field: usize) -> Result<u32, BadMachineAddress> {
        memory.read_obj(self.at(field))
    }

    /// Bytes between two indices.
    fn used(prod: u32, cons: u32) -> Result<usize, RingError> {
        let used = prod.wrapping_sub(cons) as usize;
        if used > SIZE { Err(RingError::Index) } else { Ok(used) }
    }

    /// Takes bytes of requests into `into`: as many as there are and fit. How many.
    pub fn take(self, memory: &MachineMemory, into: &mut [u8]) -> Result<usize, RingError> {
        let prod = self.index(memory, offset_of!(XenstoreDomainInterface, req_prod))?;
        let cons = self.index(memory, offset_of!(XenstoreDomainInterface, req_cons))?;
        // The bytes were written before the index that says so.
        fence(Ordering::Acquire);
        let count = Self::used(prod, cons)?.min(into.len());
        if count == 0 {
            return Ok(0);
        }
        let (start, first) = place(cons, count);
        let ring = offset_of!(XenstoreDomainInterface, req);
        let (head, tail) = into.split_at_mut(first);
        memory.read(self.at(ring + start), head)?;
        memory.read(self.at(ring), tail.get_mut(..count - first).unwrap_or_default())?;
        fence(Ordering::Release);
        let moved = cons.wrapping_add(count as u32);
        memory.write_obj(self.at(offset_of!(XenstoreDomainInterface, req_cons)), &moved)?;
        Ok(count)
    }

    /// Puts bytes of replies from `from` into the ring: as many as there is room for. How many.
    pub fn put(self, memory: &MachineMemory, from: &[u8]) -> Result<usize, RingError> {
        let prod = self.index(memory, offset_of!(XenstoreDomainInterface, rsp_prod))?;
        let cons = self.index(memory, offset_of!(XenstoreDomainInterface, rsp_cons))?;
        fence(Ordering::Acquire);
        let count = (SIZE - Self::used(prod, cons)?).min(from.len());
        if count == 0 {
            return Ok(0);
        }
        let (start, first) = place(prod, count);
        let ring = offset_of!(XenstoreDomainInterface, rsp);
        let (head, tail) = from.split_at(first);
        memory.write(self.at(ring + start), head)?;
        memory.write(self.at(ring), tail.get(..count - first).unwrap_or_default())?;
        fence(Ordering::Release);
        let moved = prod.wrapping_add(count as u32);
        memory.write_obj(self.at(offset_of!(XenstoreDomainInterface, rsp_prod)), &moved)?;
        Ok(count)
    }

    /// Leaves one of `XENSTORE_ERROR_*` in the page.
    pub fn report(self, memory: &MachineMemory, error: u32) -> Result<(), BadMachineAddress> {
        memory.write_obj(self.at(offset_of!(XenstoreDomainInterface, error)), &error)
    }
}

/// Where in a ring `count` bytes from `index` begin, and how many of them lie before its end.
fn place(index: u32, count: usize) -> (usize, usize) {
    let start = index as usize % SIZE;
    (start, count.min(SIZE - start))
}
