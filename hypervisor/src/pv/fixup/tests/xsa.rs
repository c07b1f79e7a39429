//! Holes that Xen's emulation for paravirtual guests once had, by advisory, as a guest would try them here.
//!
//! Facts: the advisories' titles and texts (xenbits.xen.org/xsa).

use paravane_abi::cpuid::XEN_EMULATE_PREFIX;
use paravane_abi::hypercall as nr;
use paravane_abi::trap::{PFEC_PRESENT, PFEC_USER, PFEC_WRITE, TrapInfo};
use paravane_abi::vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES;

use super::*;
use crate::ledger::PrivOp;
use crate::testing::pv::{L1, SCRATCH};

const TF: u64 = 1 << 8;

/// XSA-200: CMPXCHG8B with an operand size prefix, which it ignores, was emulated with another width than its memory
/// access had. Neither it nor CMPXCHG16B is emulated here, with whatever prefix: the page fault is the guest's.
#[test]
fn xsa_200_the_wide_compare_and_exchange_is_not_emulated() {
    const PAGE: u64 = 40;
    let entry = va(L1) + PAGE * 8;
    let error_code = PFEC_PRESENT | PFEC_WRITE | PFEC_USER;
    let mut t = domain();
    t.assists = 1 << VMASST_TYPE_WRITABLE_PAGETABLES;
    let before = t.peek(L1, PAGE);
    let cmpxchg8b: &[u8] = &[0x0f, 0xc7, 0x0f];
    let cmpxchg16b: &[u8] = &[0x48, 0x0f, 0xc7, 0x0f];
    for code in [cmpxchg8b, cmpxchg16b] {
        for prefixes in [&[][..], &[0x66], &[0xf0], &[0x66, 0xf0], &[0xf2, 0x66]] {
            let code = [prefixes, code].concat();
            // Equal, so that it would store.
            let r = &mut t.vcpu.regs;
            (r.rdi, r.rax, r.rdx, r.rbx, r.rcx) = (entry, before & 0xffff_ffff, before >> 32, 0, 0);
            let (vector, [_, rip, _]) =
                raises(&mut t, &code, Fault { vector: 14, error_code, address: entry });
            assert_eq!((vector, rip), (14, RIP), "{code:02x?}");
            assert_eq!(t.peek(L1, PAGE), before);
        }
    }
}

/// XSA-204: the single step of an instruction that enters the kernel was raised by the flags before it, so that a user
/// program could step into its kernel. An entry clears TF, and the #DB is not the kernel's.
#[test]
fn xsa_204_no_single_step_into_the_kernel() {
    let mut t = domain();
    t.vcpu.kernel_sp = va(STACK + 1);
    let gate = TrapInfo { vector: 0x80, flags: 3, address: va(FREE + 2), ..TrapInfo::default() };
    t.write_at(va(SCRATCH), &[gate, TrapInfo::default()]).unwrap();
    t.call(nr::SET_TRAP_TABLE, [va(SCRATCH)]).unwrap();
    t.vcpu.kernel_mode = false;
    t.vcpu.regs.rflags |= TF;
    execute(&mut t, &[0xcd, 0x80], Fault { vector: 13, error_code: 0x80 << 3 | 2, address: 0 });
    assert_eq!(
        (t.vcpu.regs.rip, t.vcpu.regs.rflags & TF),
        (va(FREE + 2), 0),
        "its first instruction comes first"
    );
    let [_, _, rip, _, flags] = t.read_at::<[u64; 5]>(t.vcpu.regs.rsp).unwrap();
    assert_eq!((rip, flags & TF), (RIP + 2, TF), "the program is stepped on");

    // What stays in the program is stepped.
    t.vcpu.kernel_mode = false;
    t.vcpu.regs.rflags |= TF;
    let cpuid = [&XEN_EMULATE_PREFIX[..], &[0x0f, 0xa2]].concat();
    execute(&mut t, &cpuid, UD);
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rflags & TF), (HANDLERS + 1, 0));
}

/// XSA-435 and XSA-444: features were shown, and registers of theirs could be set, that the hypervisor did not switch:
/// state of one guest worked on another. What is not saved and loaded for a guest is not shown to it.
#[test]
fn xsa_444_features_that_are_not_switched_are_not_shown() {
    let mut t = domain();
    t.vcpu.control.cr4 = u64::MAX;
    let mut leaf = |function: u64, index: u64| {
        (t.vcpu.regs.rax, t.vcpu.regs.rcx) = (function, index);
        let code = [&XEN_EMULATE_PREFIX[..], &[0x0f, 0xa2]].concat();
        assert_eq!(completes(&mut t, &code, UD), Cause::PrivilegedInstruction(PrivOp::Cpuid));
        let r = &t.vcpu.regs;
        [r.rax, r.rbx, r.rcx, r.rdx]
    };
    let shown =
        |word: u64, bits: &[u32]| bits.iter().copied().filter(|bit| word >> bit & 1 != 0).collect::<Vec<_>>();
    const NONE: [u32; 0] = [];
    let [_, _, ecx, edx] = leaf(1, 0);
    // DTES64, MONITOR, DS-CPL, VMX, SMX, PDCM, PCID, DCA, X2APIC, TSC-deadline; DS, ACPI, thermal.
    assert_eq!(shown(ecx, &[2, 3, 4, 5, 6, 15, 17, 18, 21, 24]), NONE);
    assert_eq!(shown(edx, &[21, 22, 29]), NONE);
    let [_, ebx, ecx, edx] = leaf(7, 0);
    // INVPCID, RDT-M, MPX, RDT-A, PT; PKU, OSPKE, WAITPKG, shadow stacks, KL; UINTR, PCONFIG, LBR, IBT, AMX.
    assert_eq!(shown(ebx, &[10, 12, 14, 15, 25]), NONE);
    assert_eq!(shown(ecx, &[3, 4, 5, 7, 23, 31]), NONE);
    assert_eq!(shown(edx, &[5, 18, 19, 20, 22, 24, 25]), NONE);
    let [_, _, ecx, _] = leaf(0x8000_0001, 0);
    // SVM, extended APIC space, IBS, SKINIT, LWP, core and NB counters, breakpoints by address mask, MONITORX.
    assert_eq!(shown(ecx, &[2, 3, 10, 12, 15, 23, 24, 26, 28, 29]), NONE);
    let [low, _, _, high] = leaf(0xd, 0);
    assert_eq!((low & !0xe7, high), (0, 0), "state components: x87, SSE, AVX, AVX-512");
    let [_, _, supervisor_low, supervisor_high] = leaf(0xd, 1);
    assert_eq!((supervisor_low, supervisor_high), (0, 0), "no supervisor state");

    // AMD's address masks of breakpoints, LWP, IBS, branch records; Intel's debug control, BNDCFGS, XSS, PKRS, CET, PT.
    let masks = [0xc001_1027_u64, 0xc001_1019, 0xc001_101a, 0xc001_101b];
    let others =
        [0xc000_0105, 0xc000_0106, 0xc001_1030, 0x1d9, 0xd90, 0xda0, 0x6e1, 0x6a0, 0x6a2, 0x6a4, 0x570];
    for msr in masks.into_iter().chain(others) {
        for value in [0, 1, 0xfff, 0xffff_ffff] {
            (t.vcpu.regs.rcx, t.vcpu.regs.rax, t.vcpu.regs.rdx) = (msr, value, 0);
            is_refused(&mut t, &[0x0f, 0x30]); // wrmsr
        }
        is_refused(&mut t, &[0x0f, 0x32]); // rdmsr
    }
}
