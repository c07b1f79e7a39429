//! Several vCPUs: how they come up and go down, what they leave for each other, and what they cannot do to each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paravane_abi::context::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext};
use paravane_abi::errno::Errno;
use paravane_abi::event::*;
use paravane_abi::hypercall as nr;
use paravane_abi::shared_info::VcpuInfo;
use paravane_abi::vcpu::*;

use crate::machine::end::DomainEnd;
use crate::machine::kick::Kick;
use crate::machine::memory::{Maddr, Mfn};
use crate::pv::context::PvContext;
use crate::pv::vcpu::{PvVcpu, RunState, VcpuId};
use crate::testing::engine::CountKicks;
use crate::testing::pv::{FRAMES, FREE, L1, L4, NOWHERE, SCRATCH, TestDomain, va};

/// Where contexts are put: two pages.
const CONTEXT: u64 = FREE;
const TARGET: u64 = va(FREE + 4);

/// A domain of several vCPUs, of which the first is up.
struct Several {
    t: TestDomain,
    others: Vec<PvVcpu>,
    kicks: Vec<Arc<CountKicks>>,
}

impl Several {
    fn new(vcpus: usize) -> Self {
        let kicks: Vec<_> = (0..vcpus).map(|_| Arc::new(CountKicks::default())).collect();
        let theirs = kicks.iter().map(|kicks| Arc::clone(kicks) as Arc<dyn Kick>).collect();
        let mut t = TestDomain::with_kicks(FRAMES, theirs);
        t.domain.mmu.expect_several_vcpus(&mut t.domain.log).unwrap();
        let absent = |number| PvVcpu::absent(VcpuId::new(number).unwrap(), &t.domain.log);
        let others = (1..u32::try_from(vcpus).unwrap()).map(absent).collect();
        Self { t, others, kicks }
    }

    /// vcpu_op of the first vCPU.
    fn op(&mut self, command: u32, vcpu: u32, argument: u64) -> Result<u64, Errno> {
        self.t.call(nr::VCPU_OP, [command.into(), vcpu.into(), argument])
    }

    fn op_with<T>(&mut self, command: u32, vcpu: u32, argument: T) -> Result<u64, Errno>
    where
        T: zerocopy::IntoBytes + zerocopy::Immutable,
    {
        self.t.write_at(va(SCRATCH), &argument).unwrap();
        self.op(command, vcpu, va(SCRATCH))
    }

    /// A context in the kernel, on the first vCPU's tables.
    fn context(&self) -> VcpuGuestContext {
        let mut context = VcpuGuestContext { flags: VGCF_IN_KERNEL, ..Default::default() };
        context.ctrlreg[3] = self.t.mfn(L4) << 12;
        context.user_regs.rip = TARGET;
        context.user_regs.rbx = 0x1234;
        context.event_callback_eip = TARGET + 16;
        context
    }

    fn initialise(&mut self, vcpu: u32, context: &VcpuGuestContext) -> Result<u64, Errno> {
        self.t.write_at(va(CONTEXT), context).unwrap();
        self.op(VCPUOP_INITIALISE, vcpu, va(CONTEXT))
    }

    /// Another vCPU, on its own thread.
    fn other(&mut self, number: usize) -> PvContext<'_> {
        PvContext { domain: &mut self.t.domain, vcpu: &mut self.others[number - 1] }
    }

    /// Has the second one up and running.
    fn with_the_second_up(mut self) -> Self {
        let context = self.context();
        self.initialise(1, &context).unwrap();
        self.op(VCPUOP_UP, 1, 0).unwrap();
        self.other(1).go_up_or_down();
        self
    }

    fn bind_ipi(&mut self, vcpu: u32) -> Result<EvtchnPort, Errno> {
        let op = EvtchnBindIpi { vcpu, ..Default::default() };
        self.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, op).map(|(_, op)| op.port)
    }

    fn send(&mut self, port: EvtchnPort) -> Result<u64, Errno> {
        self.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_SEND, EvtchnSend { port }).map(|(result, _)| result)
    }

    fn state_of(&self, vcpu: u32) -> (bool, bool) {
        self.t.bells.of(VcpuId::new(vcpu).unwrap()).state(&self.t.memory).unwrap()
    }
}

