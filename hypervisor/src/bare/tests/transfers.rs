//! IRET, far returns, SYSCALL and SYSRET.

use super::*;

const FLAGS_ON: u64 = rflags::IF | rflags::FIXED;

#[test]
fn iretq_within_the_kernel_restores_the_interrupt_flag() {
    let mut g = Guest::booted();
    for flags in [FLAGS_ON | rflags::ZF, rflags::FIXED] {
        g.push(&[BASE + CODE + 0x100, KERNEL_CS.into(), flags, BASE + STACK - 64, KERNEL_DS.into()]);
        resumed(&g.traps_with(&[0x48, 0xcf], 13, KERNEL_CS.into()), PrivOp::Iretq);
        assert_eq!((g.regs.rip, g.regs.rsp), (BASE + CODE + 0x100, BASE + STACK - 64));
        assert_eq!(g.machine.cpu.interrupts, flags & rflags::IF != 0);
        assert_eq!(g.regs.rflags, flags | FLAGS_ON);
        assert!(!g.machine.cpu.user);
    }
    // SS may be null at CPL 0.
    g.push(&[BASE + CODE, KERNEL_CS.into(), FLAGS_ON, BASE + STACK, 0]);
    resumed(&g.traps_with(&[0x48, 0xcf], 13, KERNEL_CS.into()), PrivOp::Iretq);
    assert_eq!(g.machine.cpu.selectors.ss, 0);
}

#[test]
fn iretq_to_a_program_and_back_by_an_interrupt() {
    let mut g = Guest::booted();
    let kernel_root = g.space.root();
    g.push(&[BASE + USER_CODE, USER_CS.into(), FLAGS_ON, BASE + USER_STACK, USER_DS.into()]);
    resumed(&g.traps_with(&[0x48, 0xcf], 13, u32::from(USER_CS) & !3), PrivOp::Iretq);
    assert!(g.machine.cpu.user && g.machine.cpu.interrupts);
    assert_ne!(g.space.root(), kernel_root, "the program runs on other tables");
    g.exit(Exit::Fault(Fault { vector: 0, error_code: 0, address: 0 }));
    assert_eq!(g.handling(), Some(0));
    assert_eq!(g.space.root(), kernel_root);
    assert_eq!(g.regs.rsp, BASE + RSP0 - 40);
    let frame = [BASE + USER_CODE, USER_CS.into(), FLAGS_ON, BASE + USER_STACK, USER_DS.into()];
    assert_eq!(g.stack::<5>(), frame);
    assert_eq!((g.machine.cpu.selectors.cs, g.machine.cpu.selectors.ss), (KERNEL_CS, 0));
    assert!(!g.machine.cpu.interrupts);
}

#[test]
fn bad_frames_fault_at_the_iretq() {
    let frame = |i: usize, value: u64| {
        let mut words = [BASE + CODE, u64::from(KERNEL_CS), FLAGS_ON, BASE + STACK, u64::from(KERNEL_DS)];
        words[i] = value;
        words
    };
    for (words, error) in [
        (frame(0, 1 << 47), 0),
        (frame(1, 0), 0),
        (frame(1, KERNEL_DS.into()), KERNEL_DS),
        (frame(1, 0x09), 0x08),
        (frame(1, 0x1000), 0x1000),
        (frame(4, KERNEL_CS.into()), KERNEL_CS),
        (frame(4, USER_DS.into()), USER_DS & !3),
    ] {
        let mut g = Guest::booted();
        g.push(&words);
        let rsp = g.regs.rsp;
        g.traps_with(&[0x48, 0xcf], 13, 8);
        assert_eq!(g.handling(), Some(13), "{words:x?}");
        let [code, rip, _, _, old_rsp] = g.stack::<5>();
        assert_eq!((code, rip, old_rsp), (error.into(), BASE + CODE, rsp), "{words:x?}");
    }
    let mut g = Guest::booted();
    g.regs.rsp = BASE + 0x3f_fff0;
    g.machine.cpu.task = virtual_cpu::SystemSegment { selector: TASK, base: BASE + TSS, limit: 0x67 };
    g.set_gate(14, 0xe, 0, 1);
    g.traps_with(&[0x48, 0xcf], 13, 8);
    assert_eq!((g.handling(), g.machine.cpu.cr2), (Some(14), BASE + 0x40_0000));
    assert_eq!(g.regs.rsp, BASE + IST1 - 48, "on the gate's own stack");
}

