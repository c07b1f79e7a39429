//! Stopped before every instruction of the ways and of the gate, by an `OUT` that is put in its place: what the layers
//! above get is a call that has not begun, a return that has not begun, or the program behind it.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use paravane_abi::pte;
use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};

use super::super::text::{self, ways};
use super::super::{GATE_OFFSET, WAYS_VA};
use super::{FLAGS, KERNEL_GS, Modes, PROGRAM_STACK, PROGRAM_VA, USER_GS, in_user};
use crate::engine::Exit;
use crate::engine::kvm::gate::EXIT_PORT;
use crate::engine::kvm::host::{HostKind, host_kind};
use crate::engine::kvm::tables::TEXT_VA;
use crate::machine::memory::Maddr;
use crate::testing::engine::{STACK_TOP, code, fault, gp};
use crate::x86::registers::Regs;

/// Where each instruction of a piece of text begins. HLT is behind a way out, and never reached.
fn instructions(text: &[u8]) -> Vec<u64> {
    let all = Decoder::new(64, text, DecoderOptions::NONE).into_iter();
    all.filter(|insn| insn.mnemonic() != Mnemonic::Hlt).map(|insn| insn.ip()).collect()
}

/// How often each outcome was met.
#[derive(Debug, Default)]
struct Met {
    calls: u32,
    returns: u32,
    completed: u32,
    leaps: u32,
    passed: u32,
}

impl Met {
    /// Judges where a round trip was stopped, whose registers were `before`.
    fn judge(&mut self, m: &mut Modes, at: u64, before: &Regs) {
        // Nobody kicks.
        let exit = m.w.enter();
        let crossed = m.w.cpu.crossed().expect("there are fast paths");
        let regs = m.w.regs;
        let rip = PROGRAM_VA + 2;
        let returned = Regs { rip, rax: 42, rcx: rip, r11: FLAGS, rflags: regs.rflags, ..*before };
        match exit {
            Exit::Syscall => {
                self.calls += 1;
                let called = Regs { rip, rcx: rip, r11: FLAGS, rflags: FLAGS, ..*before };
                assert_eq!((regs, crossed), (called, in_user(crossed.crossings)), "{at:#x}");
                assert_eq!(m.upcall(), (false, false), "{at:#x}");
            }
            Exit::Hypercall => {
                self.returns += 1;
                assert_eq!((crossed.user, crossed.other_gs_base), (false, USER_GS), "{at:#x}");
                let sp = STACK_TOP - 16 - 72;
                assert_eq!((regs.rax, regs.rsp, regs.gs_base), (23, sp, KERNEL_GS), "{at:#x}");
                assert_eq!((regs.rbx, regs.r15), (before.rbx, before.r15), "{at:#x}");
                let frame: Vec<_> = (0..9).map(|n| m.on_stack(16 + 72 - n * 8)).collect();
                let tail = [FLAT_USER_CS.into(), FLAGS, PROGRAM_STACK, FLAT_USER_SS.into()];
                assert_eq!(frame, [&[42, FLAGS, rip, 0, rip][..], &tail].concat(), "{at:#x}");
            }
            Exit::Kick => {
                self.completed += 1;
                assert_eq!((regs, crossed), (returned, in_user(2)), "{at:#x}");
            }
            // The program's own `OUT`, as far as anybody can tell.
            exit if exit == gp(0) && regs.rip == WAYS_VA + ways::leap() => {
                self.leaps += 1;
                assert_eq!((regs, crossed), (Regs { rip: regs.rip, ..returned }, in_user(2)));
            }
            exit => {
                self.passed += 1;
                assert_eq!((exit, regs, crossed), (gp(0), returned, in_user(2)), "{at:#x}");
            }
        }
    }

    /// Stops a round trip before each instruction of the `text` at `va`.
    fn at_each(m: &mut Modes, va: u64, text: &[u8]) -> Self {
        let mut met = Self::default();
        let entry = m.w.entry_in(m.kernel_root, va, 1);
        let page = m.w.memory.load_u64(entry).unwrap() & pte::ADDR_MASK;
        let start = page + va % 4096;
        // Where SYSCALL does not arrive at the ways' INT3, a longer instruction there would be in the way.
        let raises = host_kind() == HostKind::Hardware;
        let passed_by = (raises && va == WAYS_VA).then(|| ways::entry() - 1);
        for at in instructions(text).into_iter().filter(|at| Some(*at) != passed_by) {
            m.start();
            let before = m.w.regs;
            m.w.memory.write(Maddr(start + at), &[0xe6, EXIT_PORT]).unwrap();
            met.judge(m, at, &before);
            m.w.memory.write(Maddr(start), text).unwrap();
        }
        met
    }
}

#[test]
fn stopped_at_each_instruction_of_the_ways() {
    let Some(mut m) = Modes::round_trip() else { return };
    let met = Met::at_each(&mut m, WAYS_VA, text::ways_text());
    // All but those of the three ways out, of a SYSCALL that is not for the kernel, and of one that arrives elsewhere.
    assert!(met.calls >= 27 && met.returns >= 45 && met.leaps == 1 && met.completed == 0, "{met:?}");
    assert!(met.passed <= 12, "{met:?}");
}

#[test]
fn stopped_at_each_instruction_of_the_gate() {
    let Some(mut m) = Modes::round_trip() else { return };
    let met = Met::at_each(&mut m, TEXT_VA + GATE_OFFSET, text::gate_text());
    // What both directions have in common is met on the first one's way.
    assert!(met.calls >= 8 && met.returns >= 3 && met.leaps == 0, "{met:?}");
}

/// Nothing of the gate's way to the stub of #BP leaves for the host, or is taken for a kick.
#[test]
fn stopped_at_each_instruction_for_a_breakpoint_of_the_programs_own() {
    let Some(mut m) = Modes::new(&code!("int3", "cli"), &code!("cli")) else { return };
    let (va, text) = (TEXT_VA + GATE_OFFSET, text::gate_text());
    let entry = m.w.entry_in(m.kernel_root, va, 1);
    let page = m.w.memory.load_u64(entry).unwrap() & pte::ADDR_MASK;
    let start = page + va % 4096;
    let mut met = 0;
    for at in instructions(text) {
        m.start();
        m.w.memory.write(Maddr(start + at), &[0xe6, EXIT_PORT]).unwrap();
        match m.w.run() {
            Exit::Dead(_) => met += 1,
            exit => {
                assert_eq!((exit, m.w.regs.rip, m.w.regs.rax), (fault(3), PROGRAM_VA + 1, 0xa0a0), "{at:#x}")
            }
        }
        m.w.memory.write(Maddr(start), text).unwrap();
    }
    assert_eq!(met, 9);
}