#[test]
fn a_vcpu_comes_up_with_its_context_and_goes_on_after_it_was_down() {
    let mut s = Several::new(2);
    for vcpu in [2, 31, u32::MAX] {
        for command in [VCPUOP_INITIALISE, VCPUOP_UP, VCPUOP_DOWN, VCPUOP_IS_UP, VCPUOP_GET_RUNSTATE_INFO] {
            assert_eq!(s.op(command, vcpu, NOWHERE), Err(Errno::ENOENT));
        }
    }
    assert_eq!((s.op(VCPUOP_IS_UP, 0, 0), s.op(VCPUOP_IS_UP, 1, 0)), (Ok(1), Ok(0)));
    assert_eq!(s.op(VCPUOP_UP, 1, 0), Err(Errno::EINVAL), "it has no context");
    assert_eq!(s.op(VCPUOP_INITIALISE, 1, NOWHERE), Err(Errno::EFAULT));
    let context = s.context();
    assert_eq!(s.initialise(1, &context), Ok(0));
    assert_eq!(s.initialise(1, &context), Err(Errno::EEXIST));
    s.other(1).go_up_or_down();
    assert_eq!((s.op(VCPUOP_IS_UP, 1, 0), s.others[0].state), (Ok(0), RunState::Offline));
    let before = s.kicks[1].count();
    assert_eq!((s.op(VCPUOP_UP, 1, 0), s.op(VCPUOP_IS_UP, 1, 0)), (Ok(0), Ok(1)));
    assert_eq!(s.kicks[1].count(), before + 1);
    s.other(1).go_up_or_down();
    let vcpu = &mut s.others[0];
    assert_eq!((vcpu.state, vcpu.regs.rip, vcpu.regs.rbx), (RunState::Running, TARGET, 0x1234));
    assert_eq!((vcpu.event.address, vcpu.id), (TARGET + 16, VcpuId::new(1).unwrap()));
    assert_eq!(vcpu.space.root(), Mfn(context.ctrlreg[3] >> 12));
    vcpu.regs.rbx = 7;
    assert_eq!(s.op(VCPUOP_DOWN, 1, 0), Ok(0));
    s.other(1).go_up_or_down();
    assert_eq!((s.others[0].state, s.t.end.clone()), (RunState::Offline, None));
    assert_eq!(s.op(VCPUOP_UP, 1, 0), Ok(0));
    s.other(1).go_up_or_down();
    assert_eq!(
        (s.others[0].state, s.others[0].regs.rbx),
        (RunState::Running, 7),
        "it goes on, and does not begin"
    );
}

#[test]
fn the_last_one_that_goes_down_ends_the_domain() {
    let mut s = Several::new(2).with_the_second_up();
    assert_eq!(s.op(VCPUOP_DOWN, 0, 0), Ok(0));
    s.t.cx().go_up_or_down();
    assert_eq!((s.t.vcpu.state, s.t.end.clone()), (RunState::Offline, None));
    // On the second one's thread.
    std::mem::swap(&mut s.t.vcpu, &mut s.others[0]);
    assert_eq!((s.op(VCPUOP_IS_UP, 0, 0), s.op(VCPUOP_DOWN, 1, 0)), (Ok(0), Ok(0)));
    assert_eq!(s.t.end, Some(DomainEnd::PowerOff));
}

#[test]
fn a_context_may_be_up_at_once() {
    let mut s = Several::new(2);
    let context = VcpuGuestContext { flags: VGCF_IN_KERNEL | VGCF_ONLINE, ..s.context() };
    assert_eq!((s.initialise(1, &context), s.op(VCPUOP_IS_UP, 1, 0)), (Ok(0), Ok(1)));
}

