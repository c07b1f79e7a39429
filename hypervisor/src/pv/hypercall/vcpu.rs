//! vcpu_op: per-vCPU state, timers, and the copies of state that a guest keeps (public/vcpu.h).

use std::mem::offset_of;

use paravane_abi::addr;
use paravane_abi::errno::Errno;
use paravane_abi::shared_info::VcpuInfo;
use paravane_abi::vcpu::*;

use super::{Call, HypercallResult, Outcome, done, vcpu_context};
use crate::machine::end::DomainEnd;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::machine::time::MIN_PERIOD;
use crate::mmu::direct::Stop;
use crate::pv::event::upcall;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::peers::Left;
use crate::pv::vcpu::VcpuId;

/// vcpu_op(command, vcpu, argument). A number beyond the domain's vCPUs is ENOENT.
pub fn vcpu_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, vcpu, argument, ..] = call.args;
    let vcpu = call.domain.vcpu(vcpu.low32())?;
    let is_own = vcpu == call.vcpu.id;
    match command.low32() {
        VCPUOP_INITIALISE => vcpu_context::initialise(call, vcpu, argument.pointer()),
        VCPUOP_UP => up(call, vcpu),
        VCPUOP_DOWN => down(call, vcpu),
        VCPUOP_IS_UP => done(call.domain.peers.get(vcpu).map_or(0, |peer| peer.up.into())),
        VCPUOP_GET_RUNSTATE_INFO => {
            let seen = call.domain.peers.get(vcpu).map_or(call.vcpu.runstate, |peer| peer.runstate);
            let runstate = if is_own { call.vcpu.runstate } else { seen };
            let info = runstate.at(call.domain.clock.now());
            call.guest().write(argument.pointer(), &info)?;
            done(0)
        }
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let op: VcpuRegisterRunstateMemoryArea = call.guest().read(argument.pointer())?;
            let area = guest_address(op.addr)?;
            if is_own {
                call.vcpu.runstate.area = area;
                // A page that is not there yet is written when the vCPU next wakes up.
                let _ = call.context().publish_runstate();
            } else {
                leave(call, vcpu, |left| left.runstate_area = Some(area));
            }
            done(0)
        }
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let op: VcpuRegisterTimeMemoryArea = call.guest().read(argument.pointer())?;
            let area = guest_address(op.addr)?;
            if is_own {
                call.vcpu.runstate.time_area = area;
                let _ = call.context().publish_time_copy();
            } else {
                leave(call, vcpu, |left| left.time_area = Some(area));
            }
            done(0)
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let op: VcpuSetPeriodicTimer = call.guest().read(argument.pointer())?;
            if op.period_ns < MIN_PERIOD {
                return Err(Errno::EINVAL);
            }
            set_periodic(call, vcpu, Some(op.period_ns));
            done(0)
        }
        VCPUOP_STOP_PERIODIC_TIMER => {
            set_periodic(call, vcpu, None);
            done(0)
        }
        // A vCPU sets this one for itself alone.
        VCPUOP_SET_SINGLESHOT_TIMER | VCPUOP_STOP_SINGLESHOT_TIMER if !is_own => Err(Errno::EINVAL),
        VCPUOP_SET_SINGLESHOT_TIMER => {
            let op: VcpuSetSingleshotTimer = call.guest().read(argument.pointer())?;
            if op.flags & VCPU_SSHOTTMR_FUTURE != 0 && op.timeout_abs_ns < call.domain.clock.now() {
                return Err(Errno::ETIME);
            }
            call.vcpu.timers.set_singleshot(Some(op.timeout_abs_ns));
            done(0)
        }
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            call.vcpu.timers.set_singleshot(None);
            done(0)
        }
        VCPUOP_REGISTER_VCPU_INFO => register_vcpu_info(call, vcpu, argument.pointer()),
        VCPUOP_SEND_NMI => {
            // Nothing to say about it: an argument is a mistake.
            if argument.word() != 0 {
                return Err(Errno::EINVAL);
            }
            if is_own {
                call.vcpu.nmi.pending = true;
            } else {
                leave(call, vcpu, |left| left.nmi = true);
            }
            done(0)
        }
        // Only a vCPU that is pinned for good has a physical processor.
        VCPUOP_GET_PHYSID => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// Lets a vCPU run that has a context.
fn up(call: &mut Call<'_>, vcpu: VcpuId) -> HypercallResult {
    let peer = call.domain.peers.get_mut(vcpu).filter(|peer| peer.initialised).ok_or(Errno::EINVAL)?;
    peer.up = true;
    call.domain.bells.kick(vcpu);
    done(0)
}

