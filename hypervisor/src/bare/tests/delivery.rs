//! Exceptions and interrupts through the guest's IDT.

use super::*;

fn divide() -> Exit {
    Exit::Fault(Fault { vector: 0, error_code: 0, address: 0 })
}

#[test]
fn frames_hold_what_the_kernel_believes() {
    let mut g = Guest::booted();
    g.machine.cpu.interrupts = true;
    g.regs.rsp = BASE + STACK - 8;
    g.exit(Exit::Fault(Fault { vector: 17, error_code: 0, address: 0 }));
    assert_eq!(g.handling(), Some(17));
    let aligned = BASE + STACK - 16;
    assert_eq!(g.regs.rsp, aligned - 48);
    let flags = rflags::IF | rflags::FIXED;
    assert_eq!(g.stack::<6>(), [0, BASE + CODE, KERNEL_CS.into(), flags, BASE + STACK - 8, KERNEL_DS.into()]);
    assert!(!g.machine.cpu.interrupts, "an interrupt gate");
    g.set_gate(0, 0xf, 0, 0);
    g.machine.cpu.interrupts = true;
    g.exit(divide());
    assert!(g.machine.cpu.interrupts, "a trap gate");
    g.set_gate(0, 0xe, 0, 1);
    g.exit(divide());
    assert_eq!(g.regs.rsp, BASE + IST1 - 40);
}

#[test]
fn software_interrupts() {
    let mut g = Guest::booted();
    resumed(&g.traps_with(&[0xcd, 0x80], 13, 0x80 << 3 | 2), PrivOp::SoftInt);
    assert_eq!((g.handling(), g.stack::<1>()), (Some(0x80), [BASE + CODE + 2]));
    // Some hosts raise #UD for it.
    g.regs.rip = BASE + CODE;
    resumed(&g.traps_with(&[0xcd, 0x81], 6, 0), PrivOp::SoftInt);
    assert_eq!(g.handling(), Some(0x81));
    // INT3 arrives as a trap.
    g.regs.rip = BASE + CODE + 1;
    assert_eq!(
        g.exit(Exit::Fault(Fault { vector: 3, error_code: 0, address: 0 })).cause,
        Cause::GuestFault { vector: 3 }
    );
    assert_eq!((g.handling(), g.stack::<1>()), (Some(3), [BASE + CODE + 1]));
    // A program can only use gates of DPL 3.
    let mut g = Guest::in_user_mode();
    g.traps_with(&[0xcd, 0x80], 13, 0x80 << 3 | 2);
    assert_eq!((g.handling(), g.stack::<2>()), (Some(13), [0x80 << 3 | 2, BASE + USER_CODE]));
    let mut g = Guest::in_user_mode();
    g.set_gate(0x80, 0xe, 3, 0);
    g.traps_with(&[0xcd, 0x80], 13, 0x80 << 3 | 2);
    assert_eq!((g.handling(), g.stack::<1>()), (Some(0x80), [BASE + USER_CODE + 2]));
}

/// Starts the PIT at a kilohertz and opens IRQ 0 as vector 32.
fn start_timer(g: &mut Guest) {
    let pc = &mut g.machine.platform;
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 32),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe),
        (0x43, 0x34),
        (0x40, 0xa9),
        (0x40, 0x04),
    ] {
        assert_eq!(pc.port_out(port, 1, value, 0), None);
    }
}

#[test]
fn interrupts_wait_for_the_flag() {
    let mut g = Guest::booted();
    start_timer(&mut g);
    assert_eq!(g.machine.next_deadline(true), None, "interrupts are off: a kick has no effect");
    g.now = 1_000_000;
    assert_eq!(g.pending(), Ok(None));
    g.traps(&[0xfb]);
    assert!(g.machine.next_deadline(true).is_none(), "one is pending already");
    // One more instruction runs after STI, if it is certain to trap.
    g.poke_bytes(CODE + 1, &[0xfa]);
    assert_eq!(g.pending(), Ok(None));
    g.traps(&[0xfa]);
    assert_eq!(g.pending(), Ok(None));
    g.traps(&[0xfb]);
    g.poke_bytes(CODE + 3, &[0x90]);
    assert_eq!(g.pending(), Ok(Some(32)));
    assert_eq!((g.handling(), g.stack::<1>()), (Some(32), [BASE + CODE + 3]));
    assert_eq!(g.pending(), Ok(None), "only after the end of interrupt");
    assert_eq!(g.exit(Exit::Kick), BareExit { cause: Cause::Kick, outcome: BareOutcome::Resume });
}

/// Not every load of a segment register traps: an interrupt that is deferred until after one might never come.
#[test]
fn sti_defers_interrupts_only_before_what_is_certain_to_trap() {
    let may_run_natively: [&[u8]; 4] = [
        &[0x8e, 0xd8],       // mov ds, eax: of a null selector
        &[0x0f, 0xa1],       // pop fs
        &[0x48, 0xcb],       // retfq
        &[0x0f, 0x01, 0xe0], // smsw eax
    ];
    for code in may_run_natively {
        let mut g = Guest::booted();
        start_timer(&mut g);
        g.now = 1_000_000;
        g.traps(&[0xfb]);
        g.poke_bytes(CODE + 1, code);
        assert_eq!(g.pending(), Ok(Some(32)), "{code:x?}");
    }
}