#[test]
fn a_context_that_is_refused_leaves_nothing() {
    let mut s = Several::new(2);
    let good = s.context();
    let references = |s: &Several| s.t.mmu.frame(Mfn(s.t.mfn(L4)));
    let before = references(&s);
    let changed = |change: &dyn Fn(&mut VcpuGuestContext)| {
        let mut context = good;
        change(&mut context);
        context
    };
    let not_canonical = 1 << 47;
    let table = s.t.mfn(L1);
    let bad = [
        changed(&|c| c.user_regs.rip = not_canonical),
        changed(&|c| c.event_callback_eip = not_canonical),
        changed(&|c| c.failsafe_callback_eip = not_canonical),
        changed(&|c| c.syscall_callback_eip = not_canonical),
        changed(&|c| c.trap_ctxt[255].address = not_canonical),
        changed(&|c| c.fs_base = not_canonical),
        changed(&|c| c.gs_base_kernel = not_canonical),
        changed(&|c| c.gs_base_user = not_canonical),
        changed(&|c| c.ctrlreg[3] = 0),
        changed(&|c| c.ctrlreg[3] = table << 12),
        changed(&|c| c.ctrlreg[3] = u64::MAX),
        changed(&|c| c.ctrlreg[1] = table << 12),
        changed(&|c| c.flags = 0),
        changed(&|c| (c.flags, c.ctrlreg[1]) = (0, 1)),
        changed(&|c| (c.ldt_base, c.ldt_ents) = (8, 1)),
        changed(&|c| (c.ldt_base, c.ldt_ents) = (0, 8193)),
        changed(&|c| c.gdt_ents = 7169),
        changed(&|c| c.gdt_ents = u64::MAX),
        changed(&|c| (c.gdt_frames[0], c.gdt_ents) = (table, 1)),
    ];
    for (number, context) in bad.iter().enumerate() {
        assert_eq!(s.initialise(1, context), Err(Errno::EINVAL), "number {number}");
        assert_eq!(references(&s), before, "number {number}");
    }
    assert_eq!(s.op(VCPUOP_UP, 1, 0), Err(Errno::EINVAL));
    assert_eq!(s.initialise(1, &good), Ok(0));
    assert_ne!(references(&s), before);
}

#[test]
fn accounts_of_time_are_everybodys_to_see() {
    let mut s = Several::new(2);
    let state = |s: &mut Several| {
        assert_eq!(s.op(VCPUOP_GET_RUNSTATE_INFO, 1, va(FREE + 6)), Ok(0));
        s.t.read_at::<VcpuRunstateInfo>(va(FREE + 6)).unwrap().state
    };
    assert_eq!(state(&mut s), RUNSTATE_OFFLINE);
    let mut s = s.with_the_second_up();
    assert_eq!(state(&mut s), RUNSTATE_RUNNING);
    s.other(1).wait_as(RunState::Blocked);
    assert_eq!(state(&mut s), RUNSTATE_BLOCKED);
}

#[test]
fn one_vcpu_registers_areas_for_another() {
    let mut s = Several::new(2);
    let info = VcpuRegisterVcpuInfo { mfn: s.t.mfn(FREE + 7), offset: 128, rsvd: 0 };
    assert_eq!(s.op_with(VCPUOP_REGISTER_VCPU_INFO, 1, info), Ok(0), "it is down");
    assert_eq!(s.op_with(VCPUOP_REGISTER_VCPU_INFO, 1, info), Err(Errno::EINVAL), "once");
    let at = Maddr((info.mfn << 12) + 128);
    assert_eq!(s.t.bells.of(VcpuId::new(1).unwrap()).vcpu_info, at);
    assert_ne!(s.t.memory.read_obj::<VcpuInfo>(at).unwrap().time.tsc_to_system_mul, 0);
    let area = VcpuRegisterRunstateMemoryArea { addr: va(FREE + 8) };
    assert_eq!(s.op_with(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 1, area), Ok(0));
    let time = VcpuRegisterTimeMemoryArea { addr: va(FREE + 9) };
    assert_eq!(s.op_with(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 1, time), Ok(0));
    s.other(1).take_left();
    let s = s.with_the_second_up();
    assert_eq!(s.t.read_at::<VcpuRunstateInfo>(va(FREE + 8)).unwrap().state, RUNSTATE_RUNNING);
    assert_eq!(s.others[0].runstate.time_area, va(FREE + 9));

    let mut s = Several::new(2).with_the_second_up();
    assert_eq!(s.op_with(VCPUOP_REGISTER_VCPU_INFO, 1, info), Err(Errno::EINVAL), "it runs");
}

