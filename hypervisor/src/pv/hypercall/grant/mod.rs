//! grant_table_op: the domain's grants, and its mappings of what it granted to itself (public/grant_table.h).
//!
//! Each operation is a list, walked here, preemptibly; every element has a status of its own, and an error
//! number means that the list itself could not be read or written. There is no other domain that runs here:
//! domain 0 exists and grants nothing, all others do not exist. Version 1 alone is offered.

mod copy;
mod map;
mod table;
#[cfg(test)]
mod tests;
mod transfer;

use paravane_abi::addr;
use paravane_abi::domid::{DOMID_SELF, DomId};
use paravane_abi::errno::Errno;
use paravane_abi::grant::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{HypercallResult, Outcome, done, is_spent, low32, spend};
use crate::mmu::direct::Stop;
use crate::pv::domain::{DOMID, PvDomain};
use crate::pv::grants::Unusable;

/// What an element costs in elementary operations: it may copy a page or flush translations.
const ELEMENT: u64 = 16;

/// Why an element is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    /// It is answered with this status.
    Status(i16),
    /// The call ends with this error.
    Error(Errno),
    /// Nothing was done: it is to be issued again.
    Later,
}

impl From<Unusable> for Halt {
    fn from(Unusable(status): Unusable) -> Self {
        Self::Status(status)
    }
}

impl From<Errno> for Halt {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}

impl From<Stop> for Halt {
    /// What page tables and frames refuse has no status of its own.
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Restart => Self::Later,
            Stop::Refused(_) => Self::Status(GNTST_GENERAL_ERROR),
        }
    }
}

/// An element with a status.
trait Element: FromBytes + IntoBytes + Immutable {
    fn set_status(&mut self, status: i16);
}

macro_rules! elements {
    ($($element:ty),+ $(,)?) => {
        $(impl Element for $element {
            fn set_status(&mut self, status: i16) {
                self.status = status;
            }
        })+
    };
}

elements!(
    GnttabMapGrantRef,
    GnttabUnmapGrantRef,
    GnttabUnmapAndReplace,
    GnttabSetupTable,
    GnttabTransfer,
    GnttabCopy,
    GnttabQuerySize,
    GnttabGetStatusFrames,
    GnttabSwapGrantRef,
);

/// grant_table_op(operation, array, count).
pub fn grant_table_op(d: &mut PvDomain, [operation, array, count, ..]: [u64; 6]) -> HypercallResult {
    let (op, count) = (low32(operation), low32(count));
    if count > i32::MAX.cast_unsigned() {
        return Err(Errno::EINVAL);
    }
    open(d)?;
    let call = Call { op, array, count: count.into() };
    match op {
        GNTTABOP_MAP_GRANT_REF => call.each(d, map::map),
        GNTTABOP_UNMAP_GRANT_REF => call.each(d, map::unmap),
        GNTTABOP_UNMAP_AND_REPLACE => call.each(d, map::unmap_and_replace),
        GNTTABOP_SETUP_TABLE => call.only(d, table::setup),
        GNTTABOP_TRANSFER => call.each(d, transfer::transfer),
        GNTTABOP_COPY => call.each(d, copy::copy),
        GNTTABOP_QUERY_SIZE => call.only(d, table::query_size),
        GNTTABOP_SET_VERSION => table::set_version(d, array),
        GNTTABOP_GET_STATUS_FRAMES => call.only(d, table::status_frames),
        GNTTABOP_GET_VERSION => table::get_version(d, array),
        GNTTABOP_SWAP_GRANT_REF => call.each(d, table::swap),
        GNTTABOP_CACHE_FLUSH => call.each_without_status(d, table::cache_flush),
        // GNTTABOP_dump_table, too, is unknown to Xen.
        _ => Err(Errno::ENOSYS),
    }
}

/// Makes the table what a domain builder leaves: the console's page granted to domain 0.
fn open(d: &mut PvDomain) -> Result<(), Errno> {
    let reserved = [(GNTTAB_RESERVED_CONSOLE, d.console.ring.mfn())];
    d.grants.open(&d.memory, &mut d.mmu, reserved.into_iter()).map_err(|_| Errno::ENOMEM)
}

