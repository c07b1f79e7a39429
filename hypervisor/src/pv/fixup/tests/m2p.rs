//! Loads from the machine-to-physical table at Xen's address.

use paravane_abi::addr::MACH2PHYS_VIRT_START;
use paravane_abi::trap::TRAP_PAGE_FAULT;
use proptest::prelude::*;

use super::*;
use crate::machine::memory::Mfn;
use crate::testing::pv::{NOWHERE, SCRATCH};

const USER: u32 = 4;
const WRITE: u32 = 2;

/// A frame whose entry holds `value`, and the entry's place at Xen's address.
fn entry(t: &TestDomain, value: u64) -> u64 {
    let mfn = t.mfn(SCRATCH);
    t.memory
        .write_obj(crate::machine::memory::Maddr(Mfn(t.facts.m2p.start).maddr().0 + mfn * 8), &value)
        .unwrap();
    MACH2PHYS_VIRT_START + mfn * 8
}

fn at(address: u64, error_code: u32) -> Fault {
    Fault { vector: TRAP_PAGE_FAULT, error_code, address }
}

fn loads(t: &mut TestDomain, code: &[u8], address: u64) {
    assert_eq!(completes(t, code, at(address, USER)), Cause::TableLoad);
}

const VALUE: u64 = 0x8877_6655_4433_22f1;

#[test]
fn loads_of_every_kind() {
    let mut t = domain();
    let entry = entry(&t, VALUE);
    let cases: [(&[u8], u64); 9] = [
        (&[0x48, 0x8b, 0x03], VALUE),             // mov rax, [rbx]
        (&[0x8b, 0x03], VALUE & 0xffff_ffff),     // mov eax, [rbx]
        (&[0x0f, 0xb6, 0x03], 0xf1),              // movzx eax, byte [rbx]
        (&[0x48, 0x0f, 0xbe, 0x03], !0xe),        // movsx rax, byte [rbx]
        (&[0x48, 0x03, 0x03], VALUE + 5),         // add rax, [rbx]
        (&[0x48, 0x33, 0x03], VALUE ^ 5),         // xor rax, [rbx]
        (&[0x48, 0x0f, 0x44, 0x03], VALUE),       // cmovz rax, [rbx]
        (&[0x48, 0x0f, 0x45, 0x03], 5),           // cmovnz rax, [rbx]
        (&[0x48, 0x8b, 0x44, 0x0b, 0xf8], VALUE), // mov rax, [rbx + rcx - 8]
    ];
    for (code, result) in cases {
        (t.vcpu.regs.rax, t.vcpu.regs.rbx, t.vcpu.regs.rcx) = (5, entry, 8);
        t.vcpu.regs.rflags |= 1 << 6;
        loads(&mut t, code, entry);
        assert_eq!(t.vcpu.regs.rax, result, "{code:02x?}");
    }
    (t.vcpu.regs.rax, t.vcpu.regs.rbx) = (VALUE, entry);
    for (code, zero, carry) in [
        (&[0x48, 0x39, 0x03][..], 1, 0),         // cmp [rbx], rax
        (&[0x48, 0x3b, 0x03], 1, 0),             // cmp rax, [rbx]
        (&[0x48, 0x85, 0x03], 0, 0),             // test [rbx], rax
        (&[0x48, 0x83, 0x3b, 0xff], 0, 1),       // cmp qword [rbx], -1
        (&[0x48, 0x0f, 0xba, 0x23, 0x04], 0, 1), // bt qword [rbx], 4
    ] {
        t.vcpu.regs.rflags &= !(1 << 6 | 1);
        loads(&mut t, code, entry);
        assert_eq!((t.vcpu.regs.rflags >> 6 & 1, t.vcpu.regs.rflags & 1), (zero, carry), "{code:02x?}");
    }
}