#[test]
fn timers_and_nmis_are_left_for_another_and_its_single_shot_is_its_own() {
    let mut s = Several::new(2).with_the_second_up();
    let before = s.kicks[1].count();
    assert_eq!(s.op_with(VCPUOP_SET_PERIODIC_TIMER, 1, VcpuSetPeriodicTimer { period_ns: 5_000_000 }), Ok(0));
    assert_eq!(s.op(VCPUOP_SEND_NMI, 1, 0), Ok(0));
    assert_eq!(s.op(VCPUOP_SEND_NMI, 1, 1), Err(Errno::EINVAL));
    assert_eq!(s.kicks[1].count(), before + 2);
    assert_eq!((s.t.vcpu.timers.next(), s.t.vcpu.nmi.pending), (None, false));
    s.other(1).take_left();
    assert!(s.others[0].timers.next().is_some() && s.others[0].nmi.pending);
    assert_eq!(s.op(VCPUOP_STOP_PERIODIC_TIMER, 1, 0), Ok(0));
    s.other(1).take_left();
    assert_eq!(s.others[0].timers.next(), None);
    let shot = VcpuSetSingleshotTimer { timeout_abs_ns: 1, flags: 0, _pad: 0 };
    assert_eq!(s.op_with(VCPUOP_SET_SINGLESHOT_TIMER, 1, shot), Err(Errno::EINVAL));
    assert_eq!(s.op(VCPUOP_STOP_SINGLESHOT_TIMER, 1, 0), Err(Errno::EINVAL));
    // What is left before its first start is there when it starts.
    let mut s = Several::new(2);
    assert_eq!(s.op_with(VCPUOP_SET_PERIODIC_TIMER, 1, VcpuSetPeriodicTimer { period_ns: 5_000_000 }), Ok(0));
    assert_eq!(s.op(VCPUOP_SEND_NMI, 1, 0), Ok(0));
    s.other(1).take_left();
    let s = s.with_the_second_up();
    assert!(s.others[0].timers.next().is_some() && s.others[0].nmi.pending);
}

#[test]
fn an_ipi_reaches_its_vcpu_and_no_other() {
    let mut s = Several::new(3).with_the_second_up();
    assert_eq!(s.bind_ipi(3), Err(Errno::ENOENT));
    let (own, theirs) = (s.bind_ipi(0).unwrap(), s.bind_ipi(1).unwrap());
    let before = [0, 1, 2].map(|n| s.kicks[n].count());
    assert_eq!((s.send(theirs), s.send(theirs)), (Ok(0), Ok(0)));
    assert_eq!([0, 1, 2].map(|n| s.kicks[n].count() - before[n]), [0, 1, 0], "one kick for two sends");
    assert_eq!((s.state_of(0).0, s.state_of(1).0), (false, true));
    s.send(own).unwrap();
    assert_eq!((s.kicks[0].count() - before[0], s.state_of(0).0), (0, true), "one's own thread looks anyway");
    // Who polls it is woken although it is masked, wherever it notifies.
    let third = VcpuId::new(2).unwrap();
    let polled = s.bind_ipi(1).unwrap();
    s.t.bells.poll(third, &[polled]);
    let mask = Maddr(s.t.upcall().shared_info.0 + 2560);
    s.t.memory.fetch_or_u64(mask, 1 << polled).unwrap();
    s.send(polled).unwrap();
    assert_eq!(s.kicks[2].count() - before[2], 1);
}

