//! Privileged instructions, ports, MSRs, CPUID, software interrupts.

use paravane_abi::cpuid::*;
use paravane_abi::hypercall::HYPERCALL_ENTRY_SIZE;
use paravane_abi::trap::TrapInfo;
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;
use proptest::prelude::*;

use super::*;
use crate::host::host_cpuid;
use crate::ledger::{PortDevice, PrivOp};
use crate::machine::memory::Mfn;
use crate::mmu::space::Allowed;
use crate::testing::pv::{L1, L4, NOWHERE, RO, SCRATCH};
use crate::x86::guest_cpuid::available;

const CLI: &[u8] = &[0xfa];
const STI: &[u8] = &[0xfb];
const IN_AL_42: &[u8] = &[0xe4, 0x42];
const IN_AL_61: &[u8] = &[0xe4, 0x61];
const IN_AL_DX: &[u8] = &[0xec];
const IN_EAX_DX: &[u8] = &[0xed];
const OUT_DX_AL: &[u8] = &[0xee];
const REP_INSD: &[u8] = &[0xf3, 0x6d];
const REP_OUTSB: &[u8] = &[0xf3, 0x6e];
const RDMSR: &[u8] = &[0x0f, 0x32];
const WRMSR: &[u8] = &[0x0f, 0x30];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
const CPUID: &[u8] = &[0x0f, 0xa2];
const TF: u64 = 1 << 8;

fn user_domain() -> TestDomain {
    let mut t = domain();
    t.vcpu.kernel_sp = va(STACK + 1);
    t.vcpu.kernel_mode = false;
    t
}

#[test]
fn what_the_interrupt_flag_means_is_in_memory() {
    let mut t = domain();
    for (code, op) in [(CLI, PrivOp::Cli), (STI, PrivOp::Sti)] {
        assert_eq!(completes(&mut t, code, GP), Cause::PrivilegedInstruction(op));
        assert!(t.upcall().state(&t.memory).unwrap().1, "the mask is as it was");
    }
    t.vcpu.io.level = 0;
    is_refused(&mut t, CLI);
    t.assists = 1 << VMASST_TYPE_ARCHITECTURAL_IOPL;
    completes(&mut t, CLI, GP);
    is_refused(&mut user_domain(), STI);
    let mut t = user_domain();
    t.vcpu.io.level = 3;
    completes(&mut t, STI, GP);
}

#[test]
fn instructions_that_hypercalls_stand_in_for_are_the_guests_own_faults() {
    let refused: [&[u8]; 12] = [
        &[0xf4],                   // hlt
        &[0x0f, 0x01, 0x38],       // invlpg [rax]
        &[0x0f, 0x01, 0x10],       // lgdt [rax]
        &[0x0f, 0x01, 0x18],       // lidt [rax]
        &[0x0f, 0x00, 0xd8],       // ltr ax
        &[0x0f, 0x00, 0xd0],       // lldt ax
        &[0x0f, 0x01, 0xf0],       // lmsw ax
        &[0x0f, 0x01, 0xf8],       // swapgs
        &[0x48, 0x0f, 0x07],       // sysretq
        &[0x0f, 0x08],             // invd
        &[0x0f, 0x33],             // rdpmc
        &[0x44, 0x0f, 0x20, 0xc0], // mov rax, cr8
    ];
    for code in refused {
        is_refused(&mut domain(), code);
    }
}

#[test]
fn ports_are_absent() {
    let mut t = domain();
    t.vcpu.regs.rax = 0x1234;
    assert_eq!(completes(&mut t, IN_AL_61, GP), Cause::PortIn(PortDevice::Other));
    assert_eq!(t.vcpu.regs.rax, 0x12ff);
    completes(&mut t, IN_EAX_DX, GP);
    assert_eq!(t.vcpu.regs.rax, 0xffff_ffff);
    assert_eq!(completes(&mut t, OUT_DX_AL, GP), Cause::PortOut(PortDevice::Other));

    t.vcpu.io.level = 0;
    is_refused(&mut t, IN_AL_42);
    t.vcpu.io.ports = 0x42;
    t.vcpu.io.bitmap = va(SCRATCH);
    is_refused(&mut t, IN_AL_42);
    t.vcpu.io.ports = 0x43;
    completes(&mut t, IN_AL_42, GP);
    t.poke(SCRATCH, 1, 1 << 2);
    is_refused(&mut t, IN_AL_42);
    t.vcpu.io.bitmap = NOWHERE;
    is_refused(&mut t, IN_AL_42);
    is_refused(&mut user_domain(), IN_AL_42);
}