/// A call, as far as it is not done.
struct Call {
    op: u32,
    array: u64,
    count: u64,
}

impl Call {
    /// Does `one` for each element, with the status that it gets.
    fn each<T: Element>(
        &self,
        d: &mut PvDomain,
        mut one: impl FnMut(&mut PvDomain, &mut T) -> Result<(), Halt>,
    ) -> HypercallResult {
        self.walk(d, |d, element: &mut T| {
            let status = match one(d, element) {
                Ok(()) => GNTST_OKAY,
                Err(Halt::Status(status)) => status,
                Err(halt) => return Err(halt),
            };
            element.set_status(status);
            Ok(())
        })
    }

    /// The same for an operation whose list must have one element.
    fn only<T: Element>(
        &self,
        d: &mut PvDomain,
        one: impl FnMut(&mut PvDomain, &mut T) -> Result<(), Halt>,
    ) -> HypercallResult {
        if self.count == 1 { self.each(d, one) } else { Err(Errno::EINVAL) }
    }

    /// The same for elements without a status: an error ends the call.
    fn each_without_status<T: FromBytes + IntoBytes + Immutable>(
        &self,
        d: &mut PvDomain,
        one: impl Fn(&mut PvDomain, &T) -> Result<(), Errno>,
    ) -> HypercallResult {
        self.walk(d, |d, element: &mut T| Ok(one(d, element)?))
    }

    fn walk<T: FromBytes + IntoBytes + Immutable>(
        &self,
        d: &mut PvDomain,
        mut one: impl FnMut(&mut PvDomain, &mut T) -> Result<(), Halt>,
    ) -> HypercallResult {
        for n in 0..self.count {
            let offset = n.checked_mul(size_of::<T>() as u64).ok_or(Errno::EFAULT)?;
            let at = self.array.checked_add(offset).ok_or(Errno::EFAULT)?;
            let again = Ok(Outcome::Again([self.op.into(), at, self.count - n, 0, 0, 0]));
            if is_spent(d) {
                return again;
            }
            spend(d, ELEMENT);
            let mut element: T = d.read_guest_obj(at)?;
            // A handle that the guest cannot be told would be lost to it.
            d.check_writable(at, size_of::<T>())?;
            match one(d, &mut element) {
                Ok(()) => d.write_guest_obj(at, &element)?,
                Err(Halt::Error(errno)) => return Err(errno),
                Err(Halt::Later) => return again,
                // Only `each` meets statuses, and it stores them.
                Err(Halt::Status(_)) => return Err(Errno::EINVAL),
            }
        }
        done(0)
    }
}

/// The domain of an operation on a table: the caller, however it names itself.
fn own_table(dom: DomId) -> Result<(), Halt> {
    match dom {
        DOMID_SELF | DOMID => Ok(()),
        0 => Err(Halt::Status(GNTST_PERMISSION_DENIED)),
        _ => Err(Halt::Status(GNTST_BAD_DOMAIN)),
    }
}

/// The granting domain of a mapping or a transfer, which DOMID_SELF does not name.
fn own_grant(dom: DomId) -> Result<(), Halt> {
    match dom {
        DOMID => Ok(()),
        0 => Err(Halt::Status(GNTST_GENERAL_ERROR)),
        _ => Err(Halt::Status(GNTST_BAD_DOMAIN)),
    }
}

/// Whether a list of `count` frame numbers at `va` could be the guest's at all: the rest is seen when it is written.
fn plausible_list(va: u64, count: u32) -> Result<(), Errno> {
    let end = u64::from(count).checked_mul(8).and_then(|bytes| va.checked_add(bytes)).ok_or(Errno::EFAULT)?;
    if addr::is_hypervisor(va) || addr::is_hypervisor(end) { Err(Errno::EFAULT) } else { Ok(()) }
}
