//! grant_table_op: the domain's grants, and its mappings of what it granted to itself (public/grant_table.h).
//!
//! Each operation is a list, walked here, preemptibly; every element has a status of its own, and an error
//! number means that the list itself could not be read or written. No other domain runs here:
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

use super::{Call, HypercallResult, Outcome, done, low32};
use crate::mmu::direct::Stop;
use crate::pv::domain::DOMID;
use crate::pv::grants::Unusable;
use crate::pv::guest_pointer::GuestSlice;

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
pub fn grant_table_op(call: &mut Call<'_>) -> HypercallResult {
    let [operation, array, count, ..] = call.args;
    let (op, count) = (operation.low32(), count.low32());
    if count > i32::MAX.cast_unsigned() {
        return Err(Errno::EINVAL);
    }
    open(call)?;
    let list = List { op, array: array.word(), count: count.into() };
    match op {
        GNTTABOP_MAP_GRANT_REF => list.each(call, map::map),
        GNTTABOP_UNMAP_GRANT_REF => list.each(call, map::unmap),
        GNTTABOP_UNMAP_AND_REPLACE => list.each(call, map::unmap_and_replace),
        GNTTABOP_SETUP_TABLE => list.only(call, table::setup),
        GNTTABOP_TRANSFER => list.each(call, transfer::transfer),
        GNTTABOP_COPY => list.each(call, copy::copy),
        GNTTABOP_QUERY_SIZE => list.only(call, table::query_size),
        GNTTABOP_SET_VERSION => table::set_version(call, array.pointer()),
        GNTTABOP_GET_STATUS_FRAMES => list.only(call, table::status_frames),
        GNTTABOP_GET_VERSION => table::get_version(call, array.pointer()),
        GNTTABOP_SWAP_GRANT_REF => list.each(call, table::swap),
        GNTTABOP_CACHE_FLUSH => list.each_without_status(call, table::cache_flush),
        // GNTTABOP_dump_table, too, is unknown to Xen.
        _ => Err(Errno::ENOSYS),
    }
}

/// Makes the table what a domain builder leaves: the console's page granted to domain 0.
fn open(call: &mut Call<'_>) -> Result<(), Errno> {
    let reserved = [(GNTTAB_RESERVED_CONSOLE, call.domain.console.ring.mfn())];
    call.domain
        .grants
        .open(&call.domain.memory, &mut call.domain.mmu, reserved.into_iter())
        .map_err(|_| Errno::ENOMEM)
}

/// The list of a call, as far as it is not done.
struct List {
    op: u32,
    array: u64,
    count: u64,
}

impl List {
    /// Does `one` for each element, with the status that it gets.
    fn each<T: Element>(
        &self,
        call: &mut Call<'_>,
        mut one: impl FnMut(&mut Call<'_>, &mut T) -> Result<(), Halt>,
    ) -> HypercallResult {
        self.walk(call, |call, element: &mut T| {
            let status = match one(call, element) {
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
        call: &mut Call<'_>,
        one: impl FnMut(&mut Call<'_>, &mut T) -> Result<(), Halt>,
    ) -> HypercallResult {
        if self.count == 1 { self.each(call, one) } else { Err(Errno::EINVAL) }
    }

    /// The same for elements without a status: an error ends the call.
    fn each_without_status<T: FromBytes + IntoBytes + Immutable>(
        &self,
        call: &mut Call<'_>,
        one: impl Fn(&mut Call<'_>, &T) -> Result<(), Errno>,
    ) -> HypercallResult {
        self.walk(call, |call, element: &mut T| Ok(one(call, element)?))
    }

    fn walk<T: FromBytes + IntoBytes + Immutable>(
        &self,
        call: &mut Call<'_>,
        mut one: impl FnMut(&mut Call<'_>, &mut T) -> Result<(), Halt>,
    ) -> HypercallResult {
        let elements = GuestSlice::<T>::new(self.array, self.count);
        for n in 0..self.count {
            let at = elements.at(n)?;
            let again = Ok(Outcome::Again([self.op.into(), at.address(), self.count - n, 0, 0, 0]));
            if call.is_spent() {
                return again;
            }
            call.spend(ELEMENT);
            let mut element = call.guest().read(at)?;
            // A handle that the guest cannot be told would be lost to it.
            call.guest().check_writable(at)?;
            match one(call, &mut element) {
                Ok(()) => call.guest().write(at, &element)?,
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
