//! Exits of a paravirtual guest that its user programs bring about.

use paravane_abi::segment::FLAT_USER_SS;
use paravane_abi::trap::TRAP_DEBUG;

use super::*;
use crate::machine::kick::Kick;
use crate::pv::guest_pointer::GuestPtr;
use crate::testing::engine::CountKicks;
use crate::testing::pv::{FRAMES, FREE, STACK, TestDomain, va};
use crate::x86::rflags::TF;

const HANDLER: u64 = va(FREE);

/// A domain that runs a user program.
fn in_user_mode() -> TestDomain {
    let mut t = TestDomain::new();
    for vector in 0..20 {
        t.handle(vector, HANDLER + u64::from(vector), 0);
    }
    t.vcpu.kernel_sp = va(STACK + 1);
    t.vcpu.kernel_mode = false;
    t.vcpu.regs.rip = va(FREE + 1);
    t
}

/// XSA-204, here where SYSCALL is carried out: a single step of it is never the kernel's, and the program's goes on.
#[test]
fn xsa_204_a_system_call_is_no_step_into_the_kernel() {
    let mut t = in_user_mode();
    t.vcpu.syscall.address = HANDLER + 0x100;
    t.vcpu.regs.rflags |= TF;
    handle(&mut t.cx(), Exit::Syscall);
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rflags & TF), (HANDLER + 0x100, 0));
    let rsp = t.vcpu.regs.rsp;
    let [.., flags, _, ss] = t.cx().guest().read::<[u64; 7]>(GuestPtr::new(rsp)).unwrap();
    assert_eq!((flags & TF, ss), (TF, FLAT_USER_SS.into()));
    assert_eq!(t.vcpu.debug.status & 1 << 14, 0, "no step was taken");

    // Without a handler it is an undefined instruction, and its #UD does not enter the kernel with a pending step
    // either.
    let mut t = in_user_mode();
    t.vcpu.regs.rflags |= TF;
    handle(&mut t.cx(), Exit::Syscall);
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rflags & TF), (HANDLER + u64::from(TRAP_INVALID_OP), 0));
    assert_ne!(t.vcpu.regs.rip, HANDLER + u64::from(TRAP_DEBUG));
}

/// XSA-7, where a SYSCALL is the last instruction of the lower half: what comes after it is the program's #GP.
#[test]
fn xsa_7_a_system_call_at_the_end_of_the_lower_half() {
    let mut t = in_user_mode();
    t.vcpu.kernel_mode = true;
    (t.vcpu.regs.rip, t.vcpu.regs.rax) = (1 << 47, u64::MAX);
    handle(&mut t.cx(), Exit::Syscall);
    assert!(matches!(prepare(&mut t.cx()), Next::Run(_)));
    assert_eq!((t.vcpu.regs.rip, t.domain.end.is_none()), (HANDLER + u64::from(TRAP_GP_FAULT), true));
}

/// Exits that only a kernel at CPL 0 makes end the guest with a line that says whose fault they are.
#[test]
fn an_exit_of_cpl_0_ends_the_guest() {
    let port = Exit::Port { port: 0x60, size: 1, bytes: 1, write: false };
    for exit in [port, Exit::Mmio { address: 1 << 40, bytes: 8, write: true }, Exit::Halt] {
        let mut t = in_user_mode();
        assert_eq!(handle(&mut t.cx(), exit).cause, Cause::Dead);
        assert!(matches!(&t.domain.end, Some(DomainEnd::Killed(why)) if why.starts_with(Exit::NOT_AT_CPL_3)));
    }
}

/// XSA-336: the timers of a vCPU that is down raise nothing, and it finds them when it is up again.
#[test]
fn xsa_336_the_timers_of_a_vcpu_that_is_down_wait() {
    let kicks = (0..2).map(|_| Arc::new(CountKicks::default()) as Arc<dyn Kick>).collect();
    let mut t = TestDomain::with_kicks(FRAMES, kicks);
    let second = VcpuId::new(1).unwrap();
    let port = t.domain.events.bind_virq(VIRQ_TIMER, VcpuId::BOOT).unwrap();
    t.vcpu.timers.set_singleshot(Some(1));
    for (id, up) in [(second, true), (VcpuId::BOOT, false)] {
        t.domain.peers.get_mut(id).unwrap().up = up;
    }
    assert_eq!(prepare(&mut t.cx()), Next::Wait(None));
    assert_eq!(t.bells.is_pending(port), Ok(false));
    t.domain.peers.get_mut(VcpuId::BOOT).unwrap().up = true;
    assert!(matches!(prepare(&mut t.cx()), Next::Run(None)));
    assert_eq!(t.bells.is_pending(port), Ok(true));
    // A poll that it was in is over.
    t.vcpu.timers.set_poll(Some(u64::MAX));
    t.bells.poll(VcpuId::BOOT, &[]);
    t.cx().wait_as(RunState::Polling);
    t.domain.peers.get_mut(VcpuId::BOOT).unwrap().up = false;
    assert_eq!(prepare(&mut t.cx()), Next::Wait(None));
    t.domain.peers.get_mut(VcpuId::BOOT).unwrap().up = true;
    assert!(matches!(prepare(&mut t.cx()), Next::Run(None)));
}

/// Two vCPUs end: the domain's last words are of the one that ended it.
#[test]
fn the_one_that_ends_the_domain_is_remembered() {
    let kicks: Vec<_> = (0..2).map(|_| Arc::new(CountKicks::default())).collect();
    let theirs = kicks.iter().map(|kicks| Arc::clone(kicks) as Arc<dyn Kick>).collect();
    let t = TestDomain::with_kicks(FRAMES, theirs);
    let second = PvVcpu::absent(VcpuId::new(1).unwrap(), &t.domain.log);
    let clock = t.domain.clock;
    let shared = Arc::new(Shared::new(t.domain, Coherence::OwnEntry));
    let runner = |vcpu| PvRunner::new(Arc::clone(&shared), vcpu);
    let (boot, others) = (runner(t.vcpu), vec![runner(second)]);
    let mut guest = PvGuest { shared: Arc::clone(&shared), boot, others, clock };
    guest.others[0].vcpu.regs.rip = 0x5555;
    assert_eq!(guest.last().rip, guest.boot.vcpu.regs.rip);
    guest.others[0].handle(Exit::Dead("broken"));
    // The other one may be the first that notices.
    assert_eq!((guest.boot.prepare(), guest.others[0].prepare()), (Next::End, Next::End));
    assert_eq!((kicks[0].count(), kicks[1].count()), (1, 1));
    assert_eq!(guest.last().rip, 0x5555);
    assert!(matches!(guest.end(), DomainEnd::Killed(why) if why.contains("0x5555")));
    guest.others[0].vcpu.ledger.record(Cause::Kick, 1);
    assert_eq!(Box::new(guest).into_ledger().exits(), 1);
}
