//! `memory_op`: questions about the domain's memory.

use paravane_abi::Errno;
use paravane_abi::domid::DOMID_SELF;
use paravane_abi::hypercall::MEMORY_OP;
use paravane_abi::memory::{
    E820Entry, XENMEM_CURRENT_RESERVATION, XENMEM_MACHPHYS_MAPPING, XENMEM_MAXIMUM_RESERVATION,
    XENMEM_MEMORY_MAP, XenMachphysMapping, XenMemoryDomain, XenMemoryMap,
};

use super::operation;

/// The address of the machine-to-physical table.
///
/// # Errors
/// Never for a PV domain.
pub fn machphys_mapping() -> Result<XenMachphysMapping, Errno> {
    let mut mapping = XenMachphysMapping::default();
    // SAFETY: the structure of this operation.
    unsafe { operation(MEMORY_OP, XENMEM_MACHPHYS_MAPPING, &mut mapping) }.map(|_| mapping)
}

/// How many frames this domain has.
///
/// # Errors
/// Never for a PV domain.
pub fn current_reservation() -> Result<u64, Errno> {
    let mut domain = XenMemoryDomain { domid: DOMID_SELF };
    // SAFETY: the structure of this operation.
    unsafe { operation(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut domain) }
}

/// How many frames this domain may have.
///
/// # Errors
/// Never for a PV domain.
pub fn maximum_reservation() -> Result<u64, Errno> {
    let mut domain = XenMemoryDomain { domid: DOMID_SELF };
    // SAFETY: the structure of this operation.
    unsafe { operation(MEMORY_OP, XENMEM_MAXIMUM_RESERVATION, &mut domain) }
}

/// Writes the domain's memory map into `buffer`; returns how many regions were written.
///
/// # Errors
/// `ENOSYS` if the toolstack set no map.
pub fn memory_map(buffer: &mut [E820Entry]) -> Result<usize, Errno> {
    let room = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let mut map =
        XenMemoryMap { nr_entries: room, buffer: buffer.as_mut_ptr().addr() as u64, ..Default::default() };
    // SAFETY: the structure of this operation, whose buffer has room for `nr_entries`.
    unsafe { operation(MEMORY_OP, XENMEM_MEMORY_MAP, &mut map) }.map(|_| map.nr_entries.min(room) as usize)
}
