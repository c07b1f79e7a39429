//! All of `vcpu_op`, except for the firing of timers (see `timing`) and NMIs (see `callbacks`).

use paravane_guest::abi::Errno;
use paravane_guest::abi::addr::HYPERVISOR_VIRT_START;
use paravane_guest::abi::hypercall::VCPU_OP;
use paravane_guest::abi::shared_info::{VcpuInfo, VcpuTimeInfo};
use paravane_guest::abi::vcpu::*;
use paravane_guest::hypercall::sched;
use paravane_guest::paging::FrameSource;
use paravane_guest::{event, time};

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{raw, vcpu};

/// Addresses at which a guest cannot map memory.
const NOT_THE_GUESTS: [u64; 2] = [1 << 47, HYPERVISOR_VIRT_START];
const MILLISECOND: u64 = 1_000_000;

fn ask(command: u32, number: u64, argument: u64) -> Result<u64, Errno> {
    raw(VCPU_OP, [command.into(), number, argument])
}

pub(super) fn run(bench: &mut Bench) {
    life(bench);
    timers(bench);
    run_states(bench);
    time_area(bench);
}

fn life(bench: &mut Bench) {
    /// A buffer for a `vcpu_guest_context` (public/arch-x86/xen.h), which has 5168 bytes.
    static CONTEXT: [u64; 1024] = [0; 1024];
    let (context, privileged) = (CONTEXT.as_ptr() as u64, bench.privileged);
    let suite = &mut bench.suite;
    suite.equal("is-up", ask(VCPUOP_IS_UP, 0, 0), Ok(1));
    suite.equal("up", ask(VCPUOP_UP, 0, 0), Ok(0));
    suite.equal("initialise-again", ask(VCPUOP_INITIALISE, 0, context), Err(Errno::EEXIST));
    for number in [1, 31, 8191, 0xffff_ffff] {
        let answers = (0..14).filter(|c| ask(*c, number, NOWHERE) == Err(Errno::ENOENT)).count();
        suite.equal("absent", answers, 14);
    }
    suite.equal("unknown-operation", ask(99, 0, NOWHERE), Err(Errno::ENOSYS));
    if !privileged {
        suite.equal("physid", vcpu(VCPUOP_GET_PHYSID, VcpuGetPhysid::default()).0, Err(Errno::EINVAL));
    }
    for command in [
        VCPUOP_GET_RUNSTATE_INFO,
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
        VCPUOP_SET_PERIODIC_TIMER,
        VCPUOP_SET_SINGLESHOT_TIMER,
        VCPUOP_REGISTER_VCPU_INFO,
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA,
    ] {
        suite.equal("argument-nowhere", ask(command, 0, NOWHERE), Err(Errno::EFAULT));
    }
}

fn timers(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let periodic = |period_ns| vcpu(VCPUOP_SET_PERIODIC_TIMER, VcpuSetPeriodicTimer { period_ns }).0;
    suite.equal("period-too-short", periodic(MILLISECOND - 1), Err(Errno::EINVAL));
    suite.equal("period", periodic(1000 * MILLISECOND), Ok(0));
    suite.equal("no-period", ask(VCPUOP_STOP_PERIODIC_TIMER, 0, 0), Ok(0));
    let shot = VcpuSetSingleshotTimer { timeout_abs_ns: u64::MAX >> 2, flags: VCPU_SSHOTTMR_FUTURE, _pad: 0 };
    suite.equal("singleshot", vcpu(VCPUOP_SET_SINGLESHOT_TIMER, shot).0, Ok(0));
    suite.equal("no-singleshot", ask(VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0), Ok(0));
}

