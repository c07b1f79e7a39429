//! XENMEM_exchange: frames for other frames, contiguous ones perhaps.
//!
//! Work goes in chunks of the larger of the two extent sizes: what comes in is given back first, so that it
//! may be a part of what goes out, and a chunk that cannot be made leaves everything as it was.

use std::mem::offset_of;

use paravane_abi::errno::Errno;
use paravane_abi::memory::{XENMEM_EXCHANGE, XenMemoryExchange, XenMemoryReservation};

use super::own;
use super::reservation::{MAX_CHUNK, frame_limit, number_at, page_of, take_back};
use crate::machine::memory::Mfn;
use crate::mmu::direct::Stop;
use crate::pv::free_frames::MAX_ORDER;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::hypercall::{Call, HypercallResult, Outcome, done};

/// Performs an exchange as far as one entry may go.
pub fn exchange(call: &mut Call<'_>, argument: GuestPtr<XenMemoryExchange>) -> HypercallResult {
    let mut x = Exchange::check(call.guest().read(argument)?)?;
    // Before anything is exchanged: an interrupted call continues from what is stored there.
    let progress = argument.part::<u64>(offset_of!(XenMemoryExchange, nr_exchanged))?;
    call.guest().check_writable(progress)?;
    let in_per_chunk = 1u64 << (x.chunk_order - x.arg.in_.extent_order);
    let mut result = Ok(());
    while result.is_ok() && x.arg.nr_exchanged < x.arg.in_.nr_extents {
        result = if call.is_spent() {
            Err(Stop::Restart)
        } else {
            call.spend(1 << x.chunk_order);
            x.chunk(call)
        };
        if result.is_ok() {
            x.arg.nr_exchanged += in_per_chunk;
        }
    }
    // Nothing else of the argument: it may overlap the list of what went out.
    call.guest().write(progress, &x.arg.nr_exchanged)?;
    match result {
        Ok(()) => done(0),
        Err(Stop::Refused(errno)) => Err(errno),
        Err(Stop::Restart) => Ok(Outcome::Again([XENMEM_EXCHANGE.into(), argument.address(), 0, 0, 0, 0])),
    }
}

/// An exchange whose two sides fit each other.
struct Exchange {
    arg: XenMemoryExchange,
    /// Log2 of the frames in a chunk.
    chunk_order: u32,
    limit: Mfn,
}

impl Exchange {
    fn check(arg: XenMemoryExchange) -> Result<Self, Errno> {
        let (from, to) = (&arg.in_, &arg.out);
        let chunk_order = from.extent_order.max(to.extent_order);
        if chunk_order > MAX_ORDER {
            return Err(Errno::EPERM);
        }
        let frames = |r: &XenMemoryReservation| r.nr_extents.checked_mul(1 << r.extent_order);
        let total = frames(from).filter(|total| Some(*total) == frames(to)).ok_or(Errno::EINVAL)?;
        // An interrupted call is interrupted between chunks.
        let in_per_chunk = 1u64 << (chunk_order - from.extent_order);
        let between = arg.nr_exchanged <= from.nr_extents && arg.nr_exchanged.is_multiple_of(in_per_chunk);
        if !total.is_multiple_of(1 << chunk_order) || !between || from.domid != to.domid {
            return Err(Errno::EINVAL);
        }
        own(from.domid)?;
        let limit = frame_limit(to.mem_flags).ok_or(Errno::EINVAL)?;
        Ok(Self { arg, chunk_order, limit })
    }

    /// Exchanges one chunk, or nothing.
    fn chunk(&self, call: &mut Call<'_>) -> Result<(), Stop> {
        let (from, to) = (&self.arg.in_, &self.arg.out);
        // No overflow: `check` has multiplied the whole.
        let first_frame = self.arg.nr_exchanged << from.extent_order;
        let incoming =
            List { r: from, first: first_frame >> from.extent_order, chunk_order: self.chunk_order };
        let outgoing = List { r: to, first: first_frame >> to.extent_order, chunk_order: self.chunk_order };
        outgoing.check_writable(call)?;
        let mut taken = Taken { frames: [(0, 0); MAX_CHUNK], count: 0 };
        let mut runs = [0u64; MAX_CHUNK];
        let moved =
            incoming.take(call, &mut taken).and_then(|()| outgoing.allocate(call, self.limit, &mut runs));
        if let Err(stop) = moved {
            taken.put_back(call);
            return Err(stop);
        }
        outgoing.hand_out(call, &runs)
    }
}