#[test]
fn string_moves_stop_where_memory_does() {
    let mut t = domain();
    let entry = entry(&t, VALUE);
    (t.vcpu.regs.rsi, t.vcpu.regs.rdi, t.vcpu.regs.rcx) = (entry, va(SCRATCH), 1);
    loads(&mut t, &[0xf3, 0x48, 0xa5], entry);
    assert_eq!((t.peek(SCRATCH, 0), t.vcpu.regs.rcx), (VALUE, 0));
    t.vcpu.regs.rsi = entry;
    loads(&mut t, &[0x48, 0xad], entry);
    assert_eq!((t.vcpu.regs.rax, t.vcpu.regs.rsi), (VALUE, entry + 8));
    (t.vcpu.regs.rsi, t.vcpu.regs.rdi) = (entry, NOWHERE);
    execute(&mut t, &[0x48, 0xa5], at(entry, USER));
    assert_eq!((t.vcpu.regs.rip, t.vcpu.control.cr2), (HANDLERS + 14, NOWHERE));
}

#[test]
fn what_is_not_a_load_of_the_table_is_a_page_fault() {
    let (mut t, store) = (domain(), &[0x48, 0x89, 0x03][..]);
    let entry = entry(&t, VALUE);
    let raised = |t: &mut TestDomain, code: &[u8], fault: Fault| {
        t.vcpu.regs.rbx = fault.address;
        let (vector, [error_code, ..]) = raises(t, code, fault);
        (vector, error_code & !u64::from(USER), t.vcpu.control.cr2)
    };
    assert_eq!(raised(&mut t, store, at(entry, USER | WRITE)), (14, 3, entry), "present, and read-only");
    // movups xmm0, [rbx]: vector registers are the engine's.
    assert_eq!(raised(&mut t, &[0x0f, 0x10, 0x03], at(entry, USER)), (14, 0, entry));
    let end = MACH2PHYS_VIRT_START + (t.facts.m2p.end - t.facts.m2p.start) * 4096;
    let load = &[0x48, 0x8b, 0x03][..];
    assert_eq!(raised(&mut t, load, at(end, USER)), (14, 0, end));
    assert_eq!(raised(&mut t, load, at(end - 4, USER)), (14, 0, end - 4), "over the end");
    assert_eq!(t.end, None);
}

#[test]
fn user_programs_read_it_unless_the_kernel_forbids_that() {
    let mut t = domain();
    (t.vcpu.kernel_sp, t.vcpu.kernel_mode) = (va(STACK + 1), false);
    let entry = entry(&t, VALUE);
    t.vcpu.regs.rbx = entry;
    loads(&mut t, &[0x48, 0x8b, 0x03], entry);
    t.assists = 1 << 32;
    assert_eq!(raises(&mut t, &[0x48, 0x8b, 0x03], at(entry, USER)).0, 14);
}

proptest! {
    /// Whatever instruction faults in the table, something defined happens to the guest and nothing to the table.
    #[test]
    fn any_access(code in prop::collection::vec(any::<u8>(), 15), offset in 0u64..0x3000, error_code in 0u32..32, near: bool) {
        let mut t = domain();
        let first = entry(&t, VALUE);
        let address = if near { first } else { MACH2PHYS_VIRT_START + offset };
        let r = &mut t.vcpu.regs;
        [r.rax, r.rcx, r.rdx, r.rbx, r.rsi, r.rdi, r.rbp, r.r8] = [address; 8];
        t.guest().write_bytes(RIP, &code).unwrap();
        (t.vcpu.regs.rip, t.vcpu.regs.rsp) = (RIP, va(STACK + 1));
        handle(&mut t.cx(), at(address, error_code));
        prop_assert!(paravane_abi::addr::is_canonical(t.vcpu.regs.rip));
        let mfn = t.mfn(SCRATCH);
        let place = crate::machine::memory::Maddr(Mfn(t.facts.m2p.start).maddr().0 + mfn * 8);
        prop_assert_eq!(t.memory.read_obj::<u64>(place).unwrap(), VALUE);
    }
}
