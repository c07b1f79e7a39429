//! Loads of segment registers, and transfers to other code segments, by the guest's own tables.

use paravane_abi::mmu::{MMUEXT_SET_LDT, MmuextOp};
use proptest::prelude::*;

use super::*;
use crate::ledger::PrivOp;
use crate::testing::pv::SCRATCH;

/// PFN of the guest's GDT.
const GDT: u64 = FREE + 20;
/// Linear address of operands.
const DATA: u64 = va(FREE + 10);
/// Where transfers go.
const TARGET: u64 = RIP + 0x40;
const FLAT_CS: u16 = 0xe033;
const FLAT_SS: u16 = 0xe02b;

/// Descriptors of the guest's GDT, by selector.
const TABLE: [(u16, u64); 8] = [
    (CODE, 0x00af_9b00_0000_ffff),
    (BASED, 0x12c0_f334_5678_ffff),
    (ABSENT, 0x00cf_7300_0000_ffff),
    (PRIVILEGED, 0x00cf_9300_0000_ffff),
    (CODE_32, 0x00cf_fb00_0000_ffff),
    (READ_ONLY, 0x00cf_f100_0000_ffff),
    (UNREADABLE, 0x00af_f900_0000_ffff),
    (ABSENT_CODE, 0x00af_7b00_0000_ffff),
];
const CODE: u16 = 0x4b;
const BASED: u16 = 0x33;
const ABSENT: u16 = 0x3b;
const PRIVILEGED: u16 = 0x43;
const CODE_32: u16 = 0x53;
const READ_ONLY: u16 = 0x5b;
const UNREADABLE: u16 = 0x63;
const ABSENT_CODE: u16 = 0x6b;

const MOV_DS_EAX: &[u8] = &[0x8e, 0xd8];
const MOV_ES_MEM_RBX: &[u8] = &[0x8e, 0x03];
const MOV_FS_EAX: &[u8] = &[0x8e, 0xe0];
const MOV_GS_R9: &[u8] = &[0x49, 0x8e, 0xe9];
const MOV_SS_EAX: &[u8] = &[0x8e, 0xd0];
const POP_FS: &[u8] = &[0x0f, 0xa1];
const POP_GS_16: &[u8] = &[0x66, 0x0f, 0xa9];
const LSS_ECX_RBX: &[u8] = &[0x0f, 0xb2, 0x0b];
const LFS_ECX_RBX: &[u8] = &[0x0f, 0xb4, 0x0b];
const LGS_CX_RBX: &[u8] = &[0x66, 0x0f, 0xb5, 0x0b];
const IRETQ: &[u8] = &[0x48, 0xcf];
const IRETD: &[u8] = &[0xcf];
const LRETQ: &[u8] = &[0x48, 0xcb];
const LRETQ_16: &[u8] = &[0x48, 0xca, 0x10, 0];
const LCALL_RBX: &[u8] = &[0xff, 0x1b];
const LJMP_RBX: &[u8] = &[0xff, 0x2b];

/// The processor's #GP for a selector that the host's table does not have.
fn refusal(selector: u16) -> Fault {
    Fault { vector: TRAP_GP_FAULT, error_code: u32::from(selector & !3), address: 0 }
}

/// A kernel with a GDT of [`TABLE`].
fn with_table() -> TestDomain {
    let mut t = domain();
    t.unmap(GDT);
    for (selector, descriptor) in TABLE {
        t.poke(GDT, u64::from(selector >> 3), descriptor);
    }
    t.set_gdt(&[GDT], 512);
    t
}

/// Executes a load of `selector`, which must be completed.
fn loads(t: &mut TestDomain, code: &[u8], selector: u16) {
    t.vcpu.regs.rax = 0xffff_0000 | u64::from(selector);
    t.vcpu.regs.r9 = t.vcpu.regs.rax;
    assert_eq!(
        completes(t, code, refusal(selector)),
        Cause::PrivilegedInstruction(PrivOp::SegmentLoad),
        "{selector:#x}"
    );
}