#[test]
fn far_returns_and_branches() {
    let mut g = Guest::booted();
    g.push(&[BASE + CODE + 0x40, KERNEL_CS.into(), 0, 0]);
    resumed(&g.traps_with(&[0x48, 0xcb], 13, KERNEL_CS.into()), PrivOp::FarReturn); // lretq
    assert_eq!((g.regs.rip, g.regs.rsp), (BASE + CODE + 0x40, BASE + STACK - 16));
    g.push(&[BASE + CODE, KERNEL_CS.into()]);
    resumed(&g.traps_with(&[0x48, 0xca, 0x10, 0x00], 13, 8), PrivOp::FarReturn); // lretq 16
    assert_eq!((g.regs.rip, g.regs.rsp), (BASE + CODE, BASE + STACK));
    // To a program, with its stack.
    g.push(&[BASE + USER_CODE, USER_CS.into(), BASE + USER_STACK, USER_DS.into()]);
    resumed(&g.traps_with(&[0x48, 0xcb], 13, 0x40), PrivOp::FarReturn);
    assert_eq!((g.machine.cpu.user, g.regs.rsp), (true, BASE + USER_STACK));

    let mut g = Guest::booted();
    g.poke(DATA, BASE + CODE + 0x80);
    g.poke(DATA + 8, KERNEL_CS.into());
    g.regs.rdi = BASE + DATA;
    resumed(&g.traps_with(&[0x48, 0xff, 0x2f], 13, 8), PrivOp::Other); // jmp far [rdi]
    assert_eq!(g.regs.rip, BASE + CODE + 0x80);
    resumed(&g.traps_with(&[0x48, 0xff, 0x1f], 13, 8), PrivOp::Other); // call far [rdi]
    assert_eq!(g.stack::<2>(), [BASE + CODE + 0x83, KERNEL_CS.into()]);
}

#[test]
fn system_calls() {
    let mut g = Guest::in_user_mode();
    g.machine.cpu.lstar = BASE + CODE;
    g.machine.cpu.syscall_mask = rflags::IF | rflags::ZF;
    g.regs.rip = BASE + USER_CODE + 2;
    g.regs.rflags |= rflags::ZF | rflags::CF;
    let flags = g.machine.cpu.flags(&g.regs);
    let handled = g.exit(Exit::Syscall);
    assert_eq!(handled, BareExit { cause: Cause::Syscall, outcome: BareOutcome::Resume });
    assert_eq!((g.regs.rip, g.regs.rcx, g.regs.r11), (BASE + CODE, BASE + USER_CODE + 2, flags));
    assert_eq!((g.machine.cpu.selectors.cs, g.machine.cpu.selectors.ss), (KERNEL_CS, KERNEL_DS));
    assert!(!g.machine.cpu.user && !g.machine.cpu.interrupts);
    assert_eq!(g.regs.rflags & (rflags::ZF | rflags::CF), rflags::CF);
    assert_eq!(g.regs.rsp, BASE + USER_STACK, "SYSCALL does not switch the stack");
    resumed(&g.traps(&[0x48, 0x0f, 0x07]), PrivOp::Sysret); // sysretq
    assert!(g.machine.cpu.user && g.machine.cpu.interrupts);
    assert_eq!((g.regs.rip, g.machine.cpu.flags(&g.regs)), (BASE + USER_CODE + 2, flags));
    assert_eq!((g.machine.cpu.selectors.cs, g.machine.cpu.selectors.ss), (USER_CS, USER_DS));
    // Off: #UD at the instruction.
    g.machine.cpu.efer &= !efer::SCE;
    g.exit(Exit::Syscall);
    assert_eq!((g.handling(), g.stack::<1>()), (Some(6), [BASE + USER_CODE]));
    // Back to a non-canonical address.
    g.machine.cpu.efer |= efer::SCE;
    g.regs.rcx = 1 << 50;
    g.traps(&[0x48, 0x0f, 0x07]);
    assert_eq!(g.handling(), Some(13));
}
