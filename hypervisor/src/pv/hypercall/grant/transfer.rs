//! Giving a frame away by an entry that accepts it: here, to oneself.

use paravane_abi::addr::INVALID_M2P_ENTRY;
use paravane_abi::grant::*;

use super::{Halt, own_grant};
use crate::machine::memory::Mfn;
use crate::mmu::direct::Stop;
use crate::pv::hypercall::Call;

/// GNTTABOP_transfer. As on Xen a frame that its receiver does not accept is not given back: it is free.
pub(super) fn transfer(call: &mut Call<'_>, op: &mut GnttabTransfer) -> Result<(), Halt> {
    let mfn = Mfn(op.mfn);
    let Ok(number) = u32::try_from(mfn.0) else { return Err(Halt::Status(GNTST_BAD_PAGE)) };
    match call.domain.mmu.take_from_guest(&call.domain.memory, &mut call.domain.log, mfn) {
        Ok(()) => {}
        Err(Stop::Restart) => return Err(Halt::Later),
        Err(Stop::Refused(_)) => return Err(Halt::Status(GNTST_BAD_PAGE)),
    }
    let accepted = own_grant(op.domid)
        .and_then(|()| Ok(call.domain.grants.commit_transfer(&call.domain.memory, op.r#ref)?));
    if let Err(halt) = accepted {
        call.domain.free_frames.insert(mfn);
        // No entry that accepts: Xen does not say what about it is wrong.
        let bad_domain = halt == Halt::Status(GNTST_BAD_DOMAIN);
        return Err(if bad_domain { halt } else { Halt::Status(GNTST_GENERAL_ERROR) });
    }
    let given = call.domain.mmu.give_to_guest(&call.domain.memory, mfn, INVALID_M2P_ENTRY);
    debug_assert_eq!(given, Ok(()));
    Ok(call.domain.grants.complete_transfer(&call.domain.memory, op.r#ref, number)?)
}
