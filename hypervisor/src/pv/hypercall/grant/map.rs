//! Mapping what was granted, and taking it back.

use paravane_abi::grant::*;
use paravane_abi::pte;

use super::{Halt, own_grant};
use crate::machine::memory::Mfn;
use crate::mmu::direct::{Granted, Place};
use crate::pv::grants::{Mapping, Use};
use crate::pv::hypercall::Call;

/// First of the bits of `GNTMAP_GUEST_AVAIL_MASK`, and of those of an entry that they become.
const AVAIL_FROM: u32 = GNTMAP_GUEST_AVAIL_MASK.trailing_zeros();
const AVAIL_TO: u32 = pte::AVAIL0.trailing_zeros();

/// GNTTABOP_map_grant_ref.
pub(super) fn map(call: &mut Call<'_>, op: &mut GnttabMapGrantRef) -> Result<(), Halt> {
    let asked = |flag| op.flags & flag != 0;
    let how = Use {
        host: asked(GNTMAP_HOST_MAP),
        device: asked(GNTMAP_DEVICE_MAP),
        readonly: asked(GNTMAP_READONLY),
    };
    if !how.host && !how.device {
        return Err(Halt::Status(GNTST_BAD_GNTREF));
    }
    own_grant(op.dom)?;
    if !call.domain.grants.has_room() {
        return Err(Halt::Status(GNTST_NO_SPACE));
    }
    let mapping = Mapping { entry: op.r#ref, how, by_entry: asked(GNTMAP_CONTAINS_PTE) };
    let frame =
        call.domain.grants.acquire(&call.domain.memory, &call.domain.mmu, mapping.entry, how, true)?;
    let granted = Granted { frame, writable: !how.readonly };
    if let Err(halt) = take(call, mapping, granted, op) {
        call.domain.grants.release(&call.domain.memory, mapping.entry, how)?;
        return Err(halt);
    }
    op.handle = call.domain.grants.insert(mapping).ok_or(Halt::Status(GNTST_NO_SPACE))?;
    op.dev_bus_addr = frame.maddr().0;
    Ok(())
}

/// Takes the references that a mapping needs; all or none.
fn take(call: &mut Call<'_>, mapping: Mapping, granted: Granted, op: &GnttabMapGrantRef) -> Result<(), Halt> {
    if mapping.how.device {
        call.domain.mmu.hold_granted(&call.domain.memory, &mut call.domain.log, granted)?;
    }
    if !mapping.how.host {
        return Ok(());
    }
    let place = place(mapping, op.host_addr);
    let mapped = call.domain.mmu.map_granted(
        &call.domain.memory,
        &mut call.domain.log,
        call.vcpu.space.root(),
        place,
        granted,
        entry_flags(op.flags),
    );
    if mapped.is_err() && mapping.how.device {
        call.domain.mmu.release_granted(&call.domain.memory, &mut call.domain.log, granted);
    }
    Ok(mapped?)
}

/// The bits of a page-table entry beside its frame, and the right to write.
fn entry_flags(flags: u32) -> u64 {
    let avail = (u64::from(flags >> AVAIL_FROM) << AVAIL_TO) & (pte::AVAIL0 | pte::AVAIL1 | pte::AVAIL2);
    let user = if flags & GNTMAP_APPLICATION_MAP != 0 { pte::USER } else { 0 };
    pte::ACCESSED | pte::DIRTY | user | avail
}

fn place(mapping: Mapping, address: u64) -> Place {
    if mapping.by_entry { Place::Entry(address) } else { Place::Linear(address) }
}

/// GNTTABOP_unmap_grant_ref.
pub(super) fn unmap(call: &mut Call<'_>, op: &mut GnttabUnmapGrantRef) -> Result<(), Halt> {
    undo(call, op.handle, op.host_addr, op.dev_bus_addr, None)
}

/// GNTTABOP_unmap_and_replace.
pub(super) fn unmap_and_replace(call: &mut Call<'_>, op: &mut GnttabUnmapAndReplace) -> Result<(), Halt> {
    let replacement = Some(op.new_addr).filter(|va| *va != 0);
    undo(call, op.handle, op.host_addr, 0, replacement)
}

/// Ends those uses of a mapping whose addresses are given, that is, not 0.
fn undo(
    call: &mut Call<'_>,
    handle: GrantHandle,
    host: u64,
    device: u64,
    replacement: Option<u64>,
) -> Result<(), Halt> {
    let mapping = call.domain.grants.mapping(handle).ok_or(Halt::Status(GNTST_BAD_HANDLE))?;
    let Mfn(frame) = call.domain.grants.used_frame(mapping.entry).ok_or(Halt::Status(GNTST_BAD_HANDLE))?;
    let granted = Granted { frame: Mfn(frame), writable: !mapping.how.readonly };
    let over =
        Use { host: host != 0 && mapping.how.host, device: device != 0 && mapping.how.device, ..mapping.how };
    if over.device && device != granted.frame.maddr().0 {
        return Err(Halt::Status(GNTST_BAD_DEV_ADDR));
    }
    if over.host {
        let place = place(mapping, host);
        if mapping.by_entry && replacement.is_some() {
            return Err(Halt::Status(GNTST_GENERAL_ERROR));
        }
        call.domain.mmu.unmap_granted(
            &call.domain.memory,
            &mut call.domain.log,
            call.vcpu.space.root(),
            place,
            granted,
            replacement,
        )?;
    }
    if over.device {
        call.domain.mmu.release_granted(&call.domain.memory, &mut call.domain.log, granted);
    }
    let left = Use {
        host: mapping.how.host && !over.host,
        device: mapping.how.device && !over.device,
        ..mapping.how
    };
    call.domain.grants.update(handle, left);
    Ok(call.domain.grants.release(&call.domain.memory, mapping.entry, over)?)
}