/// Has a vCPU run no more until it is brought up again, where it then goes on. With the last one the domain has nothing
/// left to run (xen: domain_shutdown, poweroff).
fn down(call: &mut Call<'_>, vcpu: VcpuId) -> HypercallResult {
    if !call.domain.peers.others_are_up(vcpu) {
        super::service_console(&mut call.context());
        call.domain.end.get_or_insert(DomainEnd::PowerOff);
        return done(0);
    }
    if let Some(peer) = call.domain.peers.get_mut(vcpu) {
        peer.up = false;
    }
    if vcpu != call.vcpu.id {
        call.domain.bells.kick(vcpu);
    }
    done(0)
}

/// Leaves something for another vCPU's thread.
fn leave(call: &mut Call<'_>, vcpu: VcpuId, what: impl FnOnce(&mut Left)) {
    call.domain.peers.leave(vcpu, what);
    call.domain.bells.kick(vcpu);
}

fn set_periodic(call: &mut Call<'_>, vcpu: VcpuId, period: Option<u64>) {
    if vcpu == call.vcpu.id {
        call.vcpu.timers.set_periodic(period, call.domain.clock.now());
    } else {
        leave(call, vcpu, |left| left.periodic = Some(period));
    }
}

/// An address at which the guest could have something mapped; 0 ends a registration.
///
/// As on Xen it is the beginning that counts: what cannot be written from there on is not written.
fn guest_address(va: u64) -> Result<u64, Errno> {
    if addr::is_canonical(va) && !addr::is_hypervisor(va) { Ok(va) } else { Err(Errno::EFAULT) }
}

/// Moves a vCPU's info, with what it holds, to a frame of the guest's; once. Another's only while that is down.
fn register_vcpu_info(
    call: &mut Call<'_>,
    vcpu: VcpuId,
    argument: GuestPtr<VcpuRegisterVcpuInfo>,
) -> HypercallResult {
    let op = call.guest().read(argument)?;
    let offset = u64::from(op.offset);
    if offset > PAGE_SIZE - size_of::<VcpuInfo>() as u64 || !offset.is_multiple_of(8) {
        return Err(Errno::ENXIO);
    }
    let runs = vcpu != call.vcpu.id && call.domain.peers.get(vcpu).is_none_or(|peer| peer.up);
    if runs || call.domain.bells.vcpu_info_has_moved(vcpu) {
        return Err(Errno::EINVAL);
    }
    // Held for good: the host writes to it by frame, so that it must never become a page table.
    match call.domain.mmu.get_writable(&call.domain.memory, &mut call.domain.log, Mfn(op.mfn)) {
        Ok(()) => {}
        Err(Stop::Refused(_)) => return Err(Errno::EINVAL),
        Err(Stop::Restart) => return Ok(Outcome::Again(call.raw())),
    }
    let to = Maddr(Mfn(op.mfn).maddr().0 + offset);
    let from = call.domain.bells.of(vcpu).vcpu_info;
    // One that had no place until now begins as those in the shared page do: with upcalls masked.
    let fresh = VcpuInfo { evtchn_upcall_mask: 1, ..VcpuInfo::default() };
    let mut info = if from == upcall::NOWHERE {
        fresh
    } else {
        call.domain.memory.read_obj(from).map_err(|_| Errno::EFAULT)?
    };
    info.time = call.domain.clock.published(info.time.version);
    call.domain.memory.write_obj(to, &info).map_err(|_| Errno::EFAULT)?;
    call.domain.bells.vcpu_info_moved(vcpu, to);
    call.domain.bells.of(vcpu).mark_pending(&call.domain.memory).map_err(|_| Errno::EFAULT)?;
    done(0)
}