/// The numbers of one side that belong to a chunk.
struct List<'a> {
    r: &'a XenMemoryReservation,
    first: u64,
    chunk_order: u32,
}

impl List<'_> {
    fn len(&self) -> u64 {
        1 << (self.chunk_order - self.r.extent_order)
    }
    fn at(&self, n: u64) -> Result<GuestPtr<u64>, Errno> {
        number_at(self.r, self.first + n)
    }

    fn check_writable(&self, call: &Call<'_>) -> Result<(), Errno> {
        (0..self.len()).try_for_each(|n| {
            let at = self.at(n)?;
            call.guest().check_writable(at)?;
            call.guest().read(at).map(drop)
        })
    }

    fn take(&self, call: &mut Call<'_>, taken: &mut Taken) -> Result<(), Stop> {
        for n in 0..self.len() {
            let first = call.guest().read(self.at(n)?)?;
            taken.take(call, first, 1 << self.r.extent_order)?;
        }
        Ok(())
    }

    /// Finds a run for each extent; all or none.
    fn allocate(&self, call: &mut Call<'_>, limit: Mfn, runs: &mut [u64; MAX_CHUNK]) -> Result<(), Stop> {
        for n in 0..usize::try_from(self.len()).unwrap_or(0) {
            let (found, rest) = runs.split_at_mut(n);
            match call.domain.free_frames.take(self.r.extent_order, limit).zip(rest.first_mut()) {
                Some((Mfn(first), slot)) => *slot = first,
                None => {
                    for &first in found.iter() {
                        (first..first + (1 << self.r.extent_order))
                            .for_each(|m| call.domain.free_frames.insert(Mfn(m)));
                    }
                    return Err(Errno::ENOMEM.into());
                }
            }
        }
        Ok(())
    }

    /// Makes the runs the guest's pages, and says which they are.
    fn hand_out(&self, call: &mut Call<'_>, runs: &[u64; MAX_CHUNK]) -> Result<(), Stop> {
        for (n, &first) in (0..self.len()).zip(runs) {
            let at = self.at(n)?;
            let page = call.guest().read(at)?;
            for i in 0..1u64 << self.r.extent_order {
                call.domain.mmu.give_to_guest(&call.domain.memory, Mfn(first + i), page.wrapping_add(i))?;
            }
            call.guest().write(at, &first)?;
        }
        Ok(())
    }
}

/// The frames that came in, each with the page that it was.
struct Taken {
    frames: [(u64, u64); MAX_CHUNK],
    count: usize,
}

impl Taken {
    /// Takes one extent. What cannot be taken is EINVAL here, whatever it is.
    fn take(&mut self, call: &mut Call<'_>, first: u64, count: u64) -> Result<(), Stop> {
        let end = first.checked_add(count).ok_or(Errno::EINVAL)?;
        let slots = self.frames.iter_mut().skip(self.count);
        for (slot, mfn) in slots.zip(first..end) {
            *slot = (mfn, page_of(call, mfn)?);
        }
        match take_back(call, first, count) {
            Ok(()) => self.count += usize::try_from(count).unwrap_or(0),
            Err(Stop::Restart) => return Err(Stop::Restart),
            Err(Stop::Refused(_)) => return Err(Errno::EINVAL.into()),
        }
        Ok(())
    }

