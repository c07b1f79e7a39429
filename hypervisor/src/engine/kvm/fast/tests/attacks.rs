//! Programs that jump where no program should, and read what is not theirs.

use super::super::text::ways;
use super::super::{STATE_VA, WAYS_VA};
use super::{FLAGS, Modes, PROGRAM_STACK, PROGRAM_VA, in_kernel, in_user};
use crate::engine::Exit;
use crate::engine::kvm::gate::EXIT_PORT;
use crate::engine::kvm::tables::{SYSCALL_VA, TEXT_VA};
use crate::machine::memory::Maddr;
use crate::testing::engine::{TEXT, code, fault, gp, pf};
use crate::x86::rflags;
use paravane_abi::pte;

/// A program that goes to rdi; a kernel that stops at once.
fn jumper() -> Option<Modes> {
    Modes::new(&code!("jmp rdi"), &code!("cli"))
}

/// Every byte of the ways, as a place to go to: the program is in user mode afterwards, or its kernel is at its entry.
#[test]
fn a_jump_to_any_byte_of_the_ways() {
    let Some(mut m) = jumper() else { return };
    for at in 0..ways::end() {
        m.start();
        // What the registers point to is the program's.
        (m.w.regs.rdi, m.w.regs.rcx, m.w.regs.rax) = (WAYS_VA + at, PROGRAM_VA + 2, PROGRAM_STACK - 64);
        m.w.regs.rdx = PROGRAM_STACK - 64;
        let (exit, crossed) = m.run();
        if crossed.user {
            let raised = matches!(exit, Exit::Fault(_) | Exit::Syscall);
            assert!(raised, "{at:#x}: {exit:?}");
        } else {
            assert_eq!((exit, crossed), (gp(0), in_kernel(1)), "{at:#x}");
            assert_eq!((m.w.regs.rip, m.w.regs.rsp), (super::CODE_VA, super::STACK_TOP - 16 - 56), "{at:#x}");
        }
    }
}

/// The same with the flags that a processor would stop for, or go on wrongly with.
#[test]
fn a_jump_with_odd_flags() {
    let Some(mut m) = jumper() else { return };
    let odd = rflags::TF | rflags::AC | rflags::DF;
    m.put_program(&code!("push rsi", "popfq", "jmp rdi"));
    for target in [SYSCALL_VA, WAYS_VA, WAYS_VA + ways::entry() - 1, WAYS_VA + ways::entry()] {
        m.start();
        (m.w.regs.rdi, m.w.regs.rsi) = (target, FLAGS | odd);
        (m.w.regs.rcx, m.w.regs.r11) = (PROGRAM_VA + 9, 0x3000 | rflags::NT | rflags::TF);
        let (mut exit, mut crossed) = m.run();
        // Single steps of the program, up to where it jumps to.
        while exit == fault(1) && crossed.user {
            assert!(m.w.regs.rip <= WAYS_VA + ways::entry(), "{:#x}", m.w.regs.rip);
            m.w.regs.rflags &= !rflags::TF;
            (exit, crossed) = m.run();
        }
        if !crossed.user {
            assert_eq!((exit, m.w.regs.rip), (gp(0), super::CODE_VA), "{target:#x}");
            let word = m.on_stack(16 + 24);
            assert_eq!(word & (rflags::IF | rflags::IOPL), rflags::IF, "{word:#x}: it may be interrupted");
        }
    }
    // With a step in the gate: the call is the host's.
    m.put_program(&code!("push rsi", "popfq", "int3"));
    m.start();
    m.w.regs.rsi = FLAGS | rflags::TF;
    let (exit, crossed) = m.run();
    assert!(crossed.user && matches!(exit, Exit::Fault(_)), "{exit:?}");
}

#[test]
fn a_breakpoint_of_the_programs_own() {
    let Some(mut m) = Modes::new(&code!("nop", "int3", "cli"), &code!("cli")) else { return };
    assert_eq!(m.run(), (fault(3), in_user(0)));
    assert_eq!((m.w.regs.rip, m.w.regs.rax), (PROGRAM_VA + 2, 0xa0a0));
    // At the same place in another 4 GiB.
    for at in [ways::entry(), ways::leap()] {
        let low = (WAYS_VA + at - 1) & 0xffff_ffff;
        let frame = m.w.frame();
        let entry = m.w.entry_in(m.user_root, low, 1);
        m.w.write(entry, 1, pte::make(frame.0, TEXT));
        m.w.memory.write(Maddr(frame.maddr().0 + low % 4096), &[0xcc]).unwrap();
        m.start();
        m.w.regs.rip = low;
        assert_eq!(m.run(), (fault(3), in_user(0)), "{low:#x}");
        assert_eq!(m.w.regs.rip, low + 1);
    }
}

#[test]
fn what_is_not_the_programs() {
    let Some(mut m) = Modes::new(&code!("mov rax, [rdi]", "cli"), &code!("cli")) else { return };
    for (va, present) in [(STATE_VA, false), (STATE_VA + 4096, false), (TEXT_VA + 0x800, true)] {
        m.start();
        m.w.regs.rdi = va;
        let error_code = if present { 5 } else { 4 };
        assert_eq!(m.run(), (pf(error_code, va), in_user(0)));
    }
    // The ways can be read, and not written to.
    m.put_program(&code!("mov [rdi], rax", "cli"));
    m.start();
    m.w.regs.rdi = WAYS_VA;
    assert_eq!(m.run(), (pf(7, WAYS_VA), in_user(0)));
    // A hypercall is none.
    m.put_program(&[0xe6, EXIT_PORT]);
    m.start();
    assert_eq!(m.run(), (gp(0), in_user(0)));
    assert_eq!(m.w.regs.rip, PROGRAM_VA);
}

/// Before anybody has said that there are two modes, the same jumps change none.
#[test]
fn without_fast_paths_there_is_nowhere_to_go() {
    let Some(mut m) = jumper() else { return };
    for at in 0..ways::end() {
        m.start();
        m.w.space.set_crossing(None);
        (m.w.regs.rdi, m.w.regs.rcx, m.w.regs.rax) = (WAYS_VA + at, PROGRAM_VA + 2, PROGRAM_STACK - 64);
        m.w.regs.rdx = PROGRAM_STACK - 64;
        let exit = m.w.run();
        assert!(matches!(exit, Exit::Fault(_) | Exit::Syscall), "{at:#x}: {exit:?}");
        assert_eq!(m.w.cpu.crossed(), None);
    }
}

impl Modes {
    fn put_program(&mut self, code: &[u8]) {
        let entry = self.w.entry_in(self.user_root, PROGRAM_VA, 1);
        let page = self.w.memory.load_u64(entry).unwrap() & pte::ADDR_MASK;
        self.w.memory.write(Maddr(page), code).unwrap();
    }
}
