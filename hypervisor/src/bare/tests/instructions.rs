//! Privileged instructions, one class at a time.

use super::*;
use crate::ledger::PortDevice;

#[test]
fn the_interrupt_flag_is_virtual() {
    let mut g = Guest::booted();
    resumed(&g.traps(&[0xfb]), PrivOp::Sti);
    assert!(g.machine.cpu.interrupts);
    assert_eq!(g.regs.rip, BASE + CODE + 1);
    resumed(&g.traps(&[0xfa]), PrivOp::Cli);
    assert!(!g.machine.cpu.interrupts);
    assert_ne!(g.regs.rflags & rflags::IF, 0, "the hardware's stays on");
}

#[test]
fn control_registers() {
    let mut g = Guest::booted();
    resumed(&g.traps(&[0x0f, 0x20, 0xd8]), PrivOp::MovFromCr); // mov rax, cr3
    assert_eq!(g.regs.rax, TABLES);
    g.regs.rbx = 0x1234;
    resumed(&g.traps(&[0x0f, 0x22, 0xd3]), PrivOp::MovToCr); // mov cr2, rbx
    assert_eq!(g.machine.cpu.cr2, 0x1234);
    // CR0: TS on, by MOV; off, by CLTS; on again by LMSW.
    g.regs.rax = g.machine.cpu.cr0 | cr0::TS;
    resumed(&g.traps(&[0x0f, 0x22, 0xc0]), PrivOp::MovToCr);
    assert_ne!(g.machine.cpu.cr0 & cr0::TS, 0);
    resumed(&g.traps(&[0x0f, 0x06]), PrivOp::Clts);
    assert_eq!(g.machine.cpu.cr0 & cr0::TS, 0);
    g.regs.rax = 8;
    resumed(&g.traps(&[0x0f, 0x01, 0xf0]), PrivOp::Other);
    assert_eq!(g.machine.cpu.cr0 & 0xf, 9, "LMSW cannot clear PE");
    // Turning paging off, or setting a reserved bit, is refused.
    for cr0 in [cr0::PE, u64::MAX] {
        g.regs.rax = cr0;
        let before = g.regs.rip;
        g.traps(&[0x0f, 0x22, 0xc0]);
        assert_eq!((g.handling(), g.stack::<2>()), (Some(13), [0, before]));
    }
    g.regs.rax = g.machine.cpu.cr4 | 1 << 20; // SMEP
    g.traps(&[0x0f, 0x22, 0xe0]);
    assert_eq!(g.handling(), Some(13));
    g.regs.rax = 16;
    g.traps(&[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    assert_eq!(g.handling(), Some(13));
    g.regs.rax = 15;
    resumed(&g.traps(&[0x44, 0x0f, 0x22, 0xc0]), PrivOp::MovToCr);
    g.regs.rdx = 7;
    resumed(&g.traps(&[0x44, 0x0f, 0x20, 0xc2]), PrivOp::MovFromCr); // mov rdx, cr8
    assert_eq!(g.regs.rdx, 15);
}

#[test]
fn debug_registers_hold_what_is_written() {
    let mut g = Guest::booted();
    g.regs.rax = 0x55;
    resumed(&g.traps(&[0x0f, 0x23, 0xd8]), PrivOp::MovDr); // mov dr3, rax
    resumed(&g.traps(&[0x0f, 0x21, 0xdb]), PrivOp::MovDr); // mov rbx, dr3
    resumed(&g.traps(&[0x0f, 0x23, 0xf8]), PrivOp::MovDr); // mov dr7, rax
    resumed(&g.traps(&[0x0f, 0x21, 0xf9]), PrivOp::MovDr); // mov rcx, dr7
    assert_eq!((g.regs.rbx, g.regs.rcx), (0x55, 0x455));
    g.regs.rax = 1 << 32;
    g.traps(&[0x0f, 0x23, 0xf8]);
    assert_eq!(g.handling(), Some(13));
}

#[test]
fn model_specific_registers() {
    let mut g = Guest::booted();
    for (number, value) in [
        (0xc000_0081u64, 0x0008_0010_0000_0000u64),
        (0xc000_0082, 0xffff_ffff_8000_0000),
        (0xc000_0100, 0x1234_5678),
        (0xc000_0101, 0x7fff_0000_0000),
        (0xc000_0102, 0x42),
        (0x277, 0x0007_0406_0007_0406),
    ] {
        (g.regs.rcx, g.regs.rdx, g.regs.rax) = (number, value >> 32, value & 0xffff_ffff);
        resumed(&g.traps(&[0x0f, 0x30]), PrivOp::Wrmsr);
        (g.regs.rdx, g.regs.rax) = (u64::MAX, u64::MAX);
        resumed(&g.traps(&[0x0f, 0x32]), PrivOp::Rdmsr);
        assert_eq!(g.regs.rdx << 32 | g.regs.rax, value, "{number:#x}");
    }
    assert_eq!((g.regs.fs_base, g.regs.gs_base), (0x1234_5678, 0x7fff_0000_0000));
    resumed(&g.traps(&[0x0f, 0x01, 0xf8]), PrivOp::Swapgs);
    assert_eq!((g.regs.gs_base, g.machine.cpu.kernel_gs_base), (0x42, 0x7fff_0000_0000));
    for (number, value) in [(0xc000_0082, 1 << 47), (0xc000_0080, 0), (0x277, 2), (0x999, 0)] {
        (g.regs.rcx, g.regs.rdx, g.regs.rax) = (number, value >> 32, value & 0xffff_ffff);
        g.traps(&[0x0f, 0x30]);
        assert_eq!(g.handling(), Some(13), "{number:#x}");
    }
    g.regs.rcx = 0x999;
    g.traps(&[0x0f, 0x32]);
    assert_eq!(g.handling(), Some(13));
}

#[test]
fn descriptor_tables() {
    let mut g = Guest::booted();
    g.poke_bytes(DATA, &[0x37, 0x00]);
    g.poke_bytes(DATA + 2, &(BASE + GDT).to_le_bytes());
    g.regs.rdi = BASE + DATA;
    g.machine.cpu.gdt = virtual_cpu::TableRegister::default();
    resumed(&g.traps(&[0x0f, 0x01, 0x17]), PrivOp::Lgdt); // lgdt [rdi]
    assert_eq!(g.machine.cpu.gdt, virtual_cpu::TableRegister { base: BASE + GDT, limit: 0x37 });
    resumed(&g.traps(&[0x0f, 0x01, 0x1f]), PrivOp::Lidt); // lidt [rdi]
    assert_eq!(g.machine.cpu.idt.limit, 0x37);
    g.machine.cpu.idt = virtual_cpu::TableRegister { base: BASE + IDT, limit: 4095 };
    g.machine.cpu.task = virtual_cpu::SystemSegment::default();
    g.regs.rax = TASK.into();
    resumed(&g.traps(&[0x0f, 0x00, 0xd8]), PrivOp::Ltr); // ltr ax
    assert_eq!(
        g.machine.cpu.task,
        virtual_cpu::SystemSegment { selector: TASK, base: BASE + TSS, limit: 0x67 }
    );
    assert_ne!(g.peek(GDT + u64::from(TASK)) & 1 << 41, 0, "busy");
    g.traps(&[0x0f, 0x00, 0xd8]);
    assert_eq!((g.handling(), g.stack::<1>()), (Some(13), [TASK.into()]), "a busy task cannot be loaded");
    g.regs.rax = 0;
    resumed(&g.traps(&[0x0f, 0x00, 0xd0]), PrivOp::Lldt); // lldt ax
    // An operand that is not mapped: a page fault for the guest, with the operand's address.
    g.regs.rdi = BASE + 0x1000_0000;
    g.traps(&[0x0f, 0x01, 0x17]);
    assert_eq!((g.handling(), g.machine.cpu.cr2), (Some(14), BASE + 0x1000_0000));
}

#[test]
fn segment_registers() {
    let mut g = Guest::booted();
    g.regs.rax = KERNEL_DS.into();
    let error = KERNEL_DS.into();
    for (code, vector) in
        [(&[0x8e, 0xd8][..], 13), (&[0x8e, 0xc0], 13), (&[0x8e, 0xe8], 11), (&[0x8e, 0xd0], 13)]
    {
        resumed(&g.traps_with(code, vector, error), PrivOp::SegmentLoad);
    }
    let s = g.machine.cpu.selectors;
    assert_eq!((s.ds, s.es, s.gs, s.ss), (KERNEL_DS, KERNEL_DS, KERNEL_DS, KERNEL_DS));
    assert_eq!(g.peek(GDT + u64::from(KERNEL_DS)) & 1 << 40, 1 << 40, "accessed");
    g.push(&[KERNEL_DS.into()]);
    resumed(&g.traps_with(&[0x0f, 0xa1], 13, error), PrivOp::SegmentLoad); // pop fs
    assert_eq!((g.machine.cpu.selectors.fs, g.regs.rsp), (KERNEL_DS, BASE + STACK));
    // Code is not a stack; nothing is beyond the limit.
    for (selector, vector) in [(KERNEL_CS, 13), (0x50, 13), (0, 13)] {
        g.regs.rax = u64::from(selector) | if selector == 0 { 3 } else { 0 };
        g.traps_with(&[0x8e, 0xd0], 13, selector.into());
        assert_eq!((g.handling(), g.stack::<1>()), (Some(vector), [selector.into()]));
    }
    let not_present = 0x00cf_1200_0000_ffff;
    g.poke(GDT + u64::from(KERNEL_DS), not_present);
    g.regs.rax = KERNEL_DS.into();
    g.traps_with(&[0x8e, 0xd8], 13, error);
    assert_eq!(g.handling(), Some(11));
}

#[test]
fn ports() {
    let mut g = Guest::booted();
    g.regs.rax = b'!'.into();
    g.regs.rdx = 0x3f8;
    let uart_out = Cause::PortOut(PortDevice::Uart);
    assert_eq!(g.traps(&[0xee]), BareExit { cause: uart_out, outcome: BareOutcome::Resume }); // out dx, al
    assert_eq!(g.sink.text(), "!");
    g.regs.rax = u64::MAX;
    g.regs.rdx = 0x3fd;
    assert_eq!(g.traps(&[0xec]).cause, Cause::PortIn(PortDevice::Uart)); // in al, dx
    assert_eq!(g.regs.rax, !0xff | 0x60);
    assert_eq!(g.traps(&[0xe5, 0x21]).cause, Cause::PortIn(PortDevice::Pic)); // in eax, 0x21
    assert_eq!(g.regs.rax, 0xffff_ffff);
    g.regs.rax = 1;
    let marked = g.traps(&[0xe6, 0x80]); // out 0x80, al
    assert_eq!(marked, BareExit { cause: Cause::PortOut(PortDevice::Mark), outcome: BareOutcome::Mark(1) });
    (g.regs.rax, g.regs.rdx) = (0x2000, 0x604);
    assert_eq!(g.traps(&[0x66, 0xef]).outcome, BareOutcome::Ended(DomainEnd::PowerOff)); // out dx, ax
    g.regs.rax = 0xfe;
    assert_eq!(g.traps(&[0xe6, 0x64]).outcome, BareOutcome::Ended(DomainEnd::Reboot));
    assert_eq!(g.traps(&[0xe6, 0xf4]).outcome, BareOutcome::Ended(DomainEnd::GuestCrash));
    // The port by which a paravirtual kernel makes hypercalls has no device.
    g.regs.rip = BASE + CODE;
    assert_eq!(g.exit(Exit::Hypercall).outcome, BareOutcome::Resume);
    assert_eq!(g.regs.rip, BASE + CODE);
}

#[test]
fn string_ports_are_bounded_per_exit() {
    let mut g = Guest::booted();
    g.poke_bytes(DATA, &[b'x'; 1000]);
    (g.regs.rsi, g.regs.rdx, g.regs.rcx) = (BASE + DATA, 0x3f8, 600);
    let at = g.regs.rip;
    for (left, next) in [(344, at), (88, at), (0, at + 2)] {
        assert_eq!(g.traps(&[0xf3, 0x6e]).outcome, BareOutcome::Resume); // rep outsb
        assert_eq!((g.regs.rcx, g.regs.rip, g.regs.rsi), (left, next, BASE + DATA + 600 - left));
    }
    assert_eq!(g.sink.text().len(), 600);
    g.input.push(b"abc");
    (g.regs.rdi, g.regs.rcx) = (BASE + DATA, 3);
    g.traps(&[0xf3, 0x6c]); // rep insb
    assert_eq!(g.peek(DATA) & 0xff_ffff, 0x63_6261);
    // A fault in the middle: the elements before it are transferred, and no input is lost.
    g.input.push(b"de");
    (g.regs.rdi, g.regs.rcx) = (BASE + 0x3f_ffff, 2);
    g.traps(&[0xf3, 0x6c]);
    assert_eq!((g.handling(), g.machine.cpu.cr2, g.regs.rcx), (Some(14), BASE + 0x40_0000, 1));
    assert_eq!(g.input.pop(), Some(b'e'));
}

/// Where CPUID traps, the guest gets the same answer as on an engine where it does not.
#[test]
fn cpuid_answers_as_on_every_engine() {
    use crate::host::host_cpuid::{query, xcr0};
    let mut g = Guest::booted();
    let dynamic = crate::x86::guest_cpuid::Dynamic { osxsave: false, xcr0: u64::MAX };
    for (function, index) in
        [(0_u64, 0_u64), (1, 0), (7, 0), (0xd, 2), (0x8000_0001, 0), (0x4000_0000, 0), (u64::MAX, 9)]
    {
        (g.regs.rax, g.regs.rcx) = (function, index);
        resumed(&g.traps(&[0x0f, 0xa2]), PrivOp::Cpuid);
        let said = crate::x86::guest_cpuid::for_guest(function as u32, index as u32, dynamic, xcr0(), query);
        let told = [g.regs.rax, g.regs.rbx, g.regs.rcx, g.regs.rdx];
        assert_eq!(told, [said.eax, said.ebx, said.ecx, said.edx].map(u64::from), "{function:#x}");
    }
}

#[test]
fn invalidations_caches_and_undefined_instructions() {
    let mut g = Guest::booted();
    g.space.caught_up(&g.log);
    g.regs.rdi = BASE + DATA;
    resumed(&g.traps(&[0x0f, 0x01, 0x3f]), PrivOp::Invlpg); // invlpg [rdi]
    assert_eq!(g.space.pending(&g.log).flush, crate::mmu::space::Flush::Page(BASE + DATA));
    resumed(&g.traps(&[0x0f, 0x09]), PrivOp::Wbinvd);
    (g.regs.rcx, g.regs.rdx, g.regs.rax) = (0, 0, 7);
    resumed(&g.traps(&[0x0f, 0x01, 0xd1]), PrivOp::Xsetbv);
    g.regs.rax = 4;
    g.traps(&[0x0f, 0x01, 0xd1]);
    assert_eq!(g.handling(), Some(13));
    resumed(&g.traps_with(&[0x0f, 0x01, 0xca], 6, 0), PrivOp::Other); // clac
    assert_eq!(g.traps(&[0x0f, 0x33]).cause, Cause::GuestFault { vector: 13 }); // rdpmc
    let at = g.regs.rip;
    g.traps_with(&[0x0f, 0x0b], 6, 0); // ud2
    assert_eq!((g.handling(), g.stack::<1>()), (Some(6), [at]));
    // With UMIP on the host, stores of system registers trap too.
    resumed(&g.traps(&[0x0f, 0x01, 0x07]), PrivOp::Other); // sgdt [rdi]
    assert_eq!((g.peek(DATA) & 0xffff, g.peek(DATA + 2)), (0x47, BASE + GDT));
    resumed(&g.traps(&[0x0f, 0x00, 0xc9]), PrivOp::Other); // str ecx
    assert_eq!(g.regs.rcx, u64::from(TASK));
}

#[test]
fn user_programs_get_faults_for_privileged_instructions() {
    for code in [
        &[0xfa][..],
        &[0xf4],
        &[0x0f, 0x20, 0xd8],
        &[0x0f, 0x32],
        &[0xee],
        &[0x0f, 0x01, 0xf8],
        &[0x48, 0xcf],
        &[0x0f, 0x09],
    ] {
        let mut g = Guest::in_user_mode();
        g.regs.rdx = 0x80;
        let handled = g.traps(code);
        assert_eq!(
            handled,
            BareExit { cause: Cause::GuestFault { vector: 13 }, outcome: BareOutcome::Resume }
        );
        assert_eq!((g.handling(), g.stack::<2>()), (Some(13), [0, BASE + USER_CODE]));
    }
    let mut g = Guest::in_user_mode();
    g.poke_bytes(USER_CODE, &[0xe6, 0x7e]);
    g.regs.rip += 2;
    g.exit(Exit::Hypercall);
    assert_eq!((g.handling(), g.stack::<2>()), (Some(13), [0, BASE + USER_CODE]));
    let mut g = Guest::in_user_mode();
    (g.machine.cpu.io_privilege, g.regs.rdx, g.regs.rax) = (3, 0x3f8, b'u'.into());
    assert_eq!(g.traps(&[0xee]).outcome, BareOutcome::Resume);
    assert_eq!((g.sink.text().as_str(), g.handling()), ("u", None));
}

/// Exits that only a kernel at CPL 0 makes end the guest with a line that says whose fault they are.
#[test]
fn an_exit_of_cpl_0_ends_the_guest() {
    let port = Exit::Port { port: 0x60, size: 1, bytes: 1, write: false };
    for exit in [port, Exit::Mmio { address: 1 << 40, bytes: 8, write: true }, Exit::Halt] {
        let mut g = Guest::booted();
        let end = DomainEnd::Killed(Exit::NOT_AT_CPL_3.into());
        assert_eq!(g.exit(exit), BareExit { cause: Cause::Dead, outcome: BareOutcome::Ended(end) });
    }
}