    fn put_back(&self, call: &mut Call<'_>) {
        for &(mfn, page) in self.frames.iter().take(self.count) {
            if call.domain.free_frames.remove(Mfn(mfn)) {
                let given = call.domain.mmu.give_to_guest(&call.domain.memory, Mfn(mfn), page);
                debug_assert_eq!(given, Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::domid::DOMID_SELF;
    use paravane_abi::hypercall as nr;
    use paravane_abi::memory::XENMEM_DECREASE_RESERVATION;

    use crate::pv::hypercall::memory::exchange::*;
    use crate::testing::pv::{FREE, L1, NOWHERE, RO, TestDomain, va};

    const IN: u64 = FREE;
    const OUT: u64 = FREE + 1;

    fn side(pfn: u64, nr_extents: u64, extent_order: u32) -> XenMemoryReservation {
        let extent_start = va(pfn);
        XenMemoryReservation {
            extent_start,
            nr_extents,
            extent_order,
            domid: DOMID_SELF,
            ..Default::default()
        }
    }

    fn order(in_: XenMemoryReservation, out: XenMemoryReservation) -> XenMemoryExchange {
        XenMemoryExchange { in_, out, nr_exchanged: 0 }
    }

    fn exchange(t: &mut TestDomain, x: XenMemoryExchange) -> Result<u64, Errno> {
        t.op(nr::MEMORY_OP, XENMEM_EXCHANGE, x).map(|(_, after)| after.nr_exchanged)
    }

    /// Sixteen unmapped pages, listed as what comes in.
    fn sixteen(t: &mut TestDomain) -> Vec<u64> {
        let frames: Vec<u64> = (16..32).map(|pfn| t.mfn(pfn)).collect();
        for (n, mfn) in (0..).zip(&frames) {
            t.unmap(16 + n);
            t.poke(IN, n, *mfn);
        }
        frames
    }

    #[test]
    fn single_frames_become_a_run_and_singles_again() {
        let mut t = TestDomain::new();
        let mut frames: Vec<u64> = (32..80).map(|pfn| t.mfn(pfn)).collect();
        for (n, mfn) in (0..).zip(&frames) {
            t.unmap(32 + n);
            t.poke(IN, n, *mfn);
        }
        // A pool in which there is surely a run of 16.
        let give = side(IN, 48, 0);
        assert_eq!(t.op(nr::MEMORY_OP, XENMEM_DECREASE_RESERVATION, give).map(|r| r.0), Ok(48));
        frames.extend(sixteen(&mut t));
        t.poke(OUT, 0, 700);
        assert_eq!(exchange(&mut t, order(side(IN, 16, 0), side(OUT, 1, 4))), Ok(16));
        let first = t.peek(OUT, 0);
        assert!(first.is_multiple_of(16) && frames.contains(&first));
        assert_eq!((t.m2p(first), t.m2p(first + 15), t.free_frames.len()), (700, 715, 48));

        t.poke(IN, 0, first);
        for n in 0..16 {
            t.poke(OUT, n, 900 + n);
        }
        assert_eq!(exchange(&mut t, order(side(IN, 1, 4), side(OUT, 16, 0))), Ok(1));
        assert!((0..16).all(|n| t.m2p(t.peek(OUT, n)) == 900 + n));
        assert_eq!(t.free_frames.len(), 48);
    }

    #[test]
    fn a_chunk_that_cannot_be_made_changes_nothing() {
        let mut t = TestDomain::new();
        let frames = sixteen(&mut t);
        let pages: Vec<u64> = frames.iter().map(|mfn| t.m2p(*mfn)).collect();
        let fails = |t: &mut TestDomain, x, errno| {
            assert_eq!(exchange(t, x), Err(errno));
            assert_eq!(frames.iter().map(|mfn| t.m2p(*mfn)).collect::<Vec<_>>(), pages);
            assert!(t.free_frames.is_empty());
        };
        // The frames as a whole hold an aligned run of 8 surely, and not one of 16 with the first one twice.
        t.poke(IN, 15, frames[0]);
        fails(&mut t, order(side(IN, 16, 0), side(OUT, 1, 4)), Errno::EINVAL);
        t.poke(IN, 15, t.mfn(L1));
        fails(&mut t, order(side(IN, 16, 0), side(OUT, 1, 4)), Errno::EINVAL);
        t.poke(IN, 15, u64::MAX);
        fails(&mut t, order(side(IN, 16, 0), side(OUT, 1, 4)), Errno::EINVAL);
        t.poke(IN, 15, frames[15]);
        let low = XenMemoryReservation { mem_flags: 13, ..side(OUT, 1, 4) };
        fails(&mut t, order(side(IN, 16, 0), low), Errno::ENOMEM);
        let low = XenMemoryReservation { mem_flags: 13, ..side(OUT, 16, 0) };
        fails(&mut t, order(side(IN, 16, 0), low), Errno::ENOMEM);
        let nowhere = XenMemoryReservation { extent_start: NOWHERE, ..side(OUT, 1, 4) };
        fails(&mut t, order(side(IN, 16, 0), nowhere), Errno::EFAULT);
        fails(&mut t, order(nowhere, side(OUT, 1, 4)), Errno::EFAULT);
    }

    /// XENMEM_exchange with a result that cannot be told in full: the chunk is not made.
    #[test]
    fn a_list_that_runs_into_a_page_that_cannot_be_written_loses_no_frames() {
        for unaligned in 1..8 {
            let mut t = TestDomain::new();
            let frames = sixteen(&mut t);
            let read_only = t.entry(OUT + 1, RO);
            t.map(OUT + 1, read_only).unwrap();
            let out = XenMemoryReservation { extent_start: va(OUT + 1) - unaligned, ..side(OUT, 1, 0) };
            assert_eq!(exchange(&mut t, order(side(IN, 1, 0), out)), Err(Errno::EFAULT), "{unaligned}");
            assert!(t.free_frames.is_empty());
            assert_eq!(t.m2p(frames[0]), 16, "what came in went back");
        }
    }

    /// Where the progress cannot be told, nothing is exchanged; where it can, nothing else is written, since the list
    /// of what goes out may lie there.
    #[test]
    fn of_the_argument_only_the_progress_is_written() {
        let mut t = TestDomain::new();
        let frames = sixteen(&mut t);
        let at = va(OUT);
        // The result goes over the argument's own first word, from which the call has its input list.
        let x = order(side(IN, 1, 0), XenMemoryReservation { extent_start: at, ..side(OUT, 1, 0) });
        t.write_at(at, &x).unwrap();
        assert_eq!(t.call(nr::MEMORY_OP, [XENMEM_EXCHANGE.into(), at]), Ok(0));
        assert_eq!(t.peek(OUT, 0), frames[0]);

        let x = order(side(IN, 1, 0), side(FREE + 2, 1, 0));
        t.write_at(at, &x).unwrap();
        t.poke(IN, 0, frames[1]);
        let (m2p, read_only) = (t.m2p(frames[1]), t.entry(OUT, RO));
        t.map(OUT, read_only).unwrap();
        assert_eq!(t.call(nr::MEMORY_OP, [XENMEM_EXCHANGE.into(), at]), Err(Errno::EFAULT));
        assert_eq!(t.m2p(frames[1]), m2p);
    }

    #[test]
    fn sides_that_do_not_fit() {
        let mut t = TestDomain::new();
        let domid = |domid| XenMemoryReservation { domid, ..side(IN, 1, 0) };
        let begun =
            |nr_exchanged| XenMemoryExchange { nr_exchanged, ..order(side(IN, 8, 0), side(OUT, 2, 2)) };
        let cases = [
            (order(side(IN, 2, 0), side(OUT, 1, 0)), Errno::EINVAL),
            (order(side(IN, 1 << 60, 4), side(OUT, 1 << 60, 4)), Errno::EINVAL),
            (order(side(IN, 1, 10), side(OUT, 1024, 0)), Errno::EPERM),
            (order(side(IN, 1, u32::MAX), side(OUT, 1, u32::MAX)), Errno::EPERM),
            (order(domid(DOMID_SELF), domid(1)), Errno::EINVAL),
            (order(domid(0), domid(0)), Errno::EPERM),
            (order(domid(9), domid(9)), Errno::ESRCH),
            (begun(9), Errno::EINVAL),
            (begun(3), Errno::EINVAL),
            (order(side(IN, 1, 0), XenMemoryReservation { mem_flags: 12, ..side(OUT, 1, 0) }), Errno::EINVAL),
        ];
        for (x, errno) in cases {
            assert_eq!(exchange(&mut t, x), Err(errno), "{x:?}");
        }
        assert_eq!(exchange(&mut t, order(side(IN, 0, 0), side(OUT, 0, 0))), Ok(0));
        assert_eq!(t.call(nr::MEMORY_OP, [XENMEM_EXCHANGE.into(), NOWHERE]), Err(Errno::EFAULT));
    }
}