/// Executes a load of `selector`; the exception that the guest gets.
fn refuses(t: &mut TestDomain, code: &[u8], selector: u16) -> (u64, u64) {
    t.vcpu.regs.rax = u64::from(selector);
    let (vector, [error_code, rip, _]) = raises(t, code, refusal(selector));
    assert_eq!(rip, RIP, "a fault leaves RIP at the instruction");
    (vector, error_code)
}

/// Executes `code` with `words` on the stack, or rather below its end.
fn with_stack(t: &mut TestDomain, code: &[u8], words: &[u64], cs: u16) {
    let rsp = va(STACK + 1) - 256;
    t.guest().write_bytes(RIP, code).unwrap();
    for (i, word) in (0u64..).zip(words) {
        t.write_at(rsp + i * 8, word).unwrap();
    }
    (t.vcpu.regs.rip, t.vcpu.regs.rsp) = (RIP, rsp);
    handle(&mut t.cx(), refusal(cs));
    assert_eq!(t.end, None);
}

/// The vector, error code and RIP of the frame that a guest has just got.
fn raised(t: &TestDomain) -> (u64, u64, u64) {
    let [_, _, error_code, rip] = t.read_at::<[u64; 4]>(t.vcpu.regs.rsp).unwrap();
    (t.vcpu.regs.rip.wrapping_sub(HANDLERS), error_code, rip)
}

#[test]
fn a_kernel_returns_from_an_upcall_by_iretq() {
    let mut t = domain();
    t.vcpu.regs.rflags = 0x202;
    let rsp = va(STACK) + 0x100;
    with_stack(&mut t, IRETQ, &[TARGET, FLAT_CS.into(), 0x3247, rsp, FLAT_SS.into()], FLAT_CS);
    let v = &t.vcpu;
    assert_eq!(
        (v.regs.rip, v.regs.rsp, v.regs.selectors.cs, v.regs.selectors.ss),
        (TARGET, rsp, FLAT_CS, FLAT_SS)
    );
    assert_eq!(v.regs.rflags, 0x247, "arithmetic flags, and not the privilege level");
    assert!(t.upcall().state(&t.memory).unwrap().1, "IRETQ at CPL 3 does not touch the interrupt flag");
}

#[test]
fn an_iretq_that_cannot_be_is_the_guests_fault() {
    let mut t = with_table();
    let rsp = va(STACK) + 0x100;
    for (rip, cs, ss, expected) in [
        (TARGET, 0xe030, FLAT_SS, (13, 0xe030)),
        (TARGET, FLAT_CS, 0xe028, (13, 0xe028)),
        (TARGET, FLAT_CS, 0, (13, 0)),
        (TARGET, 3, FLAT_SS, (13, 0)),
        (TARGET, FLAT_SS, FLAT_SS, (13, 0xe028)),
        (TARGET, FLAT_CS, ABSENT, (12, 0x38)),
        (TARGET, ABSENT_CODE, FLAT_SS, (11, 0x68)),
        (TARGET, CODE_32, FLAT_SS, (13, 0x50)),
        (1 << 47, FLAT_CS, FLAT_SS, (13, 0)),
    ] {
        with_stack(&mut t, IRETQ, &[rip, cs.into(), 0x202, rsp, ss.into()], cs);
        let (vector, error_code, at) = raised(&t);
        assert_eq!(((vector, error_code), at), (expected, RIP), "cs {cs:#x}, ss {ss:#x}");
    }
    // A frame of 32-bit words.
    let words = |low: u64, high: u64| low | high << 32;
    let frame = [words(TARGET, FLAT_CS.into()), words(0x202, rsp), u64::from(FLAT_SS)];
    with_stack(&mut t, IRETD, &frame, FLAT_CS);
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rsp), (TARGET, rsp));
}

