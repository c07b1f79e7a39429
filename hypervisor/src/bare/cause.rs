//! The ledger's names for the instructions of a bare kernel that trap.

use iced_x86::{Instruction, Mnemonic};

use super::platform::Platform;
use crate::exec::port::PortAccess;
use crate::ledger::{Cause, PrivOp};
use crate::x86::registers::Regs;
use crate::x86::sensitive::Class;

/// The cause of an exit for a privileged or sensitive instruction.
pub(super) fn of_instruction(insn: &Instruction, regs: &Regs) -> Cause {
    match PortAccess::of(insn, regs) {
        Some(access) if access.is_input => Cause::PortIn(Platform::owner(access.port)),
        Some(access) => Cause::PortOut(Platform::owner(access.port)),
        None => Cause::PrivilegedInstruction(name(insn)),
    }
}

fn name(insn: &Instruction) -> PrivOp {
    use Mnemonic::*;
    match insn.mnemonic() {
        Cli => PrivOp::Cli,
        Sti => PrivOp::Sti,
        Hlt => PrivOp::Hlt,
        Lgdt => PrivOp::Lgdt,
        Lidt => PrivOp::Lidt,
        Lldt => PrivOp::Lldt,
        Ltr => PrivOp::Ltr,
        Clts => PrivOp::Clts,
        Rdmsr => PrivOp::Rdmsr,
        Wrmsr => PrivOp::Wrmsr,
        Xsetbv => PrivOp::Xsetbv,
        Retf => PrivOp::FarReturn,
        Int | Int3 | Int1 => PrivOp::SoftInt,
        _ => of_class(insn),
    }
}

/// The name of an instruction that shares it with the rest of its class.
fn of_class(insn: &Instruction) -> PrivOp {
    match Class::of(insn) {
        Some(Class::ControlRegister) if insn.op0_register().is_cr() => PrivOp::MovToCr,
        Some(Class::ControlRegister) if insn.op1_register().is_cr() => PrivOp::MovFromCr,
        Some(Class::DebugRegister) => PrivOp::MovDr,
        Some(Class::LoadSegment) => PrivOp::SegmentLoad,
        Some(Class::TranslationCache) => PrivOp::Invlpg,
        Some(Class::DataCache) => PrivOp::Wbinvd,
        Some(Class::SwapGs) => PrivOp::Swapgs,
        Some(Class::InterruptReturn) => PrivOp::Iretq,
        Some(Class::SystemReturn) => PrivOp::Sysret,
        Some(Class::Identify) => PrivOp::Cpuid,
        _ => PrivOp::Other,
    }
}