#[test]
fn a_kernel_that_calibrates_by_the_pit_gives_up_at_once() {
    let mut t = domain();
    t.vcpu.regs.rax = 0x1234;
    // Linux's quick_pit_calibrate: two reads, of which the second is to be 0xff for as long as the counter is there.
    for _ in 0..2 {
        assert_eq!(completes(&mut t, IN_AL_42, GP), Cause::PortIn(PortDevice::Other));
        assert_eq!(t.vcpu.regs.rax, 0x1200);
    }
    t.vcpu.regs.rdx = 0x42;
    completes(&mut t, IN_AL_DX, GP);
    assert_eq!(t.vcpu.regs.rax, 0x1200);
    // pit_calibrate_tsc: until the output of channel 2 is high.
    completes(&mut t, IN_AL_61, GP);
    assert_eq!(t.vcpu.regs.rax & 0x20, 0x20);
    // What is wider than the counter is no access to it.
    completes(&mut t, IN_EAX_DX, GP);
    assert_eq!(t.vcpu.regs.rax, 0xffff_ffff);
}

#[test]
fn marks_are_the_kernels_and_of_runs_that_are_measured() {
    const OUT_80_AL: &[u8] = &[0xe6, 0x80];
    let mut t = domain();
    t.vcpu.io.level = 0;
    t.facts.marks = true;
    (t.vcpu.regs.rax, t.vcpu.regs.rdx) = (2, 0x80);
    for code in [OUT_80_AL, OUT_DX_AL] {
        let emulated = execute(&mut t, code, GP);
        assert_eq!((emulated.cause, emulated.mark), (Cause::PortOut(PortDevice::Mark), Some(2)));
    }
    t.facts.marks = false;
    is_refused(&mut t, OUT_80_AL);
    t.vcpu.io.level = 1;
    assert_eq!(execute(&mut t, OUT_80_AL, GP).mark, None, "a port like any other");

    let mut user = user_domain();
    user.facts.marks = true;
    is_refused(&mut user, OUT_80_AL);
    let mut user = user_domain();
    user.facts.marks = true;
    user.vcpu.io.level = 3;
    let emulated = execute(&mut user, OUT_80_AL, GP);
    assert_eq!((emulated.cause, emulated.mark), (Cause::PortOut(PortDevice::Other), None));
}

#[test]
fn string_io_is_bounded_and_faults_where_memory_does() {
    let mut t = domain();
    (t.vcpu.regs.rcx, t.vcpu.regs.rdi) = (1000, va(SCRATCH));
    execute(&mut t, REP_INSD, GP);
    assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rcx), (RIP, 1000 - 512), "the rest comes with the next exit");
    completes(&mut t, REP_INSD, GP);
    assert_eq!((t.vcpu.regs.rcx, t.vcpu.regs.rdi), (0, va(SCRATCH) + 4000));
    assert_eq!((t.peek(SCRATCH, 499), t.peek(SCRATCH, 500)), (u64::MAX, 0));
    completes(&mut t, REP_INSD, GP);
    assert_eq!(t.vcpu.regs.rdi, va(SCRATCH) + 4000, "none is none");

    (t.vcpu.regs.rcx, t.vcpu.regs.rsi) = (8, va(SCRATCH) + 8);
    t.vcpu.regs.rflags |= 1 << 10;
    completes(&mut t, REP_OUTSB, GP);
    assert_eq!(t.vcpu.regs.rsi, va(SCRATCH));
    t.vcpu.regs.rflags &= !(1 << 10);

    (t.vcpu.regs.rcx, t.vcpu.regs.rdi) = (1, NOWHERE);
    let (vector, [error_code, rip, _]) = raises(&mut t, REP_INSD, GP);
    assert_eq!((vector, error_code, rip), (14, 2, RIP));
    assert_eq!(t.vcpu.control.cr2, NOWHERE);
    t.map(30, t.entry(30, RO)).unwrap();
    t.vcpu.regs.rdi = va(30) - 2;
    let (vector, [error_code, ..]) = raises(&mut t, REP_INSD, GP);
    assert_eq!((vector, error_code, t.vcpu.control.cr2), (14, 3, va(30)), "the second page is at fault");
    t.vcpu.regs.rdi = 1 << 47;
    assert_eq!(raises(&mut t, REP_INSD, GP).0, 13);
}