#[test]
fn the_flat_selectors_load_without_a_table() {
    let mut t = domain();
    t.write_at(DATA, &FLAT_SS).unwrap();
    t.vcpu.regs.rbx = DATA;
    t.vcpu.regs.selectors.ss = 0;
    for code in [MOV_DS_EAX, MOV_ES_MEM_RBX, MOV_FS_EAX, MOV_GS_R9, MOV_SS_EAX] {
        loads(&mut t, code, FLAT_SS);
    }
    assert_eq!(t.vcpu.regs.selectors.ss, FLAT_SS);
    loads(&mut t, MOV_DS_EAX, FLAT_CS);
    for selector in [0xe03b, 0x2b, 0x33, 0x7f, 0xfffb, 0xe00b, 0xe013] {
        assert_eq!(refuses(&mut t, MOV_DS_EAX, selector), (13, u64::from(selector & !3)));
    }
    assert_eq!(refuses(&mut t, MOV_SS_EAX, FLAT_CS), (13, 0xe030));
    assert_eq!(refuses(&mut t, MOV_SS_EAX, 0xe028), (13, 0xe028), "the privilege level must be the guest's");
}

#[test]
fn a_base_of_the_guests_descriptor_is_what_fs_and_gs_get() {
    let mut t = with_table();
    for (code, is_fs) in [(MOV_FS_EAX, true), (MOV_GS_R9, false)] {
        (t.vcpu.regs.fs_base, t.vcpu.regs.gs_base) = (1, 1);
        loads(&mut t, code, BASED);
        let bases = (t.vcpu.regs.fs_base, t.vcpu.regs.gs_base);
        assert_eq!(bases, if is_fs { (0x1234_5678, 1) } else { (1, 0x1234_5678) });
        loads(&mut t, code, FLAT_SS);
        assert_eq!((t.vcpu.regs.fs_base, t.vcpu.regs.gs_base), if is_fs { (0, 1) } else { (1, 0) });
    }
    loads(&mut t, MOV_DS_EAX, PRIVILEGED);
    loads(&mut t, MOV_DS_EAX, READ_ONLY);
    loads(&mut t, MOV_DS_EAX, CODE);
    assert_eq!(refuses(&mut t, MOV_DS_EAX, ABSENT), (11, 0x38));
    assert_eq!(refuses(&mut t, MOV_SS_EAX, ABSENT), (12, 0x38));
    assert_eq!(refuses(&mut t, MOV_SS_EAX, READ_ONLY), (13, 0x58));
    assert_eq!(refuses(&mut t, MOV_DS_EAX, UNREADABLE), (13, 0x60));
    assert_eq!(refuses(&mut t, MOV_DS_EAX, 0x1003), (13, 0x1000), "past the table");
}

#[test]
fn a_load_in_a_user_program_goes_by_the_same_tables() {
    let mut t = with_table();
    t.vcpu.kernel_mode = false;
    t.vcpu.kernel_sp = va(STACK + 1);
    loads(&mut t, MOV_FS_EAX, BASED);
    assert_eq!(t.vcpu.regs.fs_base, 0x1234_5678);
    assert_eq!(refuses(&mut t, MOV_DS_EAX, ABSENT), (11, 0x38));
}

