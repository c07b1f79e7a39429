//! Giving frames back and taking them: increase_reservation, decrease_reservation, populate_physmap.
//!
//! The result is how many extents were done, whatever stopped the rest, an unreadable argument included: these
//! calls have no error numbers. An interrupted call carries its progress above the sub-operation.

use paravane_abi::addr::INVALID_M2P_ENTRY;
use paravane_abi::errno::Errno;
use paravane_abi::memory::*;

use super::{COMMAND_BITS, own};
use crate::machine::memory::{Maddr, Mfn, PAGE_SHIFT};
use crate::mmu::direct::Stop;
use crate::pv::free_frames::MAX_ORDER;
use crate::pv::guest_pointer::{GuestPtr, GuestSlice};
use crate::pv::hypercall::{Call, HypercallResult, Outcome, done};

/// More extents than this Xen cannot count in an interrupted call.
const MAX_EXTENTS: u64 = (u32::MAX >> COMMAND_BITS) as u64;

/// Frames in the largest extent.
pub(super) const MAX_CHUNK: usize = 1 << MAX_ORDER;

/// Why the rest of a call is not done now.
enum Halt {
    /// It cannot be: the call ends.
    Short,
    /// It takes too long: the call is to be issued again.
    Later,
}

impl From<Errno> for Halt {
    fn from(_: Errno) -> Self {
        Self::Short
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        if stop == Stop::Restart { Self::Later } else { Self::Short }
    }
}

/// Performs one of the three from extent `first` on.
pub fn change(
    call: &mut Call<'_>,
    command: u32,
    argument: GuestPtr<XenMemoryReservation>,
    first: u64,
) -> HypercallResult {
    let Ok(r) = call.guest().read(argument) else { return done(first) };
    let fits = r.extent_order <= MAX_ORDER && r.nr_extents <= MAX_EXTENTS && first < r.nr_extents;
    if !fits || own(r.domid).is_err() {
        return done(first);
    }
    let Some(limit) = frame_limit(r.mem_flags) else { return done(first) };
    let on_demand = command == XENMEM_POPULATE_PHYSMAP && r.mem_flags & XENMEMF_POPULATE_ON_DEMAND != 0;
    if on_demand {
        return done(first);
    }
    let mut made = first;
    while made < r.nr_extents {
        let halt = if call.is_spent() {
            Err(Halt::Later)
        } else {
            call.spend(1 << r.extent_order);
            match command {
                XENMEM_INCREASE_RESERVATION => increase(call, &r, made, limit),
                XENMEM_DECREASE_RESERVATION => decrease(call, &r, made),
                _ => populate(call, &r, made, limit),
            }
        };
        match halt {
            Ok(()) => made += 1,
            Err(Halt::Short) => break,
            Err(Halt::Later) => {
                let command = u64::from(command) | made << COMMAND_BITS;
                return Ok(Outcome::Again([command, argument.address(), 0, 0, 0, 0]));
            }
        }
    }
    done(made)
}

/// The first frame beyond what the flags' number of address bits can name; `None` if that is less than a page.
pub(super) fn frame_limit(mem_flags: u32) -> Option<Mfn> {
    match mem_flags & XENMEMF_ADDRESS_BITS_MASK {
        0 => Some(Mfn(u64::MAX)),
        bits if bits <= PAGE_SHIFT => None,
        bits => Some(Mfn(1u64.checked_shl(bits - PAGE_SHIFT).unwrap_or(u64::MAX))),
    }
}

/// Where the number of extent `n` is.
pub(super) fn number_at(r: &XenMemoryReservation, n: u64) -> Result<GuestPtr<u64>, Errno> {
    GuestSlice::new(r.extent_start, r.nr_extents).at(n)
}

/// Hands frames out: `pfn(i)` is what frame `i` of the run will be in the machine-to-physical table.
fn hand_out(call: &mut Call<'_>, order: u32, limit: Mfn, pfn: impl Fn(u64) -> u64) -> Option<Mfn> {
    let Mfn(first) = call.domain.free_frames.take(order, limit)?;
    for i in 0..1u64 << order {
        // The set holds frames that were taken from this guest, and no others.
        let given = call.domain.mmu.give_to_guest(&call.domain.memory, Mfn(first + i), pfn(i));
        debug_assert_eq!(given, Ok(()));
    }
    Some(Mfn(first))
}

