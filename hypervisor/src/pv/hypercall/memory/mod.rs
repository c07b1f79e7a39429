//! memory_op: what memory there is, and giving it back and taking it (public/memory.h).
//!
//! Frames are never created: a domain owns all of its machine from the start, and what it gives back waits in
//! [`crate::pv::free_frames`] until it is taken again.

mod exchange;
mod reservation;

use std::mem::offset_of;

use paravane_abi::domid::{DOMID_SELF, DomId};
use paravane_abi::errno::Errno;
use paravane_abi::memory::*;
use paravane_abi::shared_info::{ArchSharedInfo, SharedInfo};

use super::{Call, HypercallResult, done, low32};
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::pv::domain::DOMID;
use crate::pv::guest_pointer::{GuestPtr, GuestSlice};

/// Sub-operation in the low bits; the progress of a call that was interrupted is above them.
const COMMAND_BITS: u32 = 6;
/// Frames in one of the extents that hold the machine-to-physical table: 2 MiB.
const M2P_EXTENT: u64 = 512;

/// memory_op(command, argument).
pub fn memory_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    let progress = command.word() >> COMMAND_BITS;
    let command = low32(command.word() & ((1 << COMMAND_BITS) - 1));
    match command {
        XENMEM_INCREASE_RESERVATION | XENMEM_DECREASE_RESERVATION | XENMEM_POPULATE_PHYSMAP => {
            return reservation::change(call, command, argument.pointer(), progress);
        }
        // The others do not use it.
        _ if progress != 0 => return Err(Errno::EINVAL),
        _ => {}
    }
    match command {
        XENMEM_MAXIMUM_RAM_PAGE => done(call.domain.memory.frames().saturating_sub(1)),
        XENMEM_CURRENT_RESERVATION => {
            own(call.guest().read::<XenMemoryDomain>(argument.pointer())?.domid)?;
            done(call.domain.memory.guest_frames().saturating_sub(call.domain.free_frames.len()))
        }
        XENMEM_MAXIMUM_RESERVATION => {
            own(call.guest().read::<XenMemoryDomain>(argument.pointer())?.domid)?;
            done(call.domain.memory.guest_frames())
        }
        XENMEM_MAXIMUM_GPFN => {
            own(call.guest().read::<XenMemoryDomain>(argument.pointer())?.domid)?;
            maximum_gpfn(call)
        }
        XENMEM_MACHPHYS_MFN_LIST => machphys_mfn_list(call, argument.pointer()),
        XENMEM_MACHPHYS_MAPPING => {
            let frames = call.domain.memory.frames();
            let v_start = call.domain.facts.m2p_va;
            let mapping = XenMachphysMapping {
                v_start,
                v_end: v_start + frames * 8,
                max_mfn: frames.saturating_sub(1),
            };
            call.guest().write(argument.pointer(), &mapping)?;
            done(0)
        }
        XENMEM_MEMORY_MAP => memory_map(call, argument.pointer()),
        XENMEM_EXCHANGE => exchange::exchange(call, argument.pointer()),
        // A paravirtual guest translates for itself.
        XENMEM_ADD_TO_PHYSMAP => translated(call.guest().read::<XenAddToPhysmap>(argument.pointer())?.domid),
        XENMEM_REMOVE_FROM_PHYSMAP => {
            translated(call.guest().read::<XenRemoveFromPhysmap>(argument.pointer())?.domid)
        }
        XENMEM_ADD_TO_PHYSMAP_BATCH => translated(call.guest().read::<DomId>(argument.pointer())?),
        XENMEM_GET_VNUMAINFO => {
            own(call.guest().read::<XenVnumaTopologyInfo>(argument.pointer())?.domid)?;
            Err(Errno::EOPNOTSUPP)
        }
        XENMEM_MACHINE_MEMORY_MAP
        | XENMEM_SET_MEMORY_MAP
        | XENMEM_SET_POD_TARGET
        | XENMEM_GET_POD_TARGET
        | XENMEM_CLAIM_PAGES
        | XENMEM_RESERVED_DEVICE_MEMORY_MAP
        | XENMEM_ACQUIRE_RESOURCE => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

/// The caller's own domain, however it names it: EPERM for domain 0, ESRCH for a domain that does not exist.
fn own(dom: DomId) -> Result<(), Errno> {
    match dom {
        DOMID_SELF | DOMID => Ok(()),
        0 => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

fn translated(dom: DomId) -> HypercallResult {
    own(dom).and(Err(Errno::EACCES))
}

/// The largest PFN of which the guest has told tools; 0 if it has not.
fn maximum_gpfn(call: &Call<'_>) -> HypercallResult {
    let field = offset_of!(SharedInfo, arch) + offset_of!(ArchSharedInfo, max_pfn);
    let at = Maddr(call.upcall().shared_info.0 + field as u64);
    let count = call.domain.memory.load_u64(at).map_err(|_| Errno::EFAULT)?;
    done(count.saturating_sub(1))
}

/// The frames that hold the machine-to-physical table, an extent of 2 MiB each; the last may be shorter.
fn machphys_mfn_list(call: &mut Call<'_>, argument: GuestPtr<XenMachphysMfnList>) -> HypercallResult {
    let mut list = call.guest().read(argument)?;
    let frames = call.domain.facts.m2p.clone();
    let extents = (frames.end - frames.start).div_ceil(M2P_EXTENT).min(u64::from(list.max_extents));
    let starts = GuestSlice::<u64>::new(list.extent_start, extents);
    for n in 0..extents {
        call.guest().write(starts.at(n)?, &(frames.start + n * M2P_EXTENT))?;
    }
    list.nr_extents = low32(extents);
    call.guest().write(argument, &list)?;
    done(0)
}

/// XENMEM_memory_map: one range of RAM, from 0 on.
fn memory_map(call: &mut Call<'_>, argument: GuestPtr<XenMemoryMap>) -> HypercallResult {
    let mut map = call.guest().read(argument)?;
    if map.nr_entries < 1 {
        return Err(Errno::EINVAL);
    }
    let ram = E820Entry { addr: 0, size: call.domain.memory.guest_frames() * PAGE_SIZE, kind: E820_RAM };
    call.guest().write(GuestPtr::new(map.buffer), &ram)?;
    map.nr_entries = 1;
    call.guest().write(argument, &map)?;
    done(0)
}

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;

    use crate::pv::hypercall::memory::*;
    use crate::testing::pv::{FRAMES, FREE, NOWHERE, SCRATCH, TestDomain, va};

    fn value<T>(t: &mut TestDomain, command: u32, argument: T) -> Result<u64, Errno>
    where
        T: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
    {
        t.op(nr::MEMORY_OP, command, argument).map(|r| r.0)
    }

    #[test]
    fn sizes() {
        let mut t = TestDomain::new();
        for command in [XENMEM_CURRENT_RESERVATION, XENMEM_MAXIMUM_RESERVATION] {
            for (domid, size) in [
                (DOMID_SELF, Ok(FRAMES)),
                (DOMID, Ok(FRAMES)),
                (0, Err(Errno::EPERM)),
                (9, Err(Errno::ESRCH)),
            ] {
                assert_eq!(value(&mut t, command, XenMemoryDomain { domid }), size);
            }
            assert_eq!(t.call(nr::MEMORY_OP, [command.into(), NOWHERE]), Err(Errno::EFAULT));
        }
        assert_eq!(t.call(nr::MEMORY_OP, [XENMEM_MAXIMUM_RAM_PAGE.into(), 0]), Ok(t.mfn(FRAMES - 1)));
        let this = XenMemoryDomain { domid: DOMID_SELF };
        assert_eq!(value(&mut t, XENMEM_MAXIMUM_GPFN, this), Ok(0), "the guest has said nothing yet");
        let field = offset_of!(SharedInfo, arch) as u64;
        t.memory.store_u64(Maddr(t.upcall().shared_info.0 + field), 77).unwrap();
        assert_eq!(value(&mut t, XENMEM_MAXIMUM_GPFN, this), Ok(76));
    }

    #[test]
    fn where_the_machine_to_physical_table_is() {
        let mut t = TestDomain::new();
        let (_, mapping) =
            t.op(nr::MEMORY_OP, XENMEM_MACHPHYS_MAPPING, XenMachphysMapping::default()).unwrap();
        assert_eq!((mapping.v_start, mapping.max_mfn), (t.facts.m2p_va, t.mfn(FRAMES - 1)));
        let list = |max_extents, extent_start| XenMachphysMfnList {
            max_extents,
            extent_start,
            ..Default::default()
        };
        let (_, none) = t.op(nr::MEMORY_OP, XENMEM_MACHPHYS_MFN_LIST, list(0, NOWHERE)).unwrap();
        assert_eq!(none.nr_extents, 0);
        let (_, all) = t.op(nr::MEMORY_OP, XENMEM_MACHPHYS_MFN_LIST, list(9, va(FREE))).unwrap();
        assert_eq!((all.nr_extents, t.peek(FREE, 0)), (1, t.facts.m2p.start));
        let nowhere = value(&mut t, XENMEM_MACHPHYS_MFN_LIST, list(1, NOWHERE));
        assert_eq!(nowhere, Err(Errno::EFAULT));
    }

    #[test]
    fn one_range_of_ram() {
        let mut t = TestDomain::new();
        let map = |nr_entries, buffer| XenMemoryMap { nr_entries, buffer, _pad: 0 };
        let (_, filled) = t.op(nr::MEMORY_OP, XENMEM_MEMORY_MAP, map(8, va(FREE))).unwrap();
        assert_eq!(filled.nr_entries, 1);
        let ram: E820Entry = t.read_at(va(FREE)).unwrap();
        assert_eq!((ram.addr, ram.size, ram.kind), (0, FRAMES * PAGE_SIZE, E820_RAM));
        assert_eq!(value(&mut t, XENMEM_MEMORY_MAP, map(0, va(FREE))), Err(Errno::EINVAL));
        assert_eq!(value(&mut t, XENMEM_MEMORY_MAP, map(1, NOWHERE)), Err(Errno::EFAULT));
    }

    #[test]
    fn what_is_refused() {
        let mut t = TestDomain::new();
        let this = |domid| XenAddToPhysmap { domid, ..Default::default() };
        for command in [XENMEM_ADD_TO_PHYSMAP, XENMEM_REMOVE_FROM_PHYSMAP, XENMEM_ADD_TO_PHYSMAP_BATCH] {
            assert_eq!(value(&mut t, command, this(DOMID_SELF)), Err(Errno::EACCES));
            assert_eq!(value(&mut t, command, this(0)), Err(Errno::EPERM));
            assert_eq!(value(&mut t, command, this(7)), Err(Errno::ESRCH));
            assert_eq!(t.call(nr::MEMORY_OP, [command.into(), NOWHERE]), Err(Errno::EFAULT));
        }
        let numa = XenVnumaTopologyInfo { domid: DOMID_SELF, ..Default::default() };
        assert_eq!(value(&mut t, XENMEM_GET_VNUMAINFO, numa), Err(Errno::EOPNOTSUPP));
        for command in [10, 13, 16, 17, 24, 27, 28] {
            assert_eq!(t.call(nr::MEMORY_OP, [command, NOWHERE]), Err(Errno::EPERM), "{command}");
        }
        for command in [8, 18, 22, 25, 29, 63] {
            assert_eq!(t.call(nr::MEMORY_OP, [command, va(SCRATCH)]), Err(Errno::ENOSYS), "{command}");
        }
        let progress = 1 << COMMAND_BITS;
        let memory_map = u64::from(XENMEM_MEMORY_MAP) | progress;
        assert_eq!(t.call(nr::MEMORY_OP, [memory_map, va(SCRATCH)]), Err(Errno::EINVAL));
    }
}