#[test]
fn control_registers() {
    let mut t = domain();
    let from = |t: &mut TestDomain, cr: u8| {
        completes(t, &[0x0f, 0x20, 0xc0 | cr << 3], GP);
        t.vcpu.regs.rax
    };
    let cr0 = from(&mut t, 0);
    assert_eq!(cr0, 0x8005_0033);
    assert_eq!(from(&mut t, 4), 0x660, "as on Xen: PAE, MCE, OSFXSR, OSXMMEXCPT");
    t.vcpu.regs.rax = cr0 | 8;
    completes(&mut t, &[0x0f, 0x22, 0xc0], GP);
    assert!(t.vcpu.control.task_switched);
    assert_eq!(from(&mut t, 0), cr0 | 8);
    completes(&mut t, &[0x0f, 0x06], GP);
    assert!(!t.vcpu.control.task_switched, "clts");
    t.vcpu.regs.rax = cr0 & !1;
    is_refused(&mut t, &[0x0f, 0x22, 0xc0]);

    t.vcpu.regs.rax = 0x77;
    completes(&mut t, &[0x0f, 0x22, 0xd0], GP);
    assert_eq!(from(&mut t, 2), 0x77);
    assert_eq!(from(&mut t, 3), t.mfn(L4) << 12);
    completes(&mut t, &[0x0f, 0x22, 0xd8], GP);
    t.vcpu.regs.rax = t.mfn(L1) << 12;
    is_refused(&mut t, &[0x0f, 0x22, 0xd8]);
    assert_eq!(t.vcpu.tables.kernel_root(), Mfn(t.mfn(L4)));

    t.vcpu.regs.rax = u64::MAX;
    completes(&mut t, &[0x0f, 0x22, 0xe0], GP);
    let cr4 = from(&mut t, 4);
    assert_eq!(cr4 & 1 << 13, 0, "no VMX");
    assert_eq!(cr4 & (1 << 5 | 1 << 2 | 1 << 3), 1 << 5 | 1 << 2 | 1 << 3);
    t.vcpu.regs.rax = 0;
    completes(&mut t, &[0x0f, 0x22, 0xe0], GP);
    assert_eq!(from(&mut t, 4), 0x660, "what every guest has stays");
    is_refused(&mut user_domain(), &[0x0f, 0x20, 0xc0]);
}

#[test]
fn debug_registers_and_single_steps() {
    let mut t = domain();
    t.vcpu.regs.rax = va(5);
    completes(&mut t, &[0x0f, 0x23, 0xc0], GP);
    t.vcpu.regs.rax = 0;
    completes(&mut t, &[0x0f, 0x21, 0xc0], GP);
    assert_eq!(t.vcpu.regs.rax, va(5));
    t.vcpu.regs.rax = 1 << 47;
    is_refused(&mut t, &[0x0f, 0x23, 0xc0]);

    t.vcpu.regs.rflags |= TF;
    execute(&mut t, CLI, GP);
    assert_eq!(t.vcpu.regs.rip, HANDLERS + 1, "#DB after the instruction");
    let frame: [u64; 3] = t.read_at(t.vcpu.regs.rsp).unwrap();
    assert_eq!(frame[2], RIP + 1);
    assert_eq!(t.vcpu.debug.status & 1 << 14, 1 << 14);
}