/// Takes `count` frames, [`MAX_CHUNK`] at most, from the guest, or none of them.
pub(super) fn take_back(call: &mut Call<'_>, first: u64, count: u64) -> Result<(), Stop> {
    let end = first.checked_add(count).ok_or(Errno::EINVAL)?;
    let mut pages = [0u64; MAX_CHUNK];
    for (mfn, page) in (first..end).zip(&mut pages) {
        *page = page_of(call, mfn)?;
        if let Err(stop) =
            call.domain.mmu.take_from_guest(&call.domain.memory, &mut call.domain.log, Mfn(mfn))
        {
            for (mfn, page) in (first..mfn).zip(pages) {
                let given = call.domain.mmu.give_to_guest(&call.domain.memory, Mfn(mfn), page);
                debug_assert_eq!(given, Ok(()));
            }
            return Err(stop);
        }
    }
    for mfn in first..end {
        call.domain.free_frames.insert(Mfn(mfn));
    }
    Ok(())
}

/// What the machine-to-physical table says of a frame.
pub(super) fn page_of(call: &Call<'_>, mfn: u64) -> Result<u64, Errno> {
    let offset = mfn.checked_mul(8).ok_or(Errno::EINVAL)?;
    let at = Mfn(call.domain.facts.m2p.start).maddr().0.checked_add(offset).ok_or(Errno::EINVAL)?;
    if !call.domain.facts.m2p.contains(&Maddr(at).mfn().0) {
        return Err(Errno::EINVAL);
    }
    call.domain.memory.load_u64(Maddr(at)).map_err(|_| Errno::EINVAL)
}

/// The guest chooses where to map the frames: nothing is recorded of them.
fn increase(call: &mut Call<'_>, r: &XenMemoryReservation, n: u64, limit: Mfn) -> Result<(), Halt> {
    let at = number_at(r, n)?;
    if r.extent_start != 0 {
        call.guest().check_writable(at)?;
    }
    let first = hand_out(call, r.extent_order, limit, |_| INVALID_M2P_ENTRY).ok_or(Halt::Short)?;
    if r.extent_start != 0 {
        call.guest().write(at, &first.0)?;
    }
    Ok(())
}

fn populate(call: &mut Call<'_>, r: &XenMemoryReservation, n: u64, limit: Mfn) -> Result<(), Halt> {
    let at = number_at(r, n)?;
    let page = call.guest().read(at)?;
    call.guest().check_writable(at)?;
    let first = hand_out(call, r.extent_order, limit, |i| page.wrapping_add(i)).ok_or(Halt::Short)?;
    Ok(call.guest().write(at, &first.0)?)
}

fn decrease(call: &mut Call<'_>, r: &XenMemoryReservation, n: u64) -> Result<(), Halt> {
    let first = call.guest().read(number_at(r, n)?)?;
    Ok(take_back(call, first, 1 << r.extent_order)?)
}

#[cfg(test)]
mod tests {
    use paravane_abi::domid::DOMID_SELF;
    use paravane_abi::hypercall as nr;
    use proptest::prelude::*;

    use crate::pv::hypercall::memory::reservation::*;
    use crate::testing::pv::{CONSOLE, FRAMES, FREE, L1, NOWHERE, RO, RW, SCRATCH, TestDomain, va};

    /// PFN of the page with the list.
    const LIST: u64 = FREE;

    fn reservation(nr_extents: u64, extent_order: u32) -> XenMemoryReservation {
        let extent_start = va(LIST);
        XenMemoryReservation {
            extent_start,
            nr_extents,
            extent_order,
            domid: DOMID_SELF,
            ..Default::default()
        }
    }

    fn change(t: &mut TestDomain, command: u32, r: XenMemoryReservation) -> u64 {
        t.op(nr::MEMORY_OP, command, r).unwrap().0
    }

    /// Unmaps pages and gives their frames back, each by itself.
    fn give_back(t: &mut TestDomain, pfns: std::ops::Range<u64>) -> u64 {
        for (n, pfn) in (0..).zip(pfns.clone()) {
            t.unmap(pfn);
            t.poke(LIST, n, t.mfn(pfn));
        }
        change(t, XENMEM_DECREASE_RESERVATION, reservation(pfns.end - pfns.start, 0))
    }

