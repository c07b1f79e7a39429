//! Holes in the ways into and out of a paravirtual guest, by advisory, as a guest would try them here.
//!
//! Facts: the advisories' titles and texts (xenbits.xen.org/xsa).

use paravane_abi::callback::*;
use paravane_abi::domid::DOMID_SELF;
use paravane_abi::errno::Errno;
use paravane_abi::grant::{GNTTABOP_SETUP_TABLE, GnttabSetupTable};
use paravane_abi::hypercall as nr;
use paravane_abi::mmu::{MMUEXT_SET_LDT, MmuextOp};
use paravane_abi::nmi::{XENNMI_REGISTER_CALLBACK, XennmiCallback};
use paravane_abi::segment::{FLAT_KERNEL_CS, FLAT_USER_CS, FLAT_USER_SS, SEGBASE_FS, SEGBASE_GS_KERNEL};
use paravane_abi::trap::{IretContext, TrapInfo};

use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::pv::vcpu::Callback;
use crate::testing::pv::{FREE, RO, SCRATCH, STACK, TestDomain, va};
use crate::x86::exception::Fault;

/// What no instruction pointer can hold.
const NOT_CANONICAL: [u64; 4] = [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff, 0x0123_4567_89ab_cdef];
const HANDLER: u64 = va(FREE);
const KERNEL_GS: u64 = 0xaaaa_0000;
const USER_GS: u64 = 0xbbbb_0000;

/// A domain whose user mode can be entered, with a handler for #GP.
fn domain() -> TestDomain {
    let mut t = TestDomain::new();
    t.set_user_root(30, 31);
    t.handle(13, HANDLER, 0);
    t.vcpu.kernel_sp = va(STACK + 1);
    t
}

fn iret(t: &mut TestDomain, rip: u64, cs: u16) {
    let frame = IretContext {
        rip,
        cs: cs.into(),
        ss: FLAT_USER_SS.into(),
        rflags: 0x202,
        rsp: va(FREE + 3),
        ..to_user()
    };
    t.write_at(va(SCRATCH), &frame).unwrap();
    t.vcpu.regs.rsp = va(SCRATCH);
    t.cx().iret();
}

const fn to_user() -> IretContext {
    IretContext { rax: 0, r11: 0, rcx: 0, flags: 0, rip: 0, cs: 0, rflags: 0, rsp: 0, ss: 0 }
}

/// XSA-7: a return to an address that is not canonical faulted in the hypervisor, on the guest's stack. No such address
/// is taken for an entry point, and one that a guest goes to is its own #GP.
#[test]
fn xsa_7_no_entry_and_no_return_at_an_address_that_is_not_canonical() {
    for address in NOT_CANONICAL {
        let mut t = domain();
        for cs in [FLAT_USER_CS, FLAT_KERNEL_CS & !3] {
            iret(&mut t, address, cs);
            assert_eq!(
                (t.vcpu.regs.rip, t.vcpu.kernel_mode, t.end.is_none()),
                (HANDLER, true, true),
                "{address:#x}"
            );
            let [_, _, error_code, rip] = t.read_at::<[u64; 4]>(t.vcpu.regs.rsp).unwrap();
            assert_eq!((error_code, rip), (0, address));
        }
        // A SYSCALL at the end of the lower half.
        (t.vcpu.regs.rip, t.vcpu.regs.rsp) = (address, va(STACK + 1));
        t.cx().check_rip();
        assert_eq!((t.vcpu.regs.rip, t.end.is_none()), (HANDLER, true));

        let trap = TrapInfo { vector: 14, address, ..TrapInfo::default() };
        t.write_at(va(SCRATCH), &[trap, TrapInfo::default()]).unwrap();
        assert_eq!(t.call(nr::SET_TRAP_TABLE, [va(SCRATCH)]), Err(Errno::EINVAL));
        let kinds = [
            CALLBACKTYPE_EVENT,
            CALLBACKTYPE_FAILSAFE,
            CALLBACKTYPE_SYSCALL,
            CALLBACKTYPE_SYSCALL32,
            CALLBACKTYPE_SYSENTER,
            CALLBACKTYPE_NMI,
        ];
        for kind in kinds {
            let op = CallbackRegister { kind, address, ..Default::default() };
            assert_eq!(
                t.op(nr::CALLBACK_OP, CALLBACKOP_REGISTER, op).map(|r| r.0),
                Err(Errno::EINVAL),
                "{kind}"
            );
        }
        let op = XennmiCallback { handler_address: address, ..Default::default() };
        assert_eq!(t.op(nr::NMI_OP, XENNMI_REGISTER_CALLBACK, op).map(|r| r.0), Err(Errno::EINVAL));
        assert_eq!(t.call(nr::SET_CALLBACKS, [address; 3]), Ok(0), "which has no errors");
        let v = &t.vcpu;
        let registered =
            [v.event, v.failsafe, v.syscall, v.syscall32, v.sysenter].map(|callback| callback.address);
        assert_eq!((registered, v.traps[14].address, v.traps[2].address), ([0; 5], 0, 0));
    }
}

/// A handler is entered on the flat 64-bit segments, whatever the interrupted code ran on, also where kernel and user
/// have one root: the engine's part is its contract's `entries_are_in_64_bit_mode`.
#[test]
fn handlers_are_entered_on_flat_segments_whatever_ran() {
    let mut t = domain();
    for cs in [0xe023, 0x33, 0x23, FLAT_USER_CS] {
        (t.vcpu.regs.selectors.cs, t.vcpu.regs.selectors.ss) = (cs, 0x2b);
        t.vcpu.kernel_mode = false;
        t.cx().enter_handler(Callback { address: HANDLER, mask_events: true }, &[]);
        let now = t.vcpu.regs.selectors;
        assert_eq!((now.cs, now.ss, t.vcpu.kernel_mode), (FLAT_KERNEL_CS, FLAT_USER_SS, true));
    }
}