#[test]
fn breakpoints_on_ports_fire_after_the_access() {
    const DE: u64 = 1 << 3;
    const ENABLE_1_ON_IO_OF_2_BYTES: u64 = 0x0060_0404;
    let mut t = domain();
    (t.vcpu.debug.addresses[1], t.vcpu.debug.control) = (0x60, ENABLE_1_ON_IO_OF_2_BYTES);
    completes(&mut t, IN_AL_61, GP);
    t.vcpu.control.cr4 |= DE;
    execute(&mut t, IN_AL_61, GP);
    assert_eq!(t.vcpu.regs.rip, HANDLERS + 1, "#DB");
    let frame: [u64; 3] = t.read_at(t.vcpu.regs.rsp).unwrap();
    assert_eq!((frame[2], t.vcpu.debug.status & 0xf), (RIP + 2, 0b10), "after the instruction, by DR1");
    t.vcpu.debug.status = 0;
    completes(&mut t, IN_AL_42, GP);
    t.vcpu.io.level = 0;
    is_refused(&mut t, IN_AL_61);
    assert_eq!(t.vcpu.debug.status & 0xf, 0, "what is refused meets none");
}

#[test]
fn model_specific_registers() {
    let mut t = domain();
    let set = |t: &mut TestDomain, index: u64, value: u64| {
        let regs = &mut t.vcpu.regs;
        (regs.rcx, regs.rax, regs.rdx) = (index, value & 0xffff_ffff, value >> 32);
    };
    let read = |t: &mut TestDomain, index: u64| {
        set(t, index, 0);
        completes(t, RDMSR, GP);
        t.vcpu.regs.rdx << 32 | t.vcpu.regs.rax
    };
    let base = 0xffff_c000_1234_5678;
    for index in [0xc000_0100, 0xc000_0101, 0xc000_0102] {
        set(&mut t, index, base + index);
        completes(&mut t, WRMSR, GP);
        assert_eq!(read(&mut t, index), base + index);
        set(&mut t, index, 1 << 47);
        is_refused(&mut t, WRMSR);
    }
    let v = &t.vcpu;
    assert_eq!((v.regs.gs_base, v.other_gs_base), (base + 0xc000_0101, base + 0xc000_0102));
    set(&mut t, 0xc000_0103, 7);
    completes(&mut t, WRMSR, GP);
    set(&mut t, 0xc000_0103, 1 << 32);
    is_refused(&mut t, WRMSR);
    assert_eq!(read(&mut t, 0xc000_0103), 7);
    assert_eq!(read(&mut t, 0xc000_0080), 0xd01);
    assert_eq!(read(&mut t, 0x1b), 0xfee0_0900);
    assert_eq!(read(&mut t, 0x277), 0x0501_0007_0406);
    let (first, second) = (read(&mut t, 0x10), read(&mut t, 0x10));
    assert!(second > first);
    for index in [0x8b, 0x179, 0x17a, 0x400, 0x407, 0x4000_0000] {
        read(&mut t, index);
    }
    for index in [0x48, 0xfe, 0xc000_0081, 0xc000_0082, 0x408, 0x4000_0001, 0xffff_ffff] {
        set(&mut t, index, 0);
        is_refused(&mut t, RDMSR);
        is_refused(&mut t, WRMSR);
    }
    is_refused(&mut user_domain(), RDMSR);
}

#[test]
fn a_hypercall_page_where_the_guest_wants_one() {
    let mut t = domain();
    let regs = &mut t.vcpu.regs;
    (regs.rcx, regs.rax, regs.rdx) = (0x4000_0000, 0, 0);
    t.vcpu.regs.rax = t.mfn(SCRATCH) << 12;
    completes(&mut t, WRMSR, GP);
    let stub = |t: &TestDomain, n: u64| {
        t.read_at::<[u8; HYPERCALL_ENTRY_SIZE]>(va(SCRATCH) + n * HYPERCALL_ENTRY_SIZE as u64).unwrap()
    };
    assert_eq!(stub(&t, 1)[..14], [0x51, 0x41, 0x53, 0xb8, 1, 0, 0, 0, 0x0f, 5, 0x41, 0x5b, 0x59, 0xc3]);
    assert_eq!(stub(&t, 23)[..12], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 5, 0xcc]);
    t.vcpu.regs.rax |= 1;
    is_refused(&mut t, WRMSR);
    t.vcpu.regs.rax = t.mfn(L1) << 12;
    is_refused(&mut t, WRMSR);
}

