//! The table itself: its size, its version, its entries' order; and what else is neither mapped nor copied.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::errno::Errno;
use paravane_abi::grant::*;

use super::{Halt, own_table, plausible_list};
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::pv::domain::DOMID;
use crate::pv::guest_pointer::{GuestPtr, GuestSlice};
use crate::pv::hypercall::{Call, HypercallResult, done};

/// The only version that is offered.
const VERSION: u32 = 1;

/// GNTTABOP_setup_table.
pub(super) fn setup(call: &mut Call<'_>, op: &mut GnttabSetupTable) -> Result<(), Halt> {
    plausible_list(op.frame_list, op.nr_frames)?;
    own_table(op.dom)?;
    if u64::from(op.nr_frames) > call.domain.grants.limit() {
        return Err(Halt::Status(GNTST_GENERAL_ERROR));
    }
    call.spend(op.nr_frames.into());
    call.domain.grants.grow(&mut call.domain.mmu, op.nr_frames.into());
    let places = GuestSlice::<u64>::new(op.frame_list, op.nr_frames.into());
    for n in 0..op.nr_frames.into() {
        let frame = call.domain.grants.frame(n).ok_or(Halt::Status(GNTST_GENERAL_ERROR))?;
        let written = places.at(n).and_then(|place| call.guest().write(place, &frame.0));
        written.map_err(|_| Halt::Status(GNTST_BAD_VIRT_ADDR))?;
    }
    Ok(())
}

/// GNTTABOP_query_size.
pub(super) fn query_size(call: &mut Call<'_>, op: &mut GnttabQuerySize) -> Result<(), Halt> {
    own_table(op.dom)?;
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    op.nr_frames = number(call.domain.grants.count());
    op.max_nr_frames = number(call.domain.grants.limit());
    Ok(())
}

/// GNTTABOP_set_version, answered as by a Xen that was told to offer version 1 alone.
pub(super) fn set_version(call: &mut Call<'_>, argument: GuestPtr<GnttabSetVersion>) -> HypercallResult {
    let asked = call.guest().read(argument)?;
    call.guest().write(argument, &GnttabSetVersion { version: VERSION })?;
    match asked.version {
        VERSION => done(0),
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

/// GNTTABOP_get_version.
pub(super) fn get_version(call: &mut Call<'_>, argument: GuestPtr<GnttabGetVersion>) -> HypercallResult {
    let asked = call.guest().read(argument)?;
    match asked.dom {
        DOMID_SELF | DOMID => {}
        0 => return Err(Errno::EPERM),
        _ => return Err(Errno::ESRCH),
    }
    call.guest().write(argument, &GnttabGetVersion { version: VERSION, ..asked })?;
    done(0)
}

/// GNTTABOP_get_status_frames: version 1 has none.
pub(super) fn status_frames(_: &mut Call<'_>, op: &mut GnttabGetStatusFrames) -> Result<(), Halt> {
    plausible_list(op.frame_list, op.nr_frames)?;
    own_table(op.dom)?;
    if op.nr_frames == 0 { Ok(()) } else { Err(Halt::Status(GNTST_GENERAL_ERROR)) }
}

/// GNTTABOP_swap_grant_ref.
pub(super) fn swap(call: &mut Call<'_>, op: &mut GnttabSwapGrantRef) -> Result<(), Halt> {
    Ok(call.domain.grants.swap(&call.domain.memory, op.ref_a, op.ref_b)?)
}

/// GNTTABOP_cache_flush. No device bypasses the caches, so writing them back is nothing to do; to forget what
/// they hold is not possible on x86.
pub(super) fn cache_flush(call: &mut Call<'_>, op: &GnttabCacheFlush) -> Result<(), Errno> {
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
    if !call.domain.memory.is_frame(mfn) {
        return Err(Errno::EINVAL);
    }
    if !call.domain.mmu.is_domains(mfn) {
        return Err(Errno::EPERM);
    }
    if op.op & GNTTAB_CACHE_CLEAN == 0 { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}
