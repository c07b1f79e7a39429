//! What is in a stub: the instructions that the jump to it replaces, and a jump back.
//!
//! A sensitive instruction is what [`crate::codegen`] has for it; any other is a copy that does the same from where it
//! lies. A CALL pushes the guest's own return address: no address of a stub is ever in a register or in memory of the
//! guest.

use std::ops::Range;

use iced_x86::{ConstantOffsets, FlowControl, Instruction, Mnemonic};

use super::site::{ends_flow, is_movable};
use crate::codegen::emitter::{Dead, Emitter, Environment, Unsuitable};
use crate::codegen::recipe::{Point, Recipe};
use crate::codegen::state_page::TARGET;
use crate::x86::decode::decoder;
use crate::x86::rflags;
use crate::x86::sensitive::Class;

/// A stub, for one address.
#[derive(Debug)]
pub(crate) struct Stub {
    /// Its code.
    pub bytes: Vec<u8>,
    /// The guest's state at each instruction of it.
    pub points: Vec<Point>,
    /// For each of the guest's instructions its address, and where in the stub it can be entered with the guest's
    /// state.
    pub entries: Vec<(u64, u64)>,
}

impl Stub {
    /// Nothing but a jump to `target`, in the place of what begins at `rip`.
    pub fn jump(rip: u64, at: u64, origin: u64, target: u64, env: Environment) -> Result<Self, Unsuitable> {
        let mut stub = Self { bytes: Vec::new(), points: Vec::new(), entries: Vec::new() };
        emitter(&mut stub, at, origin, env).jump(Recipe::at(rip), target)?;
        Ok(stub)
    }

    /// The stub at `at` for the guest's instructions at `range`, whose bytes are `code`. Points count from `origin`.
    pub fn new(
        code: &[u8],
        range: &Range<u64>,
        at: u64,
        origin: u64,
        env: Environment,
    ) -> Result<Self, Unsuitable> {
        let mut stub = Self { bytes: Vec::new(), points: Vec::new(), entries: Vec::new() };
        let mut entries = Vec::new();
        let mut emitter = emitter(&mut stub, at, origin, env);
        let mut decoder = decoder(code, range.start);
        let mut ended = false;
        while decoder.ip() < range.end {
            let from = decoder.position();
            let insn = decoder.decode();
            if !is_movable(&insn) {
                return Err(Unsuitable::Form);
            }
            let bytes = code.get(from..decoder.position()).ok_or(Unsuitable::Form)?;
            let offsets = decoder.get_constant_offsets(&insn);
            let rest = code.get(decoder.position()..).unwrap_or_default();
            entries.push((insn.ip(), emitter.here()));
            instruction(&mut emitter, &insn, offsets, bytes, rest)?;
            ended = ends_flow(&insn);
        }
        if !ended {
            emitter.jump(Recipe::at(range.end), range.end)?;
        }
        stub.entries = entries;
        Ok(stub)
    }
}

fn emitter(stub: &mut Stub, at: u64, origin: u64, env: Environment) -> Emitter<'_> {
    let from = u32::try_from(at.wrapping_sub(origin)).unwrap_or(u32::MAX);
    Emitter::new(&mut stub.bytes, &mut stub.points, at, from, env)
}

fn instruction(
    e: &mut Emitter<'_>,
    insn: &Instruction,
    offsets: ConstantOffsets,
    code: &[u8],
    rest: &[u8],
) -> Result<(), Unsuitable> {
    let before = Recipe::at(insn.ip());
    if Class::of(insn).is_some() {
        if insn.mnemonic() == Mnemonic::Iretq && interrupt_return(e, insn) {
            return Ok(());
        }
        e.sensitive(insn, Dead { flags: flags_are_dead(rest) });
        return Ok(());
    }
    match insn.flow_control() {
        FlowControl::Next => e.copy(insn, offsets, code),
        FlowControl::UnconditionalBranch => e.jump(before, insn.near_branch_target()).map(drop),
        FlowControl::ConditionalBranch => conditional(e, insn, code),
        FlowControl::Call => {
            e.push_value(before, insn.next_ip());
            e.jump(before.rsp(8), insn.near_branch_target()).map(drop)
        }
        FlowControl::IndirectBranch => e.copy_at(before, insn, offsets, code),
        FlowControl::IndirectCall => {
            let jump = as_jump(insn, code)?;
            e.push_value(before, insn.next_ip());
            e.copy_at(before.rsp(8), insn, offsets, &jump)
        }
        FlowControl::Return | FlowControl::Interrupt | FlowControl::Exception => {
            e.op(before, code);
            Ok(())
        }
        FlowControl::XbeginXabortXend => Err(Unsuitable::Form),
    }
}