    #[test]
    fn what_was_given_back_comes_again() {
        let mut t = TestDomain::new();
        assert_eq!(give_back(&mut t, 20..30), 10);
        assert_eq!((t.free_frames.len(), t.m2p(t.mfn(20))), (10, INVALID_M2P_ENTRY));
        let frame = t.entry(20, RW);
        assert_eq!(t.map(20, frame), Err(Errno::EBUSY), "no longer the guest's");

        for n in 0..4 {
            t.poke(LIST, n, 1000 + n);
        }
        assert_eq!(change(&mut t, XENMEM_POPULATE_PHYSMAP, reservation(4, 0)), 4);
        for n in 0..4 {
            let mfn = t.peek(LIST, n);
            assert_eq!(t.m2p(mfn), 1000 + n);
            assert_eq!(t.map(20 + n, paravane_abi::pte::make(mfn, RW)), Ok(0));
        }
        assert_eq!(
            change(&mut t, XENMEM_INCREASE_RESERVATION, reservation(9, 0)),
            6,
            "no more than there are"
        );
        assert_eq!((t.free_frames.len(), t.m2p(t.peek(LIST, 5))), (0, INVALID_M2P_ENTRY));
        assert_eq!(give_back(&mut t, 40..42), 2);
        let silent = XenMemoryReservation { extent_start: 0, ..reservation(2, 0) };
        assert_eq!(change(&mut t, XENMEM_INCREASE_RESERVATION, silent), 2, "without a list");
    }

    #[test]
    fn extents_are_aligned_runs() {
        let mut t = TestDomain::new();
        give_back(&mut t, 16..80);
        t.poke(LIST, 0, 500);
        assert_eq!(change(&mut t, XENMEM_POPULATE_PHYSMAP, reservation(1, 4)), 1);
        let mfn = t.peek(LIST, 0);
        assert!(mfn.is_multiple_of(16));
        assert_eq!((t.m2p(mfn), t.m2p(mfn + 15)), (500, 515));
        assert_eq!(change(&mut t, XENMEM_DECREASE_RESERVATION, reservation(1, 4)), 1);
        assert_eq!(t.free_frames.len(), 64);
        assert_eq!(
            change(&mut t, XENMEM_INCREASE_RESERVATION, reservation(1, 10)),
            0,
            "too large for a domU"
        );
    }

    #[test]
    fn what_cannot_be_given_back_stops_the_list() {
        let mut t = TestDomain::new();
        t.unmap(20);
        for (n, mfn) in [t.mfn(20), t.mfn(21), t.mfn(22)].into_iter().enumerate() {
            t.poke(LIST, n as u64, mfn);
        }
        assert_eq!(change(&mut t, XENMEM_DECREASE_RESERVATION, reservation(3, 0)), 1, "21 is mapped");
        for mfn in [t.mfn(L1), t.mfn(CONSOLE), t.mfn(20), 0, FRAMES * 100, u64::MAX] {
            t.poke(LIST, 0, mfn);
            assert_eq!(change(&mut t, XENMEM_DECREASE_RESERVATION, reservation(1, 0)), 0, "{mfn:#x}");
        }
        // A run that is refused in its middle is left as it was.
        t.unmap(24);
        t.poke(LIST, 0, t.mfn(24));
        assert_eq!(change(&mut t, XENMEM_DECREASE_RESERVATION, reservation(1, 1)), 0);
        let frame = t.entry(24, RW);
        assert_eq!((t.map(24, frame), t.m2p(t.mfn(24))), (Ok(0), 24));
    }

    #[test]
    fn there_are_no_error_numbers() {
        let mut t = TestDomain::new();
        give_back(&mut t, 20..30);
        for command in [XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP] {
            assert_eq!(t.call(nr::MEMORY_OP, [command.into(), NOWHERE]), Ok(0));
            let bad = [
                XenMemoryReservation { domid: 0, ..reservation(1, 0) },
                XenMemoryReservation { domid: 9, ..reservation(1, 0) },
                XenMemoryReservation { mem_flags: 12, ..reservation(1, 0) },
                XenMemoryReservation { extent_start: NOWHERE, ..reservation(1, 0) },
                XenMemoryReservation { extent_start: u64::MAX - 3, ..reservation(1, 0) },
                reservation(1 << 26, 0),
                reservation(0, 0),
                reservation(1, 99),
            ];
            for r in bad {
                assert_eq!(change(&mut t, command, r), 0, "{command} {r:?}");
            }
        }
        assert_eq!(t.free_frames.len(), 10);
        let on_demand = XenMemoryReservation { mem_flags: XENMEMF_POPULATE_ON_DEMAND, ..reservation(1, 0) };
        assert_eq!(change(&mut t, XENMEM_POPULATE_PHYSMAP, on_demand), 0);
        let low = XenMemoryReservation { mem_flags: 13, ..reservation(1, 0) };
        assert_eq!(change(&mut t, XENMEM_INCREASE_RESERVATION, low), 0, "no frame below 8 KiB");
        let high = XenMemoryReservation { mem_flags: 48, ..reservation(1, 0) };
        assert_eq!(change(&mut t, XENMEM_INCREASE_RESERVATION, high), 1);
    }