#[test]
fn extended_state() {
    let mut t = domain();
    (t.vcpu.regs.rax, t.vcpu.regs.rcx, t.vcpu.regs.rdx) = (1, 0, 0);
    assert_eq!(raises(&mut t, XSETBV, GP).0, 6, "not before CR4.OSXSAVE");
    t.vcpu.control.cr4 |= 1 << 18;
    completes(&mut t, XSETBV, GP);
    assert_eq!((t.vcpu.control.xcr0, t.vcpu.space.allowed().xcr0), (1, 1));
    for (rax, rcx) in [(0, 0), (4, 0), (1, 1), (1 << 9 | 1, 0)] {
        (t.vcpu.regs.rax, t.vcpu.regs.rcx) = (rax, rcx);
        is_refused(&mut t, XSETBV);
    }
}

#[test]
fn instructions_are_allowed_as_cr4_says() {
    const OSXSAVE: u64 = 1 << 18;
    const FSGSBASE: u64 = 1 << 16;
    let mut t = domain();
    assert_eq!(
        t.vcpu.space.allowed(),
        Allowed { cr4: 0, xcr0: 3 },
        "at first nothing that has to be asked for"
    );
    t.vcpu.regs.rax = u64::MAX;
    completes(&mut t, &[0x0f, 0x22, 0xe0], GP);
    assert_eq!(t.vcpu.space.allowed().cr4, t.vcpu.control.cr4 & (OSXSAVE | FSGSBASE | 4));
    t.vcpu.regs.rax = 0;
    completes(&mut t, &[0x0f, 0x22, 0xe0], GP);
    assert_eq!(t.vcpu.space.allowed().cr4, 0);
    // A kernel may use XGETBV at once, as on Xen; a user program waits for its kernel.
    const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
    assert_eq!(raises(&mut user_domain(), XGETBV, UD).0, 6);
    if available(host_cpuid::xcr0()) != 0 {
        execute(&mut t, XGETBV, UD);
        assert_eq!((t.vcpu.regs.rip, t.vcpu.space.allowed().cr4), (RIP, OSXSAVE), "executed again");
        assert_eq!(raises(&mut t, XGETBV, UD).0, 6, "that was not why");
    }
}

#[test]
fn cpuid_behind_its_prefix() {
    let mut t = domain();
    let forced = [&XEN_EMULATE_PREFIX, CPUID].concat();
    let ask = |t: &mut TestDomain, leaf: u64| {
        (t.vcpu.regs.rax, t.vcpu.regs.rcx) = (leaf, 0);
        assert_eq!(completes(t, &forced, UD), Cause::PrivilegedInstruction(PrivOp::Cpuid));
        let r = t.vcpu.regs;
        [r.rax, r.rbx, r.rcx, r.rdx].map(|v| v as u32)
    };
    let [max, b, c, d] = ask(&mut t, 0x4000_0000);
    assert_eq!(max, 0x4000_0005);
    assert_eq!([b, c, d].map(u32::to_le_bytes).concat(), b"XenVMMXenVMM");
    assert_eq!(ask(&mut t, 0x4000_0001)[0], 4 << 16 | 17);
    assert_eq!(ask(&mut t, 0x4000_0002)[..2], [1, 0x4000_0000]);
    assert_eq!(ask(&mut t, 0x4000_0003)[2], 2_000_000);
    assert_eq!(ask(&mut t, 0x4000_0100), [0; 4], "one hypervisor and no more");
    let features = ask(&mut t, 1);
    assert_eq!(features[3] & 1 << 9, 0, "no APIC");
    assert_ne!(features[2] & 1 << 31, 0, "a hypervisor is there");
    assert_eq!(ask(&mut t, 0x4), [0; 4]);
    assert_ne!(ask(&mut t, 0x8000_0001)[3] & 1 << 29, 0, "long mode");

    assert_eq!(completes(&mut t, CPUID, GP), Cause::PrivilegedInstruction(PrivOp::Cpuid));
    for code in [&[0x0f, 0x0b, b'x', b'e', b'n', 0x90][..], &[0x0f, 0x0b, b'x', b'e', b'm', 0x0f, 0xa2]] {
        let (vector, [rip, ..]) = raises(&mut t, code, UD);
        assert_eq!((vector, rip), (6, RIP));
    }
}