#[test]
fn selectors_come_from_the_stack_and_from_far_pointers() {
    let mut t = with_table();
    for (code, popped) in [(POP_FS, 8), (POP_GS_16, 2)] {
        with_stack(&mut t, code, &[0xabcd_0000 | u64::from(BASED)], BASED);
        assert_eq!(t.vcpu.regs.rsp, va(STACK + 1) - 256 + popped);
        assert_eq!(t.vcpu.regs.rip, RIP + code.len() as u64);
    }
    assert_eq!((t.vcpu.regs.fs_base, t.vcpu.regs.gs_base), (0x1234_5678, 0x1234_5678));

    t.vcpu.regs.rbx = DATA;
    (t.vcpu.regs.fs_base, t.vcpu.regs.gs_base) = (0, 0);
    t.write_at(DATA, &(0x8765_4321 | u64::from(BASED) << 32)).unwrap();
    t.vcpu.regs.rcx = u64::MAX;
    loads(&mut t, LFS_ECX_RBX, BASED);
    assert_eq!((t.vcpu.regs.rcx, t.vcpu.regs.fs_base), (0x8765_4321, 0x1234_5678));
    loads(&mut t, LSS_ECX_RBX, BASED);
    assert_eq!(t.vcpu.regs.selectors.ss, BASED);
    t.write_at(DATA, &(0x1111 | u64::from(BASED) << 16)).unwrap();
    loads(&mut t, LGS_CX_RBX, BASED);
    assert_eq!((t.vcpu.regs.rcx, t.vcpu.regs.gs_base), (0x8765_1111, 0x1234_5678));
    // What cannot be loaded leaves the other register too.
    t.write_at(DATA, &(0x9999 | u64::from(ABSENT) << 32)).unwrap();
    assert_eq!(refuses(&mut t, LFS_ECX_RBX, ABSENT), (11, 0x38));
    t.vcpu.regs.rbx = crate::testing::pv::NOWHERE;
    assert_eq!(raises(&mut t, LFS_ECX_RBX, refusal(BASED)).0, 14, "the operand is gone by now");
}

#[test]
fn far_transfers_go_to_64_bit_code_of_the_guests() {
    let mut t = with_table();
    for cs in [FLAT_CS, CODE] {
        for (code, popped) in [(LRETQ, 16), (LRETQ_16, 32)] {
            with_stack(&mut t, code, &[TARGET, cs.into()], cs);
            let v = &t.vcpu;
            assert_eq!(
                (v.regs.rip, v.regs.rsp, v.regs.selectors.cs),
                (TARGET, va(STACK + 1) - 256 + popped, cs)
            );
        }
    }
    with_stack(&mut t, LRETQ, &[TARGET, 0xe030], 0xe030);
    assert_eq!(raised(&t), (13, 0xe030, RIP), "a return does not gain privilege");
    with_stack(&mut t, LRETQ, &[TARGET, CODE_32.into()], CODE_32);
    assert_eq!(raised(&t), (13, 0x50, RIP), "32-bit code is not supported");
    with_stack(&mut t, LRETQ, &[1 << 47, FLAT_CS.into()], FLAT_CS);
    assert_eq!(raised(&t), (13, 0, RIP));

    // Its own privilege level does not count in a jump.
    t.vcpu.regs.selectors.cs = FLAT_CS;
    t.write_at(DATA, &(TARGET | u64::from(CODE & !3) << 32)).unwrap();
    t.vcpu.regs.rbx = DATA;
    with_stack(&mut t, LCALL_RBX, &[], CODE);
    let rsp = va(STACK + 1) - 256 - 8;
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rsp, t.vcpu.regs.selectors.cs), (TARGET, rsp, CODE));
    let back = (RIP + 2) & 0xffff_ffff | u64::from(FLAT_CS) << 32;
    assert_eq!(t.read_at::<u64>(rsp), Ok(back));
    with_stack(&mut t, LJMP_RBX, &[], CODE);
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rsp), (TARGET, rsp + 8), "a jump pushes nothing");
    t.write_at(DATA, &(TARGET | 0x1007 << 32)).unwrap();
    with_stack(&mut t, LCALL_RBX, &[], 0x1007);
    assert_eq!(raised(&t), (13, 0x1004, RIP), "there is no local table");
}

