//! Page tables: mmu_update, update_va_mapping, mmuext_op (public/xen.h).
//!
//! The lists of requests are walked here, preemptibly; what one request means is `mmu::direct`'s business.

use paravane_abi::domid::{DOMID_IO, DOMID_SELF, DOMID_XEN, DomId};
use paravane_abi::errno::Errno;
use paravane_abi::mmu::{FOREIGNDOM_FD_MASK, FOREIGNDOM_PFD_SHIFT, MmuUpdate, MmuextOp};
use zerocopy::{FromBytes, IntoBytes};

use super::{Call, HypercallResult, Outcome, done};
use crate::ledger::BatchKind;
use crate::mmu::direct::Stop;
use crate::pv::domain::DOMID;
use crate::pv::guest_pointer::GuestSlice;
use crate::pv::vcpu::Refusal;

/// Requests copied from the guest at a time.
const CHUNK: usize = 64;
/// Set in a count that continues an interrupted call, whose progress counter continues (public/xen.h).
const PREEMPTED: u32 = 1 << 31;

/// Whose tables and frames are meant: the caller's, which it may name by number for its tables alone. EPERM for
/// what it must not touch, ESRCH for what does not exist.
fn own(word: u32) -> Result<(), Errno> {
    // Given plus one; 0 is the caller.
    if let Some(table_owner) = (word >> FOREIGNDOM_PFD_SHIFT).checked_sub(1) {
        match DomId::try_from(table_owner) {
            Ok(DOMID) => {}
            Ok(0) => return Err(Errno::EPERM),
            _ => return Err(Errno::ESRCH),
        }
    }
    match DomId::try_from(word & FOREIGNDOM_FD_MASK) {
        Ok(DOMID_SELF) => Ok(()),
        Ok(0 | DOMID_IO | DOMID_XEN) => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

/// How a list of requests ended.
enum Walked {
    All,
    /// Preempted, with this many done in this entry.
    Some(u64),
}

/// Keeps what stood in the way, for the guest's end: the kernel is told a number, and its author the reason.
fn refused(call: &mut Call<'_>, errno: Errno) -> Errno {
    let exits = call.vcpu.ledger.exits();
    let obstacle = call.domain.mmu.take_obstacle();
    if let Some(obstacle) = &obstacle {
        tracing::debug!("a change of page tables is refused with {errno}: {obstacle}");
    }
    call.vcpu.last_refusal = obstacle.map(|obstacle| Refusal { errno, obstacle, exits });
    errno
}

/// Calls `one` for each request of `list`; counts what was done in `completed`.
fn walk<T: FromBytes + IntoBytes + Copy>(
    call: &mut Call<'_>,
    list: GuestSlice<T>,
    completed: &mut u64,
    mut one: impl FnMut(&mut Call<'_>, &T) -> Result<(), Stop>,
) -> Result<Walked, Errno> {
    let mut chunk = [(); CHUNK].map(|()| T::new_zeroed());
    while *completed < list.count() {
        let n = usize::try_from(list.count() - *completed).map_or(CHUNK, |left| left.min(CHUNK));
        let requests = chunk.get_mut(..n).ok_or(Errno::EFAULT)?;
        call.guest().read_slice(list.at(*completed)?, requests)?;
        for request in chunk.iter().take(n) {
            if call.is_spent() {
                return Ok(Walked::Some(*completed));
            }
            call.spend(1);
            match one(call, request) {
                Ok(()) => *completed += 1,
                Err(Stop::Refused(errno)) => return Err(refused(call, errno)),
                Err(Stop::Restart) => return Ok(Walked::Some(*completed)),
            }
        }
    }
    Ok(Walked::All)
}

/// The frame of both calls: count with its continuation flag, progress counter, result.
fn list_call<T: FromBytes + IntoBytes + Copy>(
    call: &mut Call<'_>,
    kind: BatchKind,
    one: impl FnMut(&mut Call<'_>, &T) -> Result<(), Stop>,
) -> HypercallResult {
    let [list, count, pdone, foreigndom, ..] = call.args;
    let word = count.low32();
    let continued = word & PREEMPTED != 0;
    let list = GuestSlice::<T>::new(list.word(), u64::from(word & !PREEMPTED));
    let pdone = pdone.pointer::<u32>();
    own(foreigndom.low32())?;
    if !continued {
        call.vcpu.ledger.batch(kind, list.count());
    }
    let before = if continued && !pdone.is_null() { call.guest().read(pdone)? } else { 0 };
    let mut completed = 0;
    let walked = walk(call, list, &mut completed, one);
    if !pdone.is_null() {
        let total = u64::from(before).saturating_add(completed);
        call.guest().write(pdone, &u32::try_from(total).unwrap_or(u32::MAX))?;
    }
    match walked? {
        Walked::All => done(0),
        Walked::Some(n) => {
            let left = list.after(n);
            let count = left.count() | u64::from(PREEMPTED);
            let [list, pdone] = [left.first().address(), pdone.address()];
            Ok(Outcome::Again([list, count, pdone, foreigndom.word(), 0, 0]))
        }
    }
}

/// mmu_update(requests, count, pdone, foreigndom).
pub fn mmu_update(call: &mut Call<'_>) -> HypercallResult {
    list_call(call, BatchKind::MmuUpdate, |call, request: &MmuUpdate| {
        call.domain.mmu.mmu_update_one(&call.domain.memory, &mut call.domain.log, request.ptr, request.val)
    })
}

/// mmuext_op(operations, count, pdone, foreigndom).
pub fn mmuext_op(call: &mut Call<'_>) -> HypercallResult {
    list_call(call, BatchKind::MmuExt, |call, op: &MmuextOp| {
        call.domain.mmu.mmuext_one(
            &call.domain.memory,
            &mut call.domain.log,
            &mut call.vcpu.space,
            &mut call.vcpu.tables,
            op,
        )
    })
}

/// update_va_mapping(va, entry, flags).
pub fn update_va_mapping(call: &mut Call<'_>) -> HypercallResult {
    let args = call.raw();
    let [va, entry, flags, ..] = args;
    match call.domain.mmu.update_va_mapping(
        &call.domain.memory,
        &mut call.domain.log,
        &mut call.vcpu.space,
        va,
        entry,
        flags,
    ) {
        Ok(()) => done(0),
        Err(Stop::Refused(errno)) => Err(refused(call, errno)),
        Err(Stop::Restart) => Ok(Outcome::Again(args)),
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;

    use crate::pv::hypercall::mmu::*;
    use crate::testing::pv::{NOWHERE, TestDomain};

    #[test]
    fn domains_that_are_not_there_or_not_the_callers() {
        let mut t = TestDomain::new();
        let this = u64::from(DOMID_SELF);
        let owner = |table: u64| (table + 1) << FOREIGNDOM_PFD_SHIFT | this;
        let cases = [
            (this, Ok(0)),
            (u64::from(DOMID), Err(Errno::ESRCH)),
            (9, Err(Errno::ESRCH)),
            (0x7fff, Err(Errno::ESRCH)),
            (0, Err(Errno::EPERM)),
            (u64::from(DOMID_IO), Err(Errno::EPERM)),
            (u64::from(DOMID_XEN), Err(Errno::EPERM)),
            (owner(u64::from(DOMID)), Ok(0)),
            (owner(0), Err(Errno::EPERM)),
            (owner(9), Err(Errno::ESRCH)),
            (owner(this), Err(Errno::ESRCH)),
        ];
        for (domain, outcome) in cases {
            for call in [nr::MMU_UPDATE, nr::MMUEXT_OP] {
                assert_eq!(t.call(call, [NOWHERE, 0, 0, domain]), outcome, "{domain:#x}");
            }
        }
    }
}
