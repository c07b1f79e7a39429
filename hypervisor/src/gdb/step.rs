//! One instruction by RFLAGS.TF, so that the guest does not notice.
//!
//! TF is set for the entry and cleared after it, before anything looks at the flags: what handles the exit, and what it
//! pushes for the guest, sees the guest's own. Two kinds of instructions get to the flag themselves. PUSHF stores it:
//! the stored word is corrected. POPF and IRETQ replace it: what they load is the guest's own (SDM vol. 3, 17.3.1.4:
//! the trap after them is that of the flag before). SYSCALL keeps the flags in R11.
//!
//! A guest that steps itself has its own trap after the instruction, which goes to the guest as without a debugger.

use iced_x86::Mnemonic;

use super::memory;
use crate::engine::{Cpu, Exit};
use crate::monitor::Runner;
use crate::x86::decode::{Dialect, instruction_at};
use crate::x86::rflags::TF;

/// How an instruction gets to TF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touches {
    Nothing,
    /// PUSHF, of so many bytes.
    Stores(usize),
    /// POPF, IRET.
    Loads,
}

/// A step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// RIP before it.
    pub from: u64,
    /// Whether the guest steps itself.
    pub theirs: bool,
}

/// Enters the guest for one instruction, whose registers are then as if nobody had stepped.
pub(super) fn enter(runner: &mut dyn Runner, cpu: &mut dyn Cpu) -> (Step, Exit) {
    let regs = *runner.regs();
    let step = Step { from: regs.rip, theirs: regs.rflags & TF != 0 };
    let touches = if step.theirs { Touches::Nothing } else { touches(runner, regs.rip) };
    if let Some(inspect) = runner.inspect() {
        inspect.regs_mut().rflags |= TF;
    }
    let exit = runner.enter(cpu);
    if !step.theirs {
        undo(runner, step, touches, exit);
    }
    (step, exit)
}

fn touches(runner: &mut dyn Runner, rip: u64) -> Touches {
    let insn = instruction_at(rip, Dialect::Intel, |va, buffer| {
        let at = memory::translate(runner, va)?;
        runner.memory().read(at, buffer).ok()
    });
    match insn.map(|insn| insn.mnemonic()) {
        Some(Mnemonic::Pushf) => Touches::Stores(2),
        Some(Mnemonic::Pushfq) => Touches::Stores(8),
        Some(Mnemonic::Popf | Mnemonic::Popfq | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq) => {
            Touches::Loads
        }
        _ => Touches::Nothing,
    }
}

fn undo(runner: &mut dyn Runner, step: Step, touches: Touches, exit: Exit) {
    let went_on = runner.regs().rip != step.from;
    let rsp = runner.regs().rsp;
    let Some(inspect) = runner.inspect() else { return };
    let regs = inspect.regs_mut();
    if !(touches == Touches::Loads && went_on) {
        regs.rflags &= !TF;
    }
    if matches!(exit, Exit::Syscall | Exit::Hypercall) {
        regs.r11 &= !TF;
    }
    if let (Touches::Stores(len), true) = (touches, went_on) {
        correct(runner, rsp, len);
    }
}

/// Clears TF in the flags that were pushed.
fn correct(runner: &mut dyn Runner, rsp: u64, len: usize) {
    // TF is in the second byte, and that lies in one page.
    let second = rsp.wrapping_add(1);
    let Some(at) = memory::translate(runner, second).filter(|_| len > 1) else { return };
    let Ok(flags) = runner.memory().read_obj::<u8>(at) else { return };
    if let Some(inspect) = runner.inspect() {
        // Where it could be pushed, it can be written.
        let _ = inspect.write(at, &[flags & !((TF >> 8) as u8)]);
    }
}