fn run_states(bench: &mut Bench) {
    static mut COPY: VcpuRunstateInfo =
        VcpuRunstateInfo { state: -1, _pad: 0, state_entry_time: 0, time: [0; RUNSTATE_COUNT] };
    // SAFETY: only the hypervisor writes to it, and any bits are valid.
    let copy = || unsafe { (&raw const COPY).read_volatile() };
    let suite = &mut bench.suite;
    let (asked, first) = vcpu(VCPUOP_GET_RUNSTATE_INFO, VcpuRunstateInfo::default());
    suite.equal("runstate", (asked, first.state), (Ok(0), RUNSTATE_RUNNING));
    let area = |addr| vcpu(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, VcpuRegisterRunstateMemoryArea { addr }).0;
    for addr in NOT_THE_GUESTS {
        suite.equal("runstate-area-not-the-guests", area(addr), Err(Errno::EFAULT));
    }
    suite.equal("runstate-area", area(&raw const COPY as u64), Ok(0));
    suite.equal("runstate-is-copied-at-once", copy().state, RUNSTATE_RUNNING);
    let waited = sched::poll(&[], time::now() + MILLISECOND);
    let (_, second) = vcpu(VCPUOP_GET_RUNSTATE_INFO, VcpuRunstateInfo::default());
    let slept = |then: &VcpuRunstateInfo| then.time[2] > first.time[2];
    suite.equal("time-asleep-counts", (waited, slept(&second), slept(&copy())), (Ok(()), true, true));
    suite.holds("time-awake-counts", second.time[0] > first.time[0]);
    suite.holds("state-began-later", second.state_entry_time >= first.state_entry_time);
    suite.equal("runstate-area-ends", area(0), Ok(0));
}

fn time_area(bench: &mut Bench) {
    static mut COPY: VcpuTimeInfo = VcpuTimeInfo {
        version: 0,
        pad0: 0,
        tsc_timestamp: 0,
        system_time: 0,
        tsc_to_system_mul: 0,
        tsc_shift: 0,
        flags: 0,
        pad1: [0; 2],
    };
    let suite = &mut bench.suite;
    let area = |addr| vcpu(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, VcpuRegisterTimeMemoryArea { addr }).0;
    for addr in NOT_THE_GUESTS {
        suite.equal("time-area-not-the-guests", area(addr), Err(Errno::EFAULT));
    }
    suite.equal("time-area", area(&raw const COPY as u64), Ok(0));
    // SAFETY: only the hypervisor writes to it, and any bits are valid.
    let copy = unsafe { (&raw const COPY).read_volatile() };
    suite.holds("time-is-copied", copy.tsc_to_system_mul != 0 && copy.version.is_multiple_of(2));
    suite.equal("time-area-ends", area(0), Ok(0));
}

/// `register_vcpu_info`. It moves the structure for good, while the kernel goes on using the old address: nothing may
/// wait for an event after this.
pub(super) fn info(bench: &mut Bench) {
    let Some(page) = bench.frames.take() else { return bench.suite.holds("set-up", false) };
    let memory = bench.mmu.memory();
    let mfn = |pfn| memory.mfn(pfn).map_or(0, |mfn| mfn.0);
    let register =
        |mfn, offset| vcpu(VCPUOP_REGISTER_VCPU_INFO, VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 }).0;
    event::disable();
    let suite = &mut bench.suite;
    suite.refused("beyond-its-frame", register(mfn(page), 4040));
    suite.equal("in-a-page-table", register(mfn(bench.boot.root()), 0), Err(Errno::EINVAL));
    suite.equal("in-no-frame", register(u64::MAX >> 12, 0), Err(Errno::EINVAL));
    if bench.paravane {
        // Before Xen 4.15 the error was EINVAL.
        suite.equal("beyond-its-frame-by-a-word", register(mfn(page), 4040), Err(Errno::ENXIO));
        suite.equal("unaligned", register(mfn(page), 4), Err(Errno::ENXIO));
    }
    suite.equal("register", register(mfn(page), 64), Ok(0));
    suite.equal("register-again", register(mfn(page), 128), Err(Errno::EINVAL));
    // SAFETY: the frame belongs to this check, and the structure fits; any bits are valid.
    let moved = unsafe { ((memory.va(page) + 64) as *const VcpuInfo).read_volatile() };
    suite.equal("events-stay-masked", moved.evtchn_upcall_mask, 1);
    suite.equal(
        "everything-is-looked-at",
        (moved.evtchn_upcall_pending, moved.evtchn_pending_sel),
        (1, u64::MAX),
    );
    suite.holds("time-is-there", moved.time.tsc_to_system_mul != 0);
}