#[test]
fn selectors_of_the_local_table_are_looked_up_in_the_guests_memory() {
    let mut t = domain();
    let op = MmuextOp { cmd: MMUEXT_SET_LDT, arg1: va(SCRATCH + 1), arg2: 4, ..Default::default() };
    t.poke(SCRATCH + 1, 2, 0x12c0_9334_5678_ffff);
    t.poke(SCRATCH + 1, 3, 0x0000_e900_0000_0000);
    t.poke(SCRATCH + 1, 4, 0x12c0_f334_5678_ffff);
    t.write_at(va(SCRATCH), &op).unwrap();
    let this = u64::from(paravane_abi::domid::DOMID_SELF);
    t.call(paravane_abi::hypercall::MMUEXT_OP, [va(SCRATCH), 1, 0, this]).unwrap();
    loads(&mut t, MOV_FS_EAX, 0x17);
    assert_eq!(t.vcpu.regs.fs_base, 0x1234_5678, "its privilege level is raised as in the other table");
    assert_eq!(refuses(&mut t, MOV_FS_EAX, 0x1f), (13, 0x1c), "a task-state segment");
    assert_eq!(refuses(&mut t, MOV_FS_EAX, 0x27), (13, 0x24), "past its end");
}

#[test]
fn code_of_another_width_is_not_decoded_as_64_bit_code() {
    const CLI: &[u8] = &[0xfa];
    let mut t = with_table();
    for (cs, is_decoded) in [(FLAT_CS, true), (CODE, true), (0xe023, false), (CODE_32, false)] {
        t.vcpu.regs.selectors.cs = cs;
        execute(&mut t, CLI, GP);
        assert_eq!(t.vcpu.regs.rip == RIP + 1, is_decoded, "{cs:#x}");
    }
}

#[test]
fn a_single_step_follows_a_load_but_not_one_of_ss() {
    const TF: u64 = 1 << 8;
    let mut t = domain();
    t.vcpu.regs.rax = FLAT_SS.into();
    t.vcpu.regs.rflags |= TF;
    execute(&mut t, MOV_DS_EAX, refusal(FLAT_SS));
    assert_eq!(t.vcpu.regs.rip, HANDLERS + 1);
    t.vcpu.regs.rflags |= TF;
    loads(&mut t, MOV_SS_EAX, FLAT_SS);
}

proptest! {
    /// Whatever the selector and the table: it is loaded, or one of the exceptions for it comes; never a crash.
    #[test]
    fn any_selector_is_loaded_or_refused(
        selector: u16,
        descriptors: [u64; 8],
        code in prop::sample::select(vec![
            MOV_DS_EAX, MOV_FS_EAX, MOV_SS_EAX, POP_FS, LSS_ECX_RBX, IRETQ, IRETD, LRETQ, LRETQ_16, LCALL_RBX, LJMP_RBX,
        ]),
    ) {
        let mut t = domain();
        t.unmap(GDT);
        for (i, descriptor) in (0u64..).zip(descriptors) {
            t.poke(GDT, i, descriptor);
        }
        t.poke(SCRATCH, 0, t.mfn(GDT));
        let _ = t.call(paravane_abi::hypercall::SET_GDT, [va(SCRATCH), 8]);
        let selector = if selector & 0x8000 == 0 { selector & 0x7f } else { selector };
        t.vcpu.regs.rax = selector.into();
        t.vcpu.regs.rbx = DATA;
        t.write_at(DATA, &(TARGET | u64::from(selector) << 32)).unwrap();
        with_stack(&mut t, code, &[TARGET, selector.into(), 2, TARGET, selector.into()], selector);
        let vector = t.vcpu.regs.rip.wrapping_sub(HANDLERS);
        let went_on = [TARGET, RIP + code.len() as u64].contains(&t.vcpu.regs.rip);
        prop_assert!(went_on || matches!(vector, 11..=14), "{:#x}", t.vcpu.regs.rip);
        let selectors = t.vcpu.regs.selectors;
        prop_assert!(t.cx().is_code_64(selectors.cs) && t.cx().is_stack(selectors.ss));
    }
}
