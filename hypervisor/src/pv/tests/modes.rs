//! The guest's two modes: which address space, stack, selectors and GS base go with each, and the frames
//! that lead from one to the other.

use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};
use paravane_abi::trap::{
    FRAME_CS_UPCALL_MASK_SHIFT, IretContext, PFEC_USER, PFEC_WRITE, TI_IF, VGCF_IN_SYSCALL,
};
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;
use proptest::prelude::*;

use crate::machine::memory::Mfn;
use crate::pv::vcpu::Callback;
use crate::testing::pv::{FREE, L4, NOWHERE, SCRATCH, STACK, TestDomain, va};
use crate::x86::exception::Fault;
use crate::x86::rflags::{IF, RF};

const USER_L4: u64 = 30;
const USER_L3: u64 = 31;
const HANDLER: u64 = va(FREE);
const USER_RIP: u64 = va(FREE + 1);
const USER_SP: u64 = va(FREE + 3);

/// A domain whose user mode can be entered, with GS bases that tell the modes apart.
fn domain() -> TestDomain {
    let mut t = TestDomain::new();
    t.set_user_root(USER_L4, USER_L3);
    t.vcpu.kernel_sp = va(STACK + 1);
    t.vcpu.regs.gs_base = 0xaaaa;
    t.vcpu.other_gs_base = 0xbbbb;
    t
}

const fn to_user() -> IretContext {
    IretContext {
        rax: 1,
        r11: 2,
        rcx: 3,
        flags: 0,
        rip: USER_RIP,
        cs: FLAT_USER_CS as u64,
        rflags: IF | 2,
        rsp: USER_SP,
        ss: FLAT_USER_SS as u64,
    }
}

fn iret(t: &mut TestDomain, frame: IretContext) {
    t.write_at(va(SCRATCH), &frame).unwrap();
    t.vcpu.regs.rsp = va(SCRATCH);
    t.cx().iret();
}

fn in_user_mode() -> TestDomain {
    let mut t = domain();
    iret(&mut t, to_user());
    assert_eq!(t.end, None);
    t
}

/// The words of a frame that was just pushed.
fn pushed<const N: usize>(t: &TestDomain) -> [u64; N] {
    t.read_at(t.vcpu.regs.rsp).unwrap()
}

#[test]
fn iret_goes_to_user_mode_and_a_system_call_comes_back() {
    let mut t = in_user_mode();
    let v = &t.vcpu;
    assert!(!v.kernel_mode);
    assert_eq!((v.regs.rip, v.regs.rsp, v.regs.rax, v.regs.rcx, v.regs.r11), (USER_RIP, USER_SP, 1, 3, 2));
    assert_eq!((v.regs.gs_base, v.other_gs_base), (0xbbbb, 0xaaaa));
    assert_eq!(t.vcpu.space.root(), Mfn(t.mfn(USER_L4)));
    assert_eq!(t.upcall().state(&t.memory).unwrap(), (false, false), "IF clears the mask");

    t.vcpu.regs.rcx = 0x77;
    t.cx().enter_handler(Callback { address: HANDLER, mask_events: true }, &[]);
    let v = &t.vcpu;
    assert!(v.kernel_mode);
    assert_eq!((v.regs.rip, v.regs.gs_base, v.other_gs_base), (HANDLER, 0xaaaa, 0xbbbb));
    assert_eq!(t.vcpu.space.root(), Mfn(t.mfn(L4)));
    let frame = pushed(&t);
    assert_eq!(frame, [0x77, 2, USER_RIP, FLAT_USER_CS.into(), IF | 2, USER_SP, FLAT_USER_SS.into()]);
    assert_eq!(v.regs.rsp, va(STACK + 1) - 56, "on the stack of stack_switch, and nothing below it spared");
    assert_eq!(t.upcall().state(&t.memory).unwrap(), (false, true));
}

#[test]
fn a_return_as_by_sysret_has_flat_selectors_and_loses_rcx_and_r11() {
    let mut t = domain();
    iret(&mut t, IretContext { flags: VGCF_IN_SYSCALL, cs: 0x33, ss: 0x2b, ..to_user() });
    let v = &t.vcpu;
    assert_eq!(
        (v.regs.rcx, v.regs.r11, v.regs.selectors.cs, v.regs.selectors.ss),
        (USER_RIP, IF | 2, FLAT_USER_CS, FLAT_USER_SS)
    );
    assert_eq!(t.end, None);
}