    #[test]
    fn an_interrupted_call_goes_on_where_it_was() {
        let mut t = TestDomain::new();
        give_back(&mut t, 20..30);
        let command = u64::from(XENMEM_INCREASE_RESERVATION) | 3 << COMMAND_BITS;
        t.write_at(va(SCRATCH), &reservation(5, 0)).unwrap();
        assert_eq!(t.call(nr::MEMORY_OP, [command, va(SCRATCH)]), Ok(5));
        assert_eq!(t.free_frames.len(), 8, "two of the five were left");
        let beyond = u64::from(XENMEM_INCREASE_RESERVATION) | 9 << COMMAND_BITS;
        assert_eq!(t.call(nr::MEMORY_OP, [beyond, va(SCRATCH)]), Ok(9));
    }

    /// A number that crosses into a page which cannot be written stops the list before its frames change hands.
    #[test]
    fn a_list_that_runs_into_a_page_that_cannot_be_written_loses_no_frames() {
        for command in [XENMEM_INCREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP] {
            for unaligned in 1..8 {
                let mut t = TestDomain::new();
                give_back(&mut t, 20..24);
                let read_only = t.entry(LIST + 1, RO);
                t.map(LIST + 1, read_only).unwrap();
                let before = t.free_frames.len();
                let extent_start = va(LIST + 1) - 8 - unaligned;
                let r = XenMemoryReservation { extent_start, ..reservation(2, 0) };
                assert_eq!(change(&mut t, command, r), 1, "{command}, {unaligned} bytes before the boundary");
                assert_eq!(t.free_frames.len(), before - 1, "one was told, one is left");
                let told: u64 = t.read_at(extent_start).unwrap();
                let owner = t.mmu.frame(Mfn(told)).unwrap().owner();
                assert_eq!(owner, crate::mmu::direct::frame::Owner::Guest);
            }
        }
    }

    proptest! {
        /// Whatever is asked for, frames are neither lost nor doubled.
        ///
        /// The list begins so that it may cross into a page that is writable, read-only or absent.
        #[test]
        fn frames_are_conserved(
            calls in prop::collection::vec(
                (0u32..3, 0u64..6, 0u32..4, prop::collection::vec(0u64..100, 6), 0u64..56), 1..30,
            ),
            next_page in 0usize..3,
        ) {
            let mut t = TestDomain::new();
            let next = [t.entry(LIST + 1, RW), t.entry(LIST + 1, RO), 0][next_page];
            t.map(LIST + 1, next).unwrap();
            for pfn in 16..96 {
                t.unmap(pfn);
            }
            let base = t.mfn(0);
            for (command, count, order, list, before_end) in calls {
                let command =
                    [XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP][command as usize];
                let extent_start = va(LIST + 1) - before_end;
                for (n, number) in (0..).zip(list) {
                    let _ = t.write_at(extent_start + n * 8, &(base + number));
                }
                let free = t.free_frames.len();
                let made = change(&mut t, command, XenMemoryReservation { extent_start, ..reservation(count, order) });
                prop_assert!(made <= count);
                let moved = made << order;
                let left = if command == XENMEM_DECREASE_RESERVATION { free + moved } else { free - moved };
                prop_assert_eq!(t.free_frames.len(), left, "as many as were told");
                let owned = (0..FRAMES)
                    .filter(|pfn| t.mmu.frame(Mfn(base + pfn)).unwrap().owner() == crate::mmu::direct::frame::Owner::Guest)
                    .count() as u64;
                prop_assert_eq!(owned + t.free_frames.len(), FRAMES);
            }
        }
    }
}
