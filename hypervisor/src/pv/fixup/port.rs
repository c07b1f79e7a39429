//! IN and OUT: a paravirtual domain has no device on a port.
//!
//! Reads return ones, except from one port (`value_of`); writes are ignored. As on Xen, the kernel needs a virtual IOPL
//! of 1, a user program one of 3, or the permission of the I/O bitmap. While a run is measured, the kernel may also
//! write a byte to the mark port, an extension of Paravane, so that measurements do not depend on the guest's
//! privileges. In any other run, and for user programs, that port is like any other.

use std::convert::Infallible;

use iced_x86::{Code, Instruction};
use paravane_abi::trap::PFEC_WRITE;
use paravane_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::outcome::{Ended, ExceptionOutcome};
use crate::exec::operand::Operands;
use crate::exec::outside::{Attempt, Incomplete, IoPorts, Memory, Stored};
use crate::exec::port::PortAccess;
use crate::ledger::{Cause, PortDevice};
use crate::pv::context::PvContext;
use crate::pv::debug_registers::io_breakpoints;
use crate::x86::exception::Exception;

/// Writes here mark a measured region.
const MARK_PORT: u16 = 0x80;
/// The counter of the 8254's channel 2.
const PIT_CHANNEL_2: u16 = 0x42;
/// Elements of a repeated instruction that one exit transfers.
const MAX_REPEATS: u64 = 512;

/// Performs a port access; `None` if the instruction is none, or is not allowed.
pub(super) fn access(cx: &mut PvContext<'_>, insn: &Instruction) -> Option<(ExceptionOutcome, Ended)> {
    let access = PortAccess::of(insn, &cx.vcpu.regs)?;
    if cx.domain.facts.marks && cx.vcpu.kernel_mode && is_mark(insn, access) {
        let value = (cx.vcpu.regs.rax & 0xff) as u8;
        let outcome = ExceptionOutcome { cause: Cause::PortOut(PortDevice::Mark), mark: Some(value) };
        return Some((outcome, Ended::Done));
    }
    if !may_access(cx, access) {
        return None;
    }
    let cause = if access.is_input { Cause::PortIn } else { Cause::PortOut };
    let mut regs = cx.vcpu.regs;
    let mut operands =
        Operands { regs: &mut regs, memory: &mut NoDevices { cx: cx.reborrow() }, user: false };
    let ended = match operands.access_ports(insn, access, MAX_REPEATS) {
        Ok((_, true)) => Ended::Done,
        Ok((_, false)) => Ended::Again,
        Err(Incomplete::Exception(exception)) => Ended::Fault(exception.into()),
        Err(Incomplete::Machine(never)) => match never {},
    };
    cx.vcpu.regs = regs;
    Some((cause(PortDevice::Other).into(), ended))
}

/// The breakpoints on I/O that an instruction hits, as bits of DR6; 0 if it accesses no port.
pub(super) fn breakpoints(cx: &PvContext<'_>, insn: &Instruction) -> u64 {
    let access = PortAccess::of(insn, &cx.vcpu.regs);
    access.map_or(0, |access| io_breakpoints(cx.vcpu, access.port, access.size.into()))
}

fn is_mark(insn: &Instruction, access: PortAccess) -> bool {
    matches!(insn.code(), Code::Out_imm8_AL | Code::Out_DX_AL) && access.port == MARK_PORT
}

/// The guest's memory, and ports without devices.
struct NoDevices<'a> {
    cx: PvContext<'a>,
}

impl Memory for NoDevices<'_> {
    type Failure = Infallible;

    fn read(&mut self, va: u64, buf: &mut [u8], _: bool) -> Attempt<(), Self> {
        let read = self.cx.guest().read_bytes(va, buf);
        read.map_err(|_| Exception::from(self.cx.guest().fault_at(va, buf.len(), 0)).into())
    }

    fn write(&mut self, va: u64, bytes: &[u8], _: bool) -> Attempt<Stored, Self> {
        match self.cx.guest().write_bytes(va, bytes) {
            Ok(()) => Ok(Stored::Memory),
            Err(_) => Err(Exception::from(self.cx.guest().fault_at(va, bytes.len(), PFEC_WRITE)).into()),
        }
    }

    /// Always allowed: reading a port without a device changes nothing.
    fn probe_write(&mut self, _: u64, _: usize, _: bool) -> Attempt<(), Self> {
        Ok(())
    }
}

impl IoPorts for NoDevices<'_> {
    type Event = Infallible;

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        value_of(port, size)
    }

    fn port_out(&mut self, _: u16, _: u8, _: u32) -> Option<Infallible> {
        None
    }
}

/// What reads return: ones, and from the counter of the PIT's channel 2 a count that has run out.
///
/// Linux's first calibration of the TSC (`quick_pit_calibrate`) waits for this counter to leave 0xff, and on Xen
/// reads its ones 100 000 times before it gives up, which was half of the time that Linux took to start. At 0 it
/// gives up after two reads. Its second one looks at bit 5 of port 0x61, whose ones say that time is up already.
fn value_of(port: u16, size: u8) -> u32 {
    if port == PIT_CHANNEL_2 && size == 1 { 0 } else { u32::MAX }
}

fn may_access(cx: &PvContext<'_>, access: PortAccess) -> bool {
    cx.vcpu.io.level >= level_needed(cx) || is_open(cx, access.port, access.size.into())
}

/// The lowest virtual IOPL with which the running mode may do I/O, CLI and STI.
pub(super) fn level_needed(cx: &PvContext<'_>) -> u8 {
    match (cx.vcpu.kernel_mode, cx.domain.assisted(VMASST_TYPE_ARCHITECTURAL_IOPL)) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 3,
    }
}

/// Whether the guest's I/O bitmap, in its kernel's memory, allows all bytes of an access.
fn is_open(cx: &PvContext<'_>, port: u16, size: u32) -> bool {
    let last = u32::from(port) + size;
    last <= cx.vcpu.io.ports
        && (u32::from(port)..last).all(|port| {
            let at = cx.vcpu.io.bitmap.checked_add(u64::from(port / 8));
            let byte = at.and_then(|at| cx.kernel_memory().translate(at, false).ok());
            let byte = byte.and_then(|at| cx.domain.memory.read_obj::<u8>(at).ok());
            byte.is_some_and(|byte| byte >> (port % 8) & 1 == 0)
        })
}