/// XSA-293: a guest that wrote FS and GS bases natively had them mixed up at a switch. Each mode's GS base is what it
/// was when that mode was left, by whatever way; FS has one base for both.
#[test]
fn xsa_293_each_mode_has_its_gs_base_back() {
    let mut t = domain();
    t.vcpu.regs.gs_base = KERNEL_GS;
    t.vcpu.other_gs_base = USER_GS;
    let (mut kernel, mut user, mut fs) = (KERNEL_GS, USER_GS, 0);
    for round in 0..6u64 {
        iret(&mut t, va(FREE + 1), FLAT_USER_CS);
        assert_eq!(
            (t.vcpu.regs.gs_base, t.vcpu.other_gs_base, t.vcpu.regs.fs_base),
            (user, kernel, fs),
            "{round}"
        );
        // WRGSBASE and WRFSBASE in the program, which do not trap.
        (user, fs) = (USER_GS + round, round << 12);
        (t.vcpu.regs.gs_base, t.vcpu.regs.fs_base) = (user, fs);
        match round % 3 {
            0 => t.cx().enter_handler(Callback { address: HANDLER, mask_events: true }, &[]),
            1 => t.cx().deliver_fault(Fault { vector: 13, error_code: 0, address: 0 }),
            _ => {
                // A return that fails is a fault of where it went.
                t.cx().enter_handler(Callback { address: HANDLER, mask_events: true }, &[]);
                iret(&mut t, 1 << 47, FLAT_USER_CS);
            }
        }
        assert_eq!(
            (t.vcpu.regs.gs_base, t.vcpu.other_gs_base, t.vcpu.regs.fs_base),
            (kernel, user, fs),
            "{round}"
        );
        kernel = KERNEL_GS + round;
        t.vcpu.regs.gs_base = kernel;
    }
    for which in [SEGBASE_FS, SEGBASE_GS_KERNEL] {
        for base in NOT_CANONICAL {
            assert_eq!(t.call(nr::SET_SEGMENT_BASE, [which.into(), base]), Err(Errno::EINVAL));
        }
    }
}

/// XSA-298: descriptors were read beyond the table that the guest had set, whose memory may be anything.
#[test]
fn xsa_298_no_descriptor_beyond_the_tables_limit() {
    const TABLE: u64 = 40;
    const CODE_64: u64 = 0x00af_fb00_0000_ffff;
    let mut t = domain();
    let local = |index: u16| index << 3 | 7;
    (0..512).for_each(|index| t.poke(TABLE, index, CODE_64));
    let read_only = t.entry(TABLE, RO);
    t.map(TABLE, read_only).unwrap();
    for count in [0, 1, 3, 512] {
        let op = MmuextOp { cmd: MMUEXT_SET_LDT, arg1: va(TABLE), arg2: count, ..MmuextOp::default() };
        t.write_at(va(SCRATCH), &op).unwrap();
        t.call(nr::MMUEXT_OP, [va(SCRATCH), 1, 0, DOMID_SELF.into()]).unwrap();
        for index in [0, 1, 2, 3, 4, 511, 512, 8191] {
            assert_eq!(t.cx().is_code_64(local(index)), u64::from(index) < count, "{index} of {count}");
        }
    }
    t.set_gdt(&[TABLE], 8);
    assert!(
        t.cx().is_code_64(7 << 3 | 3) && !t.cx().is_code_64(512 << 3 | 3),
        "the second frame does not exist"
    );
}

/// XSA-100: memory that had been another's was handed out unscrubbed. A machine's memory holds nothing of what was in
/// the one before it, and neither do the hypervisor's frames that a guest is shown.
#[test]
fn xsa_100_memory_holds_nothing_of_another_domain() {
    const FRAMES: u64 = 64;
    for backing in [|| Backing::Anonymous, || Backing::Memfd] {
        for _ in 0..4 {
            let memory = MachineMemory::new(8, FRAMES, backing()).unwrap();
            for mfn in 0..8 + FRAMES {
                let page: [u64; PAGE_SIZE as usize / 8] = memory.read_obj(Mfn(mfn).maddr()).unwrap();
                assert!(page.iter().all(|&word| word == 0), "frame {mfn}");
                memory
                    .write_obj(Mfn(mfn).maddr(), &[0x5ec2_e700_0000_0000u64 | mfn; PAGE_SIZE as usize / 8])
                    .unwrap();
            }
        }
    }
    let mut t = TestDomain::new();
    let op = GnttabSetupTable {
        dom: crate::pv::domain::DOMID,
        nr_frames: 4,
        frame_list: va(FREE),
        ..Default::default()
    };
    t.write_at(va(SCRATCH), &op).unwrap();
    t.call(nr::GRANT_TABLE_OP, [GNTTABOP_SETUP_TABLE.into(), va(SCRATCH), 1]).unwrap();
    for n in 0..4 {
        let frame = t.peek(FREE, n);
        assert_ne!(frame, 0, "a frame was given");
        let page: [u8; PAGE_SIZE as usize] = t.memory.read_obj(Maddr(frame * PAGE_SIZE)).unwrap();
        // The first eight entries, of eight bytes each, are the domain builder's.
        let builders = if n == 0 { 64 } else { 0 };
        assert!(page.iter().skip(builders).all(|&byte| byte == 0));
    }
}
