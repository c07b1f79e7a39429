//! `memory_op`, and the tables of frames.

use paravane_guest::abi::Errno;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::MEMORY_OP;
use paravane_guest::abi::memory::{
    XENMEM_DECREASE_RESERVATION, XENMEM_MACHINE_MEMORY_MAP, XENMEM_MACHPHYS_MAPPING, XenMemoryReservation,
};
use paravane_guest::hypercall::{call, memory};
use paravane_guest::memory::Pfn;

use super::Bench;
use super::calls::NOWHERE;
use crate::probe;

pub(super) fn run(bench: &mut Bench) {
    let pages = bench.boot.start_info().nr_pages;
    let all = bench.mmu.memory();
    let suite = &mut bench.suite;
    suite.equal("current-reservation", memory::current_reservation(), Ok(pages));
    suite.holds("maximum-reservation", memory::maximum_reservation().is_ok_and(|most| most >= pages));
    suite.equal("p2m-and-m2p-agree", (0..pages).filter(|p| round_trip(&all, *p)).count() as u64, pages);
    // SAFETY: nothing can be written there.
    let nowhere = unsafe { call(MEMORY_OP, [u64::from(XENMEM_MACHPHYS_MAPPING), NOWHERE]) };
    suite.equal("argument-nowhere", nowhere, Err(Errno::EFAULT));
    // SAFETY: as above.
    let machine = unsafe { call(MEMORY_OP, [u64::from(XENMEM_MACHINE_MEMORY_MAP), NOWHERE]) };
    suite.refused("machine-memory-map", machine);
    // SAFETY: as above.
    suite.equal("unknown-operation", unsafe { call(MEMORY_OP, [63, NOWHERE]) }, Err(Errno::ENOSYS));
    let m2p = memory::machphys_mapping().map(|m| m.v_start).unwrap_or_default();
    // SAFETY: if it is not refused, the same value is written back.
    let written = probe::read(m2p).and_then(|value| unsafe { probe::write(m2p, value) });
    suite.holds("m2p-is-read-only", written.is_err());
    // SAFETY: not a frame.
    suite.holds("no-frame-is-not-freed", unsafe { free(u64::MAX >> 12) } != Ok(1));
}

fn round_trip(memory: &paravane_guest::memory::Memory, pfn: u64) -> bool {
    memory.mfn(Pfn(pfn)).and_then(|mfn| memory.pfn(mfn)) == Some(Pfn(pfn))
}

/// Gives a frame back to the hypervisor; how many it took.
///
/// # Safety
/// Nothing uses the frame.
unsafe fn free(mfn: u64) -> Result<u64, Errno> {
    let frames = [mfn];
    let op = XenMemoryReservation {
        extent_start: frames.as_ptr() as u64,
        nr_extents: 1,
        domid: DOMID_SELF,
        ..Default::default()
    };
    // SAFETY: the structure of this operation; the rest is the caller's promise.
    unsafe { call(MEMORY_OP, [u64::from(XENMEM_DECREASE_RESERVATION), &raw const op as u64]) }
}