#[test]
fn osxsave_is_always_shown_to_a_kernel_that_asks_by_the_prefix() {
    let forced = [&XEN_EMULATE_PREFIX, CPUID].concat();
    let xsave_and_osxsave = |t: &mut TestDomain, code: &[u8], fault| {
        (t.vcpu.regs.rax, t.vcpu.regs.rcx) = (1, 0);
        completes(t, code, fault);
        (t.vcpu.regs.rcx >> 26 & 1, t.vcpu.regs.rcx >> 27 & 1)
    };
    let (mut kernel, mut user) = (domain(), user_domain());
    let (xsave, osxsave) = xsave_and_osxsave(&mut kernel, &forced, UD);
    assert_eq!(osxsave, xsave, "by the prefix in the kernel, CR4.OSXSAVE clear");
    assert_eq!(xsave_and_osxsave(&mut kernel, CPUID, GP).1, 0, "natively it follows CR4");
    assert_eq!(xsave_and_osxsave(&mut user, &forced, UD).1, 0, "in user mode it follows CR4");
    for t in [&mut kernel, &mut user] {
        t.vcpu.control.cr4 |= 1 << 18;
        assert_eq!(xsave_and_osxsave(t, CPUID, GP).1, xsave);
        assert_eq!(xsave_and_osxsave(t, &forced, UD).1, xsave);
    }
}

#[test]
fn software_interrupts_go_through_gates_that_let_the_mode_in() {
    let gate = |t: &mut TestDomain, level: u8| {
        let address = HANDLERS + 31;
        t.vcpu.traps[0x80] = TrapInfo { vector: 0x80, flags: level, address, ..Default::default() };
    };
    // As #UD, as the manual has it, and as an emulated processor counts vectors.
    let as_gp = |index: u32| Fault { vector: 13, error_code: index << 3 | 2, address: 0 };
    let reported = [UD, as_gp(0x80), as_gp(0x100)];
    for fault in reported {
        for (user, level, enters) in
            [(false, 0, false), (false, 1, true), (true, 1, false), (true, 2, false), (true, 3, true)]
        {
            let mut t = if user { user_domain() } else { domain() };
            gate(&mut t, level);
            let (vector, words) = raises(&mut t, &[0xcd, 0x80], fault);
            if enters {
                assert_eq!((vector, words[0]), (31, RIP + 2), "level {level}");
            } else {
                assert_eq!((vector, words[0], words[1]), (13, 0x402, RIP), "level {level}");
            }
        }
    }
    let mut t = domain();
    gate(&mut t, 3);
    let other = Fault { vector: 13, error_code: 0x18, address: 0 };
    let (vector, words) = raises(&mut t, &[0xcd, 0x80], other);
    assert_eq!((vector, words[0]), (13, 0x18), "a selector's fault is not an interrupt");
}

proptest! {
    /// Whatever the bytes at RIP, something defined happens to the guest and nothing to the host.
    #[test]
    fn any_instruction(
        code in prop::collection::vec(any::<u8>(), 15),
        regs in prop::array::uniform8(any::<u64>()),
        vector in prop::sample::select(vec![6u8, 13, 14]),
        error_code in 0u32..0x1000,
        user: bool,
        near: bool,
    ) {
        let mut t = if user { user_domain() } else { domain() };
        t.assists = 1 << 2;
        t.vcpu.io.level = 3;
        let place = |value: u64| if near { va(0) + value % (32 << 12) } else { value };
        let r = &mut t.vcpu.regs;
        [r.rax, r.rcx, r.rdx, r.rbx, r.rsi, r.rdi, r.rbp, r.r8] = regs.map(place);
        t.guest().write_bytes(RIP, &code).unwrap();
        (t.vcpu.regs.rip, t.vcpu.regs.rsp) = (RIP, va(STACK + 1));
        handle(&mut t.cx(), Fault { vector, error_code, address: place(regs[5]) });
        prop_assert!(paravane_abi::addr::is_canonical(t.vcpu.regs.rip));
        prop_assert_eq!(t.vcpu.space.root(), t.vcpu.tables.kernel_root());
    }
}