#[test]
fn hlt_waits() {
    let mut g = Guest::booted();
    start_timer(&mut g);
    g.machine.platform.poll(0);
    g.traps(&[0xfb]);
    let deadline = g.machine.next_deadline(true);
    assert!(deadline.is_some());
    let handled = g.traps(&[0xf4]);
    assert_eq!(handled.outcome, BareOutcome::Halted { until_ns: deadline });
    assert!(g.machine.is_halted());
    assert_eq!(g.pending(), Ok(None));
    assert!(g.machine.is_halted());
    g.now = deadline.unwrap();
    assert_eq!(g.pending(), Ok(Some(32)));
    assert!(!g.machine.is_halted());
    assert_eq!(g.stack::<1>(), [BASE + CODE + 2], "it returns to after the HLT");
    // With an interrupt pending HLT does not wait.
    let mut g = Guest::booted();
    start_timer(&mut g);
    g.now = 2_000_000;
    g.traps(&[0xfb]);
    assert_eq!(g.traps(&[0xf4]).outcome, BareOutcome::Resume);
    assert_eq!(g.pending(), Ok(Some(32)));
    let mut g = Guest::booted();
    died(&g.traps(&[0xf4]), "halted for ever: HLT at rip 0x40020000");
}

#[test]
fn faults_while_delivering() {
    // No gate for #DE: #GP instead. None for that: #DF. None for that: the end.
    let mut g = Guest::booted();
    g.set_gate(0, 0, 0, 0);
    g.exit(divide());
    assert_eq!(g.handling(), Some(8), "contributory on contributory");
    let mut g = Guest::booted();
    g.set_gate(1, 0, 0, 0);
    g.exit(Exit::Fault(Fault { vector: 1, error_code: 0, address: 0 }));
    assert_eq!((g.handling(), g.stack::<1>()), (Some(13), [1 << 3 | 3]));
    let mut g = Guest::booted();
    g.set_gate(0, 0, 0, 0);
    g.set_gate(8, 0, 0, 0);
    let handled = g.exit(divide());
    died(&handled, "triple fault: exception 8 at rip 0x40020000");
    assert_eq!(handled.cause, Cause::GuestFault { vector: 0 });
    // No IDT at all.
    let mut g = Guest::new();
    died(&g.traps(&[0x0f, 0x0b]), "triple fault");
}

#[test]
fn a_fault_on_a_bad_stack_becomes_a_page_fault() {
    let mut g = Guest::booted();
    g.regs.rsp = BASE + 0x80_0000;
    g.exit(divide());
    assert_eq!(g.handling(), None);
    assert_eq!(g.machine.cpu.cr2, BASE + 0x80_0000 - 48);
    let mut g = Guest::booted();
    g.set_gate(14, 0xe, 0, 1);
    g.regs.rsp = BASE + 0x80_0000;
    g.exit(divide());
    assert_eq!((g.handling(), g.stack::<1>()), (Some(14), [0b10]), "the page fault has a stack of its own");
    assert_eq!(g.machine.cpu.cr2, BASE + 0x80_0000 - 40);
    let mut g = Guest::booted();
    g.set_gate(12, 0xe, 0, 1);
    g.regs.rsp = 2 << 47;
    g.exit(Exit::Fault(Fault { vector: 1, error_code: 0, address: 0 }));
    assert_eq!(g.handling(), Some(12));
    // Without a TSS a program's exception has no stack to go to.
    let mut g = Guest::in_user_mode();
    g.machine.cpu.task = virtual_cpu::SystemSegment::default();
    died(&g.exit(divide()), "triple fault");
}

#[test]
fn bad_handlers() {
    for (selector, vector, error) in [(0u64, 13, 1u64), (0x10, 13, 0x11), (0x40, 13, 0x41), (0x50, 13, 0x51)]
    {
        let mut g = Guest::booted();
        let gate = g.peek(IDT + 16);
        g.poke(IDT + 16, gate & !0xffff_0000 | selector << 16);
        g.exit(Exit::Fault(Fault { vector: 1, error_code: 0, address: 0 }));
        assert_eq!((g.handling(), g.stack::<1>()), (Some(vector), [error]), "{selector:#x}");
    }
}

#[test]
fn a_handler_that_no_rip_can_hold() {
    let mut g = Guest::booted();
    g.poke(IDT + 8, 0x1_0000);
    g.exit(divide());
    assert_eq!((g.handling(), g.stack::<1>()), (Some(8), [0]), "#GP(EXT) on #DE: a double fault");
    let mut g = Guest::booted();
    g.poke(IDT + 16 + 8, 0x1_0000);
    g.exit(Exit::Fault(Fault { vector: 1, error_code: 0, address: 0 }));
    assert_eq!((g.handling(), g.stack::<2>()), (Some(13), [1, BASE + CODE]));
    let mut g = Guest::booted();
    g.poke(IDT + 0x80 * 16 + 8, 0x1_0000);
    g.traps_with(&[0xcd, 0x80], 13, 0x80 << 3 | 2);
    assert_eq!((g.handling(), g.stack::<2>()), (Some(13), [0, BASE + CODE]));
}