#[test]
fn exceptions_of_both_modes() {
    let mut t = in_user_mode();
    t.cx().switch_mode(true);
    t.handle(14, HANDLER, TI_IF);
    t.handle(6, HANDLER + 16, 0);
    t.cx().switch_mode(false);
    t.cx().deliver_fault(Fault { vector: 14, error_code: PFEC_WRITE, address: NOWHERE });
    let [_, _, code, rip, cs, ..] = pushed::<8>(&t);
    assert_eq!((code, rip, cs), (u64::from(PFEC_WRITE | PFEC_USER), USER_RIP, FLAT_USER_CS.into()));
    assert_eq!(t.vcpu.control.cr2, NOWHERE);

    // The kernel's own: no user bit, privilege level 0 and the saved mask in CS, the red zone spared.
    let sp = t.vcpu.regs.rsp;
    t.cx().deliver_fault(Fault { vector: 14, error_code: PFEC_WRITE | PFEC_USER, address: NOWHERE + 8 });
    let [_, _, code, rip, cs, flags, rsp, ss] = pushed::<8>(&t);
    assert_eq!((code, rip), (u64::from(PFEC_WRITE), HANDLER));
    assert_eq!(cs, 0xe030 | 1 << FRAME_CS_UPCALL_MASK_SHIFT);
    assert_eq!((flags & IF, rsp, ss), (0, sp, FLAT_USER_SS.into()));
    assert_eq!((flags & RF, t.vcpu.regs.rflags & RF), (RF, 0), "a fault's frame, and not its handler");
    assert!(t.vcpu.regs.rsp + 64 <= sp - 128);

    t.upcall().set_mask(&t.memory, false).unwrap();
    t.cx().deliver_fault(Fault { vector: 6, error_code: 0, address: 0 });
    assert_eq!(pushed::<3>(&t)[2], HANDLER, "no error code");
    assert_eq!(t.upcall().state(&t.memory).unwrap(), (false, false), "the handler did not ask for a mask");
}

#[test]
fn a_trap_is_reported_after_its_instruction_and_has_no_rf() {
    let mut t = in_user_mode();
    t.cx().switch_mode(true);
    t.handle(3, HANDLER, 0);
    t.cx().deliver_fault(Fault { vector: 3, error_code: 0, address: 0 });
    assert_eq!(pushed::<6>(&t)[4] & RF, 0);
}

#[test]
fn a_context_that_cannot_be_loaded_is_a_protection_fault_there() {
    let bad = [
        (IretContext { rip: 1 << 47, ..to_user() }, 0),
        (IretContext { rip: 1 << 47, flags: VGCF_IN_SYSCALL, ..to_user() }, 0),
        (IretContext { cs: 0x33, ..to_user() }, 0x30),
        (IretContext { cs: 0xe023, ..to_user() }, 0xe020),
        (IretContext { ss: 0, ..to_user() }, 0),
        (IretContext { ss: 0xe033, ..to_user() }, 0xe030),
    ];
    for (frame, error_code) in bad {
        let mut t = domain();
        t.handle(13, HANDLER, TI_IF);
        iret(&mut t, frame);
        assert_eq!(t.end, None, "{frame:?}");
        assert_eq!((t.vcpu.regs.rip, t.vcpu.kernel_mode), (HANDLER, true), "{frame:?}");
        let [_rcx, _r11, code, rip, cs, ..] = pushed::<8>(&t);
        assert_eq!((code, rip), (error_code, frame.rip), "{frame:?}");
        assert_eq!(cs & 3, 3, "it was user mode that could not be entered");
        assert_eq!(t.upcall().state(&t.memory).unwrap(), (false, true));

        let mut t = domain();
        iret(&mut t, frame);
        assert!(t.death().unwrap().contains("no handler for vector 13"), "{frame:?}");
    }
}

#[test]
fn what_no_callback_can_mend_ends_the_guest() {
    let mut t = TestDomain::new();
    iret(&mut t, to_user());
    assert!(t.death().unwrap().starts_with("iret to user mode, for which the guest has set no page tables"));

    let mut t = domain();
    t.vcpu.regs.rsp = NOWHERE;
    t.cx().iret();
    assert!(t.death().unwrap().starts_with("iret with an unreadable frame at 0x7ffffffff000"));

    let mut t = in_user_mode();
    t.vcpu.kernel_sp = NOWHERE;
    t.cx().enter_handler(Callback { address: HANDLER, mask_events: true }, &[]);
    assert!(t.death().unwrap().starts_with("cannot push a frame for the guest's handler: its stack"));

    let mut t = in_user_mode();
    t.cx().deliver_fault(Fault { vector: 13, error_code: 0x10, address: 0 });
    assert!(t.death().unwrap().contains("no handler for vector 13"));
}

