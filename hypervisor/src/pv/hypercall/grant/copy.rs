//! Copying between frames, each named by its number or by a grant.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::grant::*;

use super::{Halt, own_table};
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::mmu::direct::Granted;
use crate::pv::grants::Use;
use crate::pv::hypercall::Call;

/// One side of a copy, held until it is put.
struct Side {
    granted: Granted,
    grant: Option<(GrantRef, Use)>,
}

/// GNTTABOP_copy.
pub(super) fn copy(call: &mut Call<'_>, op: &mut GnttabCopy) -> Result<(), Halt> {
    let source_grant = op.flags & GNTCOPY_SOURCE_GREF != 0;
    let dest_grant = op.flags & GNTCOPY_DEST_GREF != 0;
    check_domain(&op.source, source_grant)?;
    check_domain(&op.dest, dest_grant)?;
    let source = Side::get(call, &op.source, source_grant, false)?;
    let result = Side::get(call, &op.dest, dest_grant, true).and_then(|dest| {
        let result = move_bytes(call, op, &source, &dest);
        dest.put(call).and(result)
    });
    source.put(call).and(result)
}

/// Only its own frames can be named by number, and only as DOMID_SELF's.
fn check_domain(ptr: &GnttabCopyPtr, grant: bool) -> Result<(), Halt> {
    match own_table(ptr.domid) {
        _ if ptr.domid != DOMID_SELF && !grant => Err(Halt::Status(GNTST_PERMISSION_DENIED)),
        // Domain 0 may be copied from and to, where it grants that.
        Err(Halt::Status(GNTST_PERMISSION_DENIED)) => Err(Halt::Status(GNTST_GENERAL_ERROR)),
        result => result,
    }
}

impl Side {
    fn get(call: &mut Call<'_>, ptr: &GnttabCopyPtr, grant: bool, writable: bool) -> Result<Self, Halt> {
        let how = Use { host: true, device: false, readonly: !writable };
        let (frame, grant) = if grant {
            // The number is the union's first half.
            let r = super::low32(ptr.u);
            (
                call.domain.grants.acquire(&call.domain.memory, &call.domain.mmu, r, how, false)?,
                Some((r, how)),
            )
        } else if call.domain.mmu.is_domains(Mfn(ptr.u)) {
            (Mfn(ptr.u), None)
        } else {
            return Err(Halt::Status(GNTST_BAD_PAGE));
        };
        let granted = Granted { frame, writable };
        if let Err(stop) = call.domain.mmu.hold_granted(&call.domain.memory, &mut call.domain.log, granted) {
            if let Some((r, how)) = grant {
                call.domain.grants.release(&call.domain.memory, r, how)?;
            }
            return Err(stop.into());
        }
        Ok(Self { granted, grant })
    }

    fn put(self, call: &mut Call<'_>) -> Result<(), Halt> {
        call.domain.mmu.release_granted(&call.domain.memory, &mut call.domain.log, self.granted);
        self.grant.map_or(Ok(()), |(r, how)| Ok(call.domain.grants.release(&call.domain.memory, r, how)?))
    }
}

fn move_bytes(call: &Call<'_>, op: &GnttabCopy, source: &Side, dest: &Side) -> Result<(), Halt> {
    let place = |side: &Side, offset: u16| {
        let inside = u64::from(offset) + u64::from(op.len) <= PAGE_SIZE;
        let at = Maddr(side.granted.frame.maddr().0 + u64::from(offset));
        if inside { Ok(at) } else { Err(Halt::Status(GNTST_BAD_COPY_ARG)) }
    };
    let (from, to) = (place(source, op.source.offset)?, place(dest, op.dest.offset)?);
    let mut page = [0u8; PAGE_SIZE as usize];
    let Some(bytes) = page.get_mut(..usize::from(op.len)) else {
        return Err(Halt::Status(GNTST_BAD_COPY_ARG));
    };
    let moved = call.domain.memory.read(from, bytes).and_then(|()| call.domain.memory.write(to, bytes));
    moved.map_err(|_| Halt::Status(GNTST_GENERAL_ERROR))
}
