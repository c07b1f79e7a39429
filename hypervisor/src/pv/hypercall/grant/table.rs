//! The table itself: its size, its version, its entries' order; and what else is neither mapped nor copied.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::errno::Errno;
use paravane_abi::grant::*;

use super::{Halt, own_table, plausible_list};
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::pv::domain::{DOMID, PvDomain};
use crate::pv::hypercall::{HypercallResult, done, spend};

/// The only version that is offered.
const VERSION: u32 = 1;

/// GNTTABOP_setup_table.
pub(super) fn setup(d: &mut PvDomain, op: &mut GnttabSetupTable) -> Result<(), Halt> {
    plausible_list(op.frame_list, op.nr_frames)?;
    own_table(op.dom)?;
    if u64::from(op.nr_frames) > d.grants.limit() {
        return Err(Halt::Status(GNTST_GENERAL_ERROR));
    }
    spend(d, op.nr_frames.into());
    d.grants.grow(&mut d.mmu, op.nr_frames.into());
    let mut place = op.frame_list;
    for n in 0..op.nr_frames.into() {
        let frame = d.grants.frame(n).ok_or(Halt::Status(GNTST_GENERAL_ERROR))?;
        d.write_guest_obj(place, &frame.0).map_err(|_| Halt::Status(GNTST_BAD_VIRT_ADDR))?;
        place = place.wrapping_add(8);
    }
    Ok(())
}

/// GNTTABOP_query_size.
pub(super) fn query_size(d: &mut PvDomain, op: &mut GnttabQuerySize) -> Result<(), Halt> {
    own_table(op.dom)?;
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    op.nr_frames = number(d.grants.count());
    op.max_nr_frames = number(d.grants.limit());
    Ok(())
}

/// GNTTABOP_set_version, answered as by a Xen that was told to offer version 1 alone.
pub(super) fn set_version(d: &mut PvDomain, argument: u64) -> HypercallResult {
    let asked: GnttabSetVersion = d.read_guest_obj(argument)?;
    d.write_guest_obj(argument, &GnttabSetVersion { version: VERSION })?;
    match asked.version {
        VERSION => done(0),
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

/// GNTTABOP_get_version.
pub(super) fn get_version(d: &mut PvDomain, argument: u64) -> HypercallResult {
    let asked: GnttabGetVersion = d.read_guest_obj(argument)?;
    match asked.dom {
        DOMID_SELF | DOMID => {}
        0 => return Err(Errno::EPERM),
        _ => return Err(Errno::ESRCH),
    }
    d.write_guest_obj(argument, &GnttabGetVersion { version: VERSION, ..asked })?;
    done(0)
}

/// GNTTABOP_get_status_frames: version 1 has none.
pub(super) fn status_frames(_: &mut PvDomain, op: &mut GnttabGetStatusFrames) -> Result<(), Halt> {
    plausible_list(op.frame_list, op.nr_frames)?;
    own_table(op.dom)?;
    if op.nr_frames == 0 { Ok(()) } else { Err(Halt::Status(GNTST_GENERAL_ERROR)) }
}

/// GNTTABOP_swap_grant_ref.
pub(super) fn swap(d: &mut PvDomain, op: &mut GnttabSwapGrantRef) -> Result<(), Halt> {
    Ok(d.grants.swap(&d.memory, op.ref_a, op.ref_b)?)
}

/// GNTTABOP_cache_flush. No device bypasses the caches, so writing them back is nothing to do; to forget what
/// they hold is not possible on x86.
pub(super) fn cache_flush(d: &mut PvDomain, op: &GnttabCacheFlush) -> Result<(), Errno> {
    // A frame named by a grant is in the headers, and not in Xen.
    let known = GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL;
    let inside = u64::from(op.offset) < PAGE_SIZE && u64::from(op.offset) + u64::from(op.length) <= PAGE_SIZE;
    if !inside || op.op & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if op.length == 0 || op.op == 0 {
        return Ok(());
    }
    let mfn = Maddr(op.a).mfn();
    if !d.memory.is_frame(mfn) {
        return Err(Errno::EINVAL);
    }
    if !d.mmu.is_domains(mfn) {
        return Err(Errno::EPERM);
    }
    if op.op & GNTTAB_CACHE_CLEAN == 0 { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}