const _: () = assert!(offset_of!(VcpuInfo, evtchn_upcall_pending) == 0);

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;
    use paravane_abi::shared_info::VcpuTimeInfo;
    use paravane_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

    use crate::pv::hypercall::vcpu::*;
    use crate::pv::vcpu::RunState;
    use crate::testing::pv::{FREE, L1, NOWHERE, SCRATCH, TestDomain, va};

    fn call(t: &mut TestDomain, command: u32, argument: u64) -> Result<u64, Errno> {
        t.call(nr::VCPU_OP, [command.into(), 0, argument])
    }

    fn with<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        t: &mut TestDomain,
        command: u32,
        argument: T,
    ) -> Result<u64, Errno> {
        t.write_at(va(SCRATCH), &argument).unwrap();
        call(t, command, va(SCRATCH))
    }

    #[test]
    fn there_is_one_vcpu_and_it_is_up() {
        let mut t = TestDomain::new();
        assert_eq!(call(&mut t, VCPUOP_IS_UP, 0), Ok(1));
        assert_eq!(call(&mut t, VCPUOP_UP, 0), Ok(0));
        assert_eq!(call(&mut t, VCPUOP_INITIALISE, NOWHERE), Err(Errno::EFAULT));
        assert_eq!(call(&mut t, VCPUOP_INITIALISE, va(FREE)), Err(Errno::EEXIST));
        for vcpu in [1, 31, 8191, 0xffff_ffff] {
            for command in 0..15 {
                assert_eq!(t.call(nr::VCPU_OP, [command, vcpu, NOWHERE]), Err(Errno::ENOENT));
            }
        }
        assert_eq!(call(&mut t, 14, 0), Err(Errno::ENOSYS));
        assert_eq!(call(&mut t, VCPUOP_GET_PHYSID, va(SCRATCH)), Err(Errno::EINVAL));
        assert_eq!(call(&mut t, VCPUOP_DOWN, 0), Ok(0));
        assert_eq!(t.end, Some(DomainEnd::PowerOff));
    }

    #[test]
    fn timers_have_limits() {
        let mut t = TestDomain::new();
        let periodic = |period_ns| VcpuSetPeriodicTimer { period_ns };
        assert_eq!(with(&mut t, VCPUOP_SET_PERIODIC_TIMER, periodic(999_999)), Err(Errno::EINVAL));
        assert_eq!(with(&mut t, VCPUOP_SET_PERIODIC_TIMER, periodic(1_000_000)), Ok(0));
        assert!(t.vcpu.timers.next().is_some());
        assert_eq!(call(&mut t, VCPUOP_STOP_PERIODIC_TIMER, 0), Ok(0));
        assert_eq!(t.vcpu.timers.next(), None);
        let shot = |timeout_abs_ns, flags| VcpuSetSingleshotTimer { timeout_abs_ns, flags, _pad: 0 };
        assert_eq!(
            with(&mut t, VCPUOP_SET_SINGLESHOT_TIMER, shot(0, VCPU_SSHOTTMR_FUTURE)),
            Err(Errno::ETIME)
        );
        assert_eq!(with(&mut t, VCPUOP_SET_SINGLESHOT_TIMER, shot(0, 0)), Ok(0), "due at once");
        assert_eq!(t.vcpu.timers.next(), Some(0));
        assert_eq!(call(&mut t, VCPUOP_STOP_SINGLESHOT_TIMER, 0), Ok(0));
        assert_eq!(t.vcpu.timers.next(), None);
        for command in [VCPUOP_SET_PERIODIC_TIMER, VCPUOP_SET_SINGLESHOT_TIMER] {
            assert_eq!(call(&mut t, command, NOWHERE), Err(Errno::EFAULT));
        }
    }

    #[test]
    fn the_vcpu_info_moves_once_and_its_frame_stays_writable_memory() {
        let mut t = TestDomain::new();
        let place = |t: &TestDomain, pfn, offset| VcpuRegisterVcpuInfo { mfn: t.mfn(pfn), offset, rsvd: 0 };
        for bad in [place(&t, FREE, 4040), place(&t, FREE, 4), place(&t, FREE, u32::MAX)] {
            assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_INFO, bad), Err(Errno::ENXIO), "{bad:?}");
        }
        let bad = place(&t, L1, 0);
        assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_INFO, bad), Err(Errno::EINVAL));
        for mfn in [0, u64::MAX] {
            let bad = VcpuRegisterVcpuInfo { mfn, ..Default::default() };
            assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_INFO, bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(call(&mut t, VCPUOP_REGISTER_VCPU_INFO, NOWHERE), Err(Errno::EFAULT));
        let good = place(&t, FREE, 64);
        assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_INFO, good), Ok(0));
        assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_INFO, good), Err(Errno::EINVAL), "once");
        let info: VcpuInfo = t.read_at(va(FREE) + 64).unwrap();
        assert_eq!((info.evtchn_upcall_pending, info.evtchn_upcall_mask), (1, 1));
        assert_eq!(info.evtchn_pending_sel, u64::MAX);
        assert_eq!(info.time.tsc_to_system_mul, t.clock.published(0).tsc_to_system_mul);
        let mut now = info;
        (now.evtchn_upcall_mask, now.evtchn_upcall_pending, now.evtchn_pending_sel) = (0, 0, 0);
        t.write_at(va(FREE) + 64, &now).unwrap();
        t.upcall().raise(&t.memory, 1).unwrap();
        assert!(t.cx().upcall_due(), "events arrive at the new place");
        t.unmap(FREE);
        let pin = paravane_abi::mmu::MmuextOp { cmd: 0, arg1: t.mfn(FREE), ..Default::default() };
        t.write_at(va(SCRATCH), &pin).unwrap();
        let pinned = t.call(nr::MMUEXT_OP, [va(SCRATCH), 1, 0, 0x7ff0]);
        assert_eq!(pinned, Err(Errno::EINVAL), "not to become a page table");
    }

    #[test]
    fn copies_of_run_states_and_time() {
        let mut t = TestDomain::new();
        let area = VcpuRegisterRunstateMemoryArea { addr: va(FREE) + 4096 - 20 };
        assert_eq!(with(&mut t, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, area), Ok(0));
        t.assists = 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
        t.cx().wait_as(RunState::Blocked);
        t.cx().run_again();
        let copy: VcpuRunstateInfo = t.read_at(area.addr).unwrap();
        assert_eq!((copy.state, copy.state_entry_time & XEN_RUNSTATE_UPDATE), (RUNSTATE_RUNNING, 0));
        assert!(copy.state_entry_time > 0 && copy.time[0] > 0);
        assert_eq!(call(&mut t, VCPUOP_GET_RUNSTATE_INFO, va(FREE + 2)), Ok(0));
        let asked: VcpuRunstateInfo = t.read_at(va(FREE + 2)).unwrap();
        assert!(asked.time[0] >= copy.time[0] && asked.time[2] == copy.time[2]);
        assert_eq!(call(&mut t, VCPUOP_GET_RUNSTATE_INFO, NOWHERE), Err(Errno::EFAULT));

        let time = VcpuRegisterTimeMemoryArea { addr: va(FREE + 3) };
        assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, time), Ok(0));
        let copy: VcpuTimeInfo = t.read_at(time.addr).unwrap();
        assert_eq!(copy.tsc_to_system_mul, t.clock.published(0).tsc_to_system_mul);
        assert!(copy.version > 0 && copy.version.is_multiple_of(2));

        // It begins where the guest may have something; that it cannot be written is not said.
        let area = VcpuRegisterRunstateMemoryArea { addr: u64::MAX - 3 };
        assert_eq!(with(&mut t, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, area), Ok(0));
        let area = VcpuRegisterTimeMemoryArea { addr: u64::MAX - 3 };
        assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, area), Ok(0));
        t.cx().wait_as(RunState::Blocked);
        t.cx().run_again();
        assert_eq!(t.end, None);
        for addr in [1 << 47, 0xffff_8000_0000_0000, 0xffff_87ff_ffff_fff8] {
            let area = VcpuRegisterRunstateMemoryArea { addr };
            assert_eq!(with(&mut t, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, area), Err(Errno::EFAULT));
            let area = VcpuRegisterTimeMemoryArea { addr };
            assert_eq!(with(&mut t, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, area), Err(Errno::EFAULT));
        }
        for command in [VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA] {
            assert_eq!(call(&mut t, command, NOWHERE), Err(Errno::EFAULT));
        }
        let unmapped = VcpuRegisterRunstateMemoryArea { addr: NOWHERE };
        assert_eq!(with(&mut t, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, unmapped), Ok(0), "it may come yet");
        let none = VcpuRegisterRunstateMemoryArea { addr: 0 };
        assert_eq!(with(&mut t, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, none), Ok(0));
    }

    #[test]
    fn an_nmi_enters_its_handler_once_until_iret() {
        let mut t = TestDomain::new();
        t.handle(2, va(FREE), paravane_abi::trap::TI_IF);
        assert_eq!(call(&mut t, VCPUOP_SEND_NMI, 1), Err(Errno::EINVAL));
        assert_eq!(call(&mut t, VCPUOP_SEND_NMI, 0), Ok(0));
        let before = t.vcpu.regs;
        t.cx().deliver_nmi();
        assert_eq!((t.vcpu.regs.rip, t.vcpu.nmi.masked), (va(FREE), true));
        assert_eq!(call(&mut t, VCPUOP_SEND_NMI, 0), Ok(0));
        let sp = t.vcpu.regs.rsp;
        t.cx().deliver_nmi();
        assert_eq!(t.vcpu.regs.rsp, sp, "not while one is handled");
        // rcx, r11, rip ...: an iret frame begins with rax, r11, rcx, flags.
        let frame: [u64; 7] = t.read_at(sp).unwrap();
        let [rcx, r11, rest @ ..] = frame;
        let mut iret = [0u64; 9];
        iret[1..3].copy_from_slice(&[r11, rcx]);
        iret[4..].copy_from_slice(&rest);
        t.vcpu.regs.rsp = va(SCRATCH);
        t.write_at(va(SCRATCH), &iret).unwrap();
        t.cx().iret();
        assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rsp), (before.rip, before.rsp));
        t.cx().deliver_nmi();
        assert_eq!(t.vcpu.regs.rip, va(FREE), "the second one comes now");
    }
}