#[test]
fn the_kernels_own_selectors_come_back_without_their_privilege() {
    let mut t = domain();
    t.unmap(20);
    t.poke(20, 2, 0x00af_9b00_0000_ffff);
    t.poke(20, 3, 0x00cf_9300_0000_ffff);
    t.set_gdt(&[20], 4);
    iret(&mut t, IretContext { cs: 0x10, ss: 0x18, rsp: va(STACK) + 512, ..to_user() });
    assert!(t.vcpu.kernel_mode);
    assert_eq!((t.vcpu.regs.selectors.cs, t.vcpu.regs.selectors.ss), (0x13, 0x1b));
    t.cx().enter_handler(Callback { address: HANDLER, mask_events: false }, &[]);
    let [_, _, _, cs, _, _, ss] = pushed::<7>(&t);
    assert_eq!((cs & 0xffff, ss), (0x10, 0x1b));
    assert_eq!(
        (t.vcpu.regs.selectors.cs, t.vcpu.regs.selectors.ss),
        (FLAT_USER_CS, FLAT_USER_SS),
        "handlers run on the flat ones"
    );
}

#[test]
fn the_io_privilege_level_is_in_the_flags_when_asked_for() {
    let mut t = domain();
    t.vcpu.io.level = 2;
    t.cx().enter_handler(Callback { address: HANDLER, mask_events: false }, &[]);
    assert_eq!(pushed::<5>(&t)[4] >> 12 & 3, 0);
    t.assists = 1 << VMASST_TYPE_ARCHITECTURAL_IOPL;
    t.cx().enter_handler(Callback { address: HANDLER, mask_events: false }, &[]);
    assert_eq!(pushed::<5>(&t)[4] >> 12 & 3, 2);
    iret(&mut t, IretContext { rflags: IF | 3 << 12, ..to_user() });
    assert_eq!((t.vcpu.io.level, t.vcpu.regs.rflags >> 12 & 3), (3, 0));
}

#[test]
fn the_first_use_of_the_fpu_traps_once() {
    let mut t = domain();
    t.handle(7, HANDLER, 0);
    t.call(paravane_abi::hypercall::FPU_TASKSWITCH, [1]).unwrap();
    assert!(t.vcpu.control.task_switched && t.vcpu.space.task_switched());
    t.cx().deliver_fault(Fault { vector: 7, error_code: 0, address: 0 });
    assert_eq!(t.vcpu.regs.rip, HANDLER);
    assert!(!t.vcpu.control.task_switched && !t.vcpu.space.task_switched(), "the handler may use it");
    t.call(paravane_abi::hypercall::FPU_TASKSWITCH, [0]).unwrap();
    assert!(!t.vcpu.space.task_switched());
}

#[test]
fn a_jump_out_of_the_canonical_range_is_a_protection_fault() {
    let mut t = domain();
    t.handle(13, HANDLER, 0);
    t.vcpu.regs.rip = 1 << 47;
    t.cx().check_rip();
    assert_eq!(t.vcpu.regs.rip, HANDLER);
    assert_eq!(pushed::<4>(&t)[2..], [0, 1 << 47]);
}

proptest! {
    /// Whatever a frame says, the guest ends or continues with what a processor can load.
    #[test]
    fn any_iret_frame(words in prop::array::uniform9(any::<u64>()), flat: bool, low: bool, failsafe: bool) {
        let mut t = domain();
        let mut frame: IretContext = zerocopy::transmute!(words);
        if flat {
            (frame.cs, frame.ss) = (FLAT_USER_CS.into(), FLAT_USER_SS.into());
        }
        if low {
            frame.rip &= (1 << 47) - 1;
        }
        t.vcpu.failsafe.address = if failsafe { HANDLER } else { 0 };
        iret(&mut t, frame);
        let selectors = t.vcpu.regs.selectors;
        let usable = t.cx().is_code_64(selectors.cs) && t.cx().is_stack(selectors.ss);
        let v = &t.vcpu;
        if t.end.is_none() {
            prop_assert!(paravane_abi::addr::is_canonical(v.regs.rip));
            prop_assert!(usable);
            prop_assert_eq!(v.regs.rflags & (3 << 12 | 1 << 17), 0);
            let root = if v.kernel_mode { t.vcpu.tables.kernel_root() } else { t.vcpu.tables.user_root().unwrap() };
            prop_assert_eq!(t.vcpu.space.root(), root);
        }
    }
}
