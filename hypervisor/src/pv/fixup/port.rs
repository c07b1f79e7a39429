//! IN and OUT: a domain without devices has no port that answers.
//!
//! Reads yield ones, but for one port (`value_of`); writes go nowhere. Who may try follows Xen: the kernel with a
//! virtual IOPL of 1, user programs with 3, or whoever the I/O bitmap lets. While a run is measured, the kernel may
//! also write a byte to the mark port, which is Paravane's own, because measurements must not depend on the guest's
//! privileges. In any other run, and to user programs always, that port is like any other.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use paravane_abi::trap::PFEC_WRITE;
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::{Emulated, Ended, UNDEFINED};
use crate::exec::operand::{linear_address, read_register, write_register};
use crate::ledger::{Cause, PortDevice};
use crate::pv::domain::PvDomain;
use crate::pv::hypercall::io_breakpoints;
use crate::x86::rflags;

/// Writes here mark a measured region.
const MARK_PORT: u16 = 0x80;
/// The counter of the 8254's channel 2.
const PIT_CHANNEL_2: u16 = 0x42;
/// Elements of a repeated instruction that one exit transfers.
const MAX_REPEATS: u64 = 512;

/// Performs a port access; `None` if the instruction is none, or the guest may not.
pub(super) fn access(d: &mut PvDomain, insn: &Instruction) -> Option<(Emulated, Ended)> {
    use Mnemonic::*;
    let (input, string) = match insn.mnemonic() {
        In => (true, false),
        Out => (false, false),
        Insb | Insw | Insd => (true, true),
        Outsb | Outsw | Outsd => (false, true),
        _ => return None,
    };
    if d.facts.marks && d.vcpu.kernel_mode && is_mark(d, insn) {
        let value = (d.vcpu.regs.rax & 0xff) as u8;
        let emulated = Emulated { cause: Cause::PortOut(PortDevice::Mark), mark: Some(value) };
        return Some((emulated, Ended::Done));
    }
    let size = size_of_access(insn);
    if !may_access(d, port_of(d, insn), size) {
        return None;
    }
    let cause = if input { Cause::PortIn(PortDevice::Other) } else { Cause::PortOut(PortDevice::Other) };
    let ended = match (string, input) {
        (true, _) => repeat(d, insn, size, input),
        (false, true) => {
            let value = value_of(port_of(d, insn), size);
            write_register(&mut d.vcpu.regs, insn.op0_register(), value);
            Ended::Done
        }
        (false, false) => Ended::Done,
    };
    Some((cause.into(), ended))
}

/// The breakpoints on I/O that an instruction would meet, as bits of DR6; none if it is no port access.
pub(super) fn breakpoints(d: &PvDomain, insn: &Instruction) -> u64 {
    use Mnemonic::*;
    match insn.mnemonic() {
        In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd => {
            io_breakpoints(d, port_of(d, insn), size_of_access(insn))
        }
        _ => 0,
    }
}

fn is_mark(d: &PvDomain, insn: &Instruction) -> bool {
    matches!(insn.code(), Code::Out_imm8_AL | Code::Out_DX_AL) && port_of(d, insn) == MARK_PORT
}

/// What IN reads: ones, and from the counter of the PIT's channel 2 a count that has run out.
///
/// Linux's first calibration of the TSC (`quick_pit_calibrate`) waits for this counter to leave 0xff, and on Xen
/// reads its ones 100 000 times before it gives up, which was half of the time that Linux took to start. At 0 it
/// gives up after two reads. Its second one looks at bit 5 of port 0x61, whose ones say that time is up already.
fn value_of(port: u16, size: u32) -> u64 {
    if port == PIT_CHANNEL_2 && size == 1 { 0 } else { u64::MAX }
}

fn port_of(d: &PvDomain, insn: &Instruction) -> u16 {
    match insn.code() {
        Code::In_AL_imm8
        | Code::In_AX_imm8
        | Code::In_EAX_imm8
        | Code::Out_imm8_AL
        | Code::Out_imm8_AX
        | Code::Out_imm8_EAX => u16::from(insn.immediate8()),
        _ => (d.vcpu.regs.rdx & 0xffff) as u16,
    }
}

fn size_of_access(insn: &Instruction) -> u32 {
    let register = |register: Register| register.size();
    let size = match insn.mnemonic() {
        Mnemonic::In => register(insn.op0_register()),
        Mnemonic::Out => register(insn.op1_register()),
        _ => insn.memory_size().size(),
    };
    u32::try_from(size).unwrap_or(4)
}

fn may_access(d: &PvDomain, port: u16, size: u32) -> bool {
    d.vcpu.io.level >= level_needed(d) || is_open(d, port, size)
}

/// The virtual IOPL from which on the running mode may do I/O, CLI and STI.
pub(super) fn level_needed(d: &PvDomain) -> u8 {
    match (d.vcpu.kernel_mode, d.vcpu.assisted(VMASST_TYPE_ARCHITECTURAL_IOPL)) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 3,
    }
}

/// Whether the guest's bitmap, which lies in its kernel's memory, lets all bytes of an access through.
fn is_open(d: &PvDomain, port: u16, size: u32) -> bool {
    let last = u32::from(port) + size;
    last <= d.vcpu.io.ports
        && (u32::from(port)..last).all(|port| {
            let at = d.vcpu.io.bitmap.checked_add(u64::from(port / 8));
            let byte = at.and_then(|at| d.translate_in_kernel(at, false).ok());
            let byte = byte.and_then(|at| d.memory.read_obj::<u8>(at).ok());
            byte.is_some_and(|byte| byte >> (port % 8) & 1 == 0)
        })
}

/// INS fills memory with ones; OUTS reads what it would have written.
fn repeat(d: &mut PvDomain, insn: &Instruction, size: u32, input: bool) -> Ended {
    let index = index_register(insn, input);
    if index == Register::None {
        return Ended::Fault(UNDEFINED);
    }
    let counter = if index.size() == 8 { Register::RCX } else { Register::ECX };
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    let mut left = if repeats { read_register(&d.vcpu.regs, counter) } else { 1 };
    let len = usize::try_from(size).unwrap_or(4);
    for _ in 0..left.min(MAX_REPEATS) {
        let operand = if input { 0 } else { 1 };
        let Some(va) = linear_address(&d.vcpu.regs, insn, operand) else {
            return Ended::Fault(UNDEFINED);
        };
        let mut bytes = [0xff; 4];
        let part = bytes.get_mut(..len).unwrap_or_default();
        let done = if input { d.write_guest(va, part) } else { d.read_guest(va, part) };
        if done.is_err() {
            let wanted = if input { PFEC_WRITE } else { 0 };
            return Ended::Fault(d.fault_at(va, len, wanted));
        }
        let step = u64::from(size);
        let regs = &mut d.vcpu.regs;
        let at = read_register(regs, index);
        let next = if regs.rflags & rflags::DF != 0 { at.wrapping_sub(step) } else { at.wrapping_add(step) };
        write_register(regs, index, next);
        left -= 1;
        if repeats {
            write_register(regs, counter, left);
        }
    }
    if left == 0 { Ended::Done } else { Ended::Again }
}

/// The register that a string instruction's memory operand goes by.
fn index_register(insn: &Instruction, input: bool) -> Register {
    match if input { insn.op0_kind() } else { insn.op1_kind() } {
        OpKind::MemoryESRDI => Register::RDI,
        OpKind::MemoryESEDI => Register::EDI,
        OpKind::MemorySegRSI => Register::RSI,
        OpKind::MemorySegESI => Register::ESI,
        _ => Register::None,
    }
}
