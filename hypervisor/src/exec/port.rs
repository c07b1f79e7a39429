//! IN, OUT, INS and OUTS.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::access::{Rights, Trap};
use super::exception::Stop;
use super::operand::{read_register, truncate, write_register};
use crate::bare::platform::PlatformEvent;
use crate::x86::exception::Exception;
use crate::x86::rflags;

/// How many elements of a repeated INS or OUTS one exit transfers; the rest traps again.
const MAX_REPEATS: u64 = 256;

impl Trap<'_> {
    /// The port that the instruction names.
    pub fn port(&self, insn: &Instruction) -> u16 {
        let immediate = (0..insn.op_count()).find(|&op| insn.op_kind(op) == OpKind::Immediate8);
        immediate.map_or(self.regs.rdx as u16, |_| insn.immediate8().into())
    }

    /// IN.
    pub fn port_in(&mut self, insn: &Instruction) {
        let (port, register) = (self.port(insn), insn.op0_register());
        let value = self.platform.port_in(port, register.size() as u8, self.now_ns);
        write_register(self.regs, register, value.into());
    }

    /// OUT.
    pub fn port_out(&mut self, insn: &Instruction) -> Option<PlatformEvent> {
        let (port, register) = (self.port(insn), insn.op1_register());
        let value = read_register(self.regs, register) as u32;
        self.platform.port_out(port, register.size() as u8, value, self.now_ns)
    }

    /// INS and OUTS: returns what the last port write asked for, and whether the instruction has ended.
    pub fn port_string(&mut self, insn: &Instruction) -> Result<(Option<PlatformEvent>, bool), Stop> {
        let string = PortString::of(insn)?;
        let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
        let mut left = if repeats { string.count(self) } else { 1 };
        for _ in 0..left.min(MAX_REPEATS) {
            let event = string.transfer(self, insn)?;
            left -= 1;
            if repeats {
                write_register(self.regs, string.counter, left);
            }
            if event.is_some() {
                return Ok((event, left == 0));
            }
        }
        Ok((None, left == 0))
    }
}

/// The shape of an INS or OUTS.
struct PortString {
    writes_port: bool,
    size: usize,
    index: Register,
    counter: Register,
}

impl PortString {
    fn of(insn: &Instruction) -> Result<Self, Stop> {
        let writes_port = matches!(insn.mnemonic(), Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd);
        let size = match insn.code() {
            Code::Insb_m8_DX | Code::Outsb_DX_m8 => 1,
            Code::Insw_m16_DX | Code::Outsw_DX_m16 => 2,
            _ => 4,
        };
        let (index, counter) = match insn.op_kind(if writes_port { 1 } else { 0 }) {
            OpKind::MemoryESRDI => (Register::RDI, Register::RCX),
            OpKind::MemorySegRSI => (Register::RSI, Register::RCX),
            OpKind::MemoryESEDI => (Register::EDI, Register::ECX),
            OpKind::MemorySegESI => (Register::ESI, Register::ECX),
            _ => return Err(Exception::undefined().into()),
        };
        Ok(Self { writes_port, size, index, counter })
    }

    fn count(&self, trap: &Trap<'_>) -> u64 {
        read_register(trap.regs, self.counter)
    }

    fn transfer(&self, trap: &mut Trap<'_>, insn: &Instruction) -> Result<Option<PlatformEvent>, Stop> {
        let (port, size) = (trap.regs.rdx as u16, self.size);
        let mut event = None;
        if self.writes_port {
            let va = trap.linear_address(insn, 1)?;
            let value = trap.read_value(va, size, Rights::Current)? as u32;
            event = trap.platform.port_out(port, size as u8, value, trap.now_ns);
        } else {
            let va = trap.linear_address(insn, 0)?;
            // Reading a port may take a byte out of a device: only where it can be stored.
            trap.probe_write(va, size, Rights::Current)?;
            let value = trap.platform.port_in(port, size as u8, trap.now_ns);
            trap.write_value(va, size, value.into(), Rights::Current)?;
        }
        let step = size as u64;
        let backwards = trap.regs.rflags & rflags::DF != 0;
        let index = read_register(trap.regs, self.index);
        let next = if backwards { index.wrapping_sub(step) } else { index.wrapping_add(step) };
        write_register(trap.regs, self.index, truncate(next, self.index.size()));
        Ok(event)
    }
}