#[test]
fn virtual_interrupts_and_ports_are_bound_to_vcpus_that_exist() {
    let mut s = Several::new(2);
    let virq = |s: &mut Several, virq, vcpu| {
        let op = EvtchnBindVirq { virq, vcpu, ..Default::default() };
        s.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ, op).map(|(_, op)| op.port)
    };
    assert_eq!(virq(&mut s, 24, 0), Err(Errno::EINVAL));
    assert_eq!(virq(&mut s, 0, 2), Err(Errno::ENOENT));
    assert_eq!(virq(&mut s, 2, 1), Err(Errno::EINVAL), "the console's is the domain's");
    let (first, second) = (virq(&mut s, 0, 0).unwrap(), virq(&mut s, 0, 1).unwrap());
    assert_eq!((virq(&mut s, 0, 0), virq(&mut s, 0, 1)), (Err(Errno::EEXIST), Err(Errno::EEXIST)));
    let bind = |s: &mut Several, port, vcpu| {
        let op = EvtchnBindVcpu { port, vcpu };
        s.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_VCPU, op).map(|(result, _)| result)
    };
    assert_eq!(bind(&mut s, first, 0), Err(Errno::EINVAL));
    assert_eq!(bind(&mut s, second, 1), Err(Errno::EINVAL));
    let console = crate::pv::domain::CONSOLE_PORT;
    assert_eq!(bind(&mut s, console, 2), Err(Errno::ENOENT));
    assert_eq!(bind(&mut s, 99, 1), Err(Errno::EINVAL));
    // What is pending goes along.
    s.t.bells.raise(console, None).unwrap();
    assert_eq!(bind(&mut s, console, 1), Ok(0));
    assert!(s.state_of(1).0);
    let status = EvtchnStatus { dom: 0x7ff0, port: console, ..Default::default() };
    assert_eq!(s.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_STATUS, status).unwrap().1.vcpu, 1);
}

/// XSA-343, XSA-344: a port that is closed while it is pending, or after it moved to another vCPU, leaves nothing to
/// whoever is given it next; and a reset leaves none behind.
#[test]
fn xsa_343_a_port_that_is_closed_while_it_is_raised_leaves_nothing() {
    let mut s = Several::new(2).with_the_second_up();
    let theirs = s.bind_ipi(1).unwrap();
    s.send(theirs).unwrap();
    s.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_CLOSE, EvtchnClose { port: theirs }).unwrap();
    assert_eq!(s.send(theirs), Err(Errno::EINVAL));
    assert_eq!(s.bind_ipi(0), Ok(theirs));
    assert_eq!(s.t.bells.is_pending(theirs), Ok(false));
    assert_eq!(s.t.events.vcpu(theirs), VcpuId::BOOT);
    s.t.memory.store_u64(s.t.upcall().vcpu_info, 0).unwrap();
    s.t.memory.store_u64(Maddr(s.t.upcall().vcpu_info.0 + 8), 0).unwrap();
    s.send(theirs).unwrap();
    assert!(s.state_of(0).0, "it is the first one's now");
    let other = s.bind_ipi(1).unwrap();
    s.send(other).unwrap();
    s.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_RESET, EvtchnReset { dom: 0x7ff0 }).unwrap();
    for port in [theirs, other] {
        assert_eq!((s.t.bells.is_pending(port), s.t.events.vcpu(port)), (Ok(false), VcpuId::BOOT));
    }
}

/// XSA-155, for the largest structure of all: another vCPU changes it while it is read. What is used is what was
/// checked.
#[test]
fn xsa_155_a_context_is_used_as_it_was_checked() {
    const VCPUS: u32 = 32;
    let over = AtomicBool::new(false);
    let mut taken = 0;
    for _ in 0..8 {
        let mut s = Several::new(VCPUS as usize);
        let context = s.context();
        s.t.write_at(va(CONTEXT), &context).unwrap();
        let rip = std::mem::offset_of!(VcpuGuestContext, user_regs) + 128;
        let at = Maddr((s.t.mfn(CONTEXT) << 12) + rip as u64);
        let memory = Arc::clone(&s.t.memory);
        assert_eq!(memory.load_u64(at), Ok(TARGET));
        over.store(false, Ordering::Release);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    memory.store_u64(at, 1 << 47).unwrap();
                    memory.store_u64(at, TARGET).unwrap();
                }
            });
            for vcpu in 1..VCPUS {
                match s.op(VCPUOP_INITIALISE, vcpu, va(CONTEXT)) {
                    Ok(_) => {
                        let peer = s.t.peers.get(VcpuId::new(vcpu).unwrap()).unwrap();
                        assert_eq!(peer.context.as_ref().unwrap().regs.rip, TARGET);
                        taken += 1;
                    }
                    Err(errno) => assert_eq!(errno, Errno::EINVAL),
                }
            }
            over.store(true, Ordering::Release);
        });
    }
    assert!(taken > 0);
}