/// IRETQ, within ring 0 without the host; whether there is room for that.
fn interrupt_return(e: &mut Emitter<'_>, insn: &Instruction) -> bool {
    let from = e.len();
    let emitted = e.return_from_interrupt(insn).and_then(|mut at| {
        for register in [0, 2, 1] {
            at = e.reload(at, register)?;
        }
        // jmp [target]
        e.on_state(at, &[0xff, 0x25], TARGET, &[])
    });
    if emitted.is_err() {
        e.cut(from);
    }
    emitted.is_ok()
}

/// A conditional jump, with a 32-bit displacement.
fn conditional(e: &mut Emitter<'_>, insn: &Instruction, code: &[u8]) -> Result<(), Unsuitable> {
    let displacement = if insn.is_jcc_short() { 1 } else { 4 };
    let opcode =
        code.len().checked_sub(displacement + 1).and_then(|at| code.get(at)).ok_or(Unsuitable::Form)?;
    let end = e.here().wrapping_add(6);
    let distance = insn.near_branch_target().wrapping_sub(end).cast_signed();
    let distance = i32::try_from(distance).map_err(|_| Unsuitable::OutOfReach)?;
    e.op(Recipe::at(insn.ip()), &[0x0f, 0x80 | opcode & 0xf]);
    e.raw(&distance.to_le_bytes());
    Ok(())
}

/// The bytes of an indirect CALL as those of the JMP with the same operand: /4 instead of /2.
fn as_jump(insn: &Instruction, code: &[u8]) -> Result<Vec<u8>, Unsuitable> {
    let mut jump = code.to_vec();
    let opcode = code.iter().position(|byte| *byte == 0xff).ok_or(Unsuitable::Form)?;
    let prefixes = code.get(..opcode).unwrap_or_default();
    let plain = prefixes.iter().all(|prefix| matches!(prefix, 0x40..=0x4f | 0x64 | 0x65 | 0x2e | 0x3e));
    let modrm = jump.get_mut(opcode + 1).filter(|modrm| **modrm >> 3 & 7 == 2);
    match modrm {
        Some(modrm) if plain && insn.is_call_near_indirect() => {
            *modrm = *modrm & !0x38 | 4 << 3;
            Ok(jump)
        }
        _ => Err(Unsuitable::Form),
    }
}

/// Whether the status flags are set before anything reads them, or could, in the instructions of `code`.
fn flags_are_dead(code: &[u8]) -> bool {
    const STATUS: u32 = iced_x86::RflagsBits::OF
        | iced_x86::RflagsBits::SF
        | iced_x86::RflagsBits::ZF
        | iced_x86::RflagsBits::AF
        | iced_x86::RflagsBits::CF
        | iced_x86::RflagsBits::PF;
    const _: () = assert!(rflags::STATUS.count_ones() == STATUS.count_ones());
    let mut live = STATUS;
    for insn in decoder(code, 0) {
        // What is stored to memory, or calls, may fault: the flags would be in the frame. Only registers are certain.
        let plain = insn.flow_control() == FlowControl::Next
            && Class::of(&insn).is_none()
            && !insn.is_invalid()
            && (0..insn.op_count()).all(|op| !crate::exec::operand::is_memory(insn.op_kind(op)))
            && !insn.is_stack_instruction();
        if !plain || insn.rflags_read() & live != 0 {
            return false;
        }
        live &= !insn.rflags_modified();
        if live == 0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
