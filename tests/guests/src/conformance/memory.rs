//! `memory_op`, and the tables of frame numbers.

use paravane_guest::abi::Errno;
use paravane_guest::abi::addr::MACH2PHYS_VIRT_START;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::MEMORY_OP;
use paravane_guest::abi::memory::{
    XENMEM_DECREASE_RESERVATION, XENMEM_MACHINE_MEMORY_MAP, XENMEM_MACHPHYS_MAPPING, XenMemoryReservation,
};
use paravane_guest::abi::trap::{PFEC_PRESENT, PFEC_USER, PFEC_WRITE};
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
    // SAFETY: the hypervisor cannot write there.
    let nowhere = unsafe { call(MEMORY_OP, [u64::from(XENMEM_MACHPHYS_MAPPING), NOWHERE]) };
    suite.equal("argument-nowhere", nowhere, Err(Errno::EFAULT));
    // SAFETY: as above.
    let machine = unsafe { call(MEMORY_OP, [u64::from(XENMEM_MACHINE_MEMORY_MAP), NOWHERE]) };
    suite.refused("machine-memory-map", machine);
    // SAFETY: as above.
    suite.equal("unknown-operation", unsafe { call(MEMORY_OP, [63, NOWHERE]) }, Err(Errno::ENOSYS));
    let m2p = memory::machphys_mapping().map(|m| m.v_start).unwrap_or_default();
    // SAFETY: if the write is not refused, it writes the same value.
    let written = probe::read(m2p).and_then(|value| unsafe { probe::write(m2p, value) });
    suite.holds("m2p-is-read-only", written.is_err());
    m2p_where_xen_has_it(bench);
    let suite = &mut bench.suite;
    // SAFETY: this is not a frame number.
    suite.holds("no-frame-is-not-freed", unsafe { free(u64::MAX >> 12) } != Ok(1));
}

/// The machine-to-physical table at the address in Xen's headers, for guests that do not ask for the address.
fn m2p_where_xen_has_it(bench: &mut Bench) {
    let memory = bench.mmu.memory();
    let pfn = bench.boot.root();
    let mfn = memory.mfn(pfn).map_or(0, |mfn| mfn.0);
    let entry = MACH2PHYS_VIRT_START + mfn * 8;
    let suite = &mut bench.suite;
    suite.equal("m2p-at-xens-address", probe::read(entry), Ok(pfn.0));
    let (mut half, mut equal) = (0_u32, 0_u8);
    // SAFETY: this reads the table, as the check above did.
    unsafe {
        core::arch::asm!(
            "movzx {half:e}, word ptr [{entry}]",
            "cmp qword ptr [{entry}], {pfn}",
            "sete {equal}",
            entry = in(reg) entry,
            pfn = in(reg) pfn.0,
            half = inout(reg) half,
            equal = inout(reg_byte) equal,
            options(readonly, nostack),
        );
    }
    suite.equal("m2p-by-other-loads", (u64::from(half), equal), (pfn.0 & 0xffff, 1));
    // SAFETY: if the write is not refused, it writes the same value.
    let written = unsafe { probe::write(entry, pfn.0) };
    let code = u64::from(PFEC_PRESENT | PFEC_WRITE | PFEC_USER);
    let denied = |fault: probe::PageFault| (fault.address, fault.error_code | u64::from(PFEC_USER));
    suite.equal("m2p-at-xens-address-is-read-only", written.map_err(denied), Err((entry, code)));
}

fn round_trip(memory: &paravane_guest::memory::Memory, pfn: u64) -> bool {
    memory.mfn(Pfn(pfn)).and_then(|mfn| memory.pfn(mfn)) == Some(Pfn(pfn))
}

/// Returns a frame to the hypervisor. The result is the number of frames that it took.
///
/// # Safety
/// The frame must be unused.
unsafe fn free(mfn: u64) -> Result<u64, Errno> {
    let frames = [mfn];
    let op = XenMemoryReservation {
        extent_start: frames.as_ptr() as u64,
        nr_extents: 1,
        domid: DOMID_SELF,
        ..Default::default()
    };
    // SAFETY: the structure is the one of this operation; the caller promises the rest.
    unsafe { call(MEMORY_OP, [u64::from(XENMEM_DECREASE_RESERVATION), &raw const op as u64]) }
}
