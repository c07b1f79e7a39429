//! INT n, through a gate of the guest's own interrupt table.

use iced_x86::{Mnemonic, OpKind};
use paravane_abi::trap::{TI_DPL_MASK, TRAP_GP_FAULT};

use super::decode;
use super::outcome::ExceptionOutcome;
use crate::ledger::{Cause, PrivOp};
use crate::pv::context::PvContext;
use crate::x86::exception::Fault;
use crate::x86::exception::selector_error::{IDT, INDEX_SHIFT};

/// Delivers INT n, which hosts report as #GP for its vector or as #UD. `None` if it is something else.
///
/// The vector is taken from the instruction: in 64-bit mode the error code of QEMU's emulated processors holds twice
/// the vector (at least up to version 7.2).
pub(super) fn software(cx: &mut PvContext<'_>, fault: Fault) -> Option<ExceptionOutcome> {
    let insn = decode::at_rip(cx)?;
    if insn.mnemonic() != Mnemonic::Int || insn.op0_kind() != OpKind::Immediate8 {
        return None;
    }
    let vector = insn.immediate8();
    let error_code = u32::from(vector) << INDEX_SHIFT | IDT;
    if fault.vector == TRAP_GP_FAULT && fault.error_code & IDT == 0 {
        return None;
    }
    if may_enter(cx, vector) {
        cx.vcpu.regs.rip = insn.next_ip();
        cx.deliver_software_interrupt(vector);
    } else {
        cx.deliver_fault(Fault { vector: TRAP_GP_FAULT, error_code, address: 0 });
    }
    Some(Cause::PrivilegedInstruction(PrivOp::SoftInt).into())
}

/// By the gate's privilege level: 0 allows nobody, 1 and 2 the kernel, 3 user mode too.
fn may_enter(cx: &PvContext<'_>, vector: u8) -> bool {
    let needed = if cx.vcpu.kernel_mode { 1 } else { 3 };
    cx.vcpu.traps.get(usize::from(vector)).is_some_and(|trap| trap.flags & TI_DPL_MASK >= needed)
}
