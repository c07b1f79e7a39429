//! From a decoded instruction to the operation that executes it: the choice of a specialised form.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use paravane_abi::addr::is_canonical;

use super::core::ZERO;
use super::fast::arithmetic as by;
use super::fast::arithmetic::{Form, Forms};
use super::fast::{branch, transfer, vector};
use super::op::{Handler, NOWHERE, Op, general};
use super::outside::Machine;

impl<X: Machine> Op<X> {
    /// One without operands, in its general form.
    pub fn plain(offset: usize, length: u8) -> Self {
        Self {
            run: general,
            value: 0,
            other: 0,
            offset: u16::try_from(offset).unwrap_or(0),
            length,
            link: NOWHERE,
            to: 0,
            from: 0,
            base: ZERO as u8,
            index: ZERO as u8,
            shift: 0,
            on_stack: false,
        }
    }
}

/// The operation of an instruction at this offset of its page.
pub(super) fn lower<X: Machine>(insn: &Instruction, offset: usize) -> Op<X> {
    let length = if insn.is_invalid() { 15 } else { insn.len() as u8 };
    let plain = Op::plain(offset, length);
    let prefixed = insn.has_lock_prefix() || insn.has_rep_prefix() || insn.has_repne_prefix();
    if insn.is_invalid() || (prefixed && !is_jump_hint(insn)) {
        return plain;
    }
    specialised(insn, plain).unwrap_or(plain)
}

/// Prefixes that mean nothing on near branches and returns.
fn is_jump_hint(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Ret | Mnemonic::Jmp | Mnemonic::Call) && !insn.has_lock_prefix()
}

/// The number of a general register whose low bytes are the operand: not AH and its kin.
fn register(register: Register) -> Option<u8> {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (register.is_gpr() && !high).then(|| register.full_register().number() as u8)
}

/// The number of an XMM register.
fn xmm(register: Register) -> Option<u8> {
    (Register::XMM0..=Register::XMM15).contains(&register).then(|| register.number() as u8)
}

/// With the memory operand's address; `None` where it needs more than a base, an index and a displacement.
fn with_address<X>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    if matches!(insn.memory_segment(), Register::FS | Register::GS)
        || insn.op_kind(memory(insn)?) != OpKind::Memory
    {
        return None;
    }
    let part = |register: Register| match register {
        Register::None | Register::RIP => Some(ZERO as u8),
        register if register.is_gpr64() => Some(register.number() as u8),
        _ => None,
    };
    Some(Op {
        base: part(insn.memory_base())?,
        index: part(insn.memory_index())?,
        shift: insn.memory_index_scale().trailing_zeros() as u8,
        value: insn.memory_displacement64(),
        on_stack: insn.memory_segment() == Register::SS,
        ..op
    })
}

/// The operand in memory.
fn memory(insn: &Instruction) -> Option<u32> {
    (0..insn.op_count()).find(|operand| insn.op_kind(*operand) == OpKind::Memory)
}

fn specialised<X: Machine>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    use Mnemonic::*;
    match insn.mnemonic() {
        Mov => binary::<X, by::Mov>(insn, op),
        Add => binary::<X, by::Add>(insn, op),
        Sub => binary::<X, by::Sub>(insn, op),
        Cmp => binary::<X, by::Cmp>(insn, op),
        And => binary::<X, by::And>(insn, op),
        Test => binary::<X, by::Test>(insn, op),
        Or => binary::<X, by::Or>(insn, op),
        Xor => binary::<X, by::Xor>(insn, op),
        Inc => unary::<X, by::Inc>(insn, op),
        Dec => unary::<X, by::Dec>(insn, op),
        Shl | Sal => shift::<X, by::Shl>(insn, op),
        Shr => shift::<X, by::Shr>(insn, op),
        Sar => shift::<X, by::Sar>(insn, op),
        Rol => shift::<X, by::Rol>(insn, op),
        Ror => shift::<X, by::Ror>(insn, op),
        Imul if insn.op_count() == 2 => binary::<X, by::Imul>(insn, op),
        Movzx | Movsx | Movsxd => extension(insn, op),
        Lea => address(insn, op),
        Push | Pop | Leave => stack(insn, op),
        Nop | Endbr64 | Endbr32 => Some(Op { run: transfer::nothing, ..op }),
        Jmp | Call | Ret => flow(insn, op),
        Movups | Movupd | Movdqu => vectors::<X, false>(insn, op),
        Movaps | Movapd | Movdqa => vectors::<X, true>(insn, op),
        Xorps | Xorpd | Pxor => {
            let to = xmm(insn.op0_register())?;
            (xmm(insn.op1_register())? == to).then_some(Op { run: vector::clear, to, ..op })
        }
        _ => conditional(insn, op),
    }
}

/// The forms of an operation with two operands.
fn binary<X: Machine, B: by::Binary>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let to_register = insn.op0_kind() == OpKind::Register;
    let size = if to_register { insn.op0_register().size() } else { insn.memory_size().size() };
    let with = |form, op| Some(Op { run: Forms::<B>::handler(form, size)?, ..op });
    if to_register {
        let op = Op { to: register(insn.op0_register())?, ..op };
        return match insn.op1_kind() {
            OpKind::Register => {
                with(Form::RegisterRegister, Op { from: register(insn.op1_register())?, ..op })
            }
            OpKind::Memory => with(Form::RegisterMemory, with_address(insn, op)?),
            _ => with(Form::RegisterImmediate, Op { value: insn.try_immediate(1).ok()?, ..op }),
        };
    }
    let op = with_address(insn, op)?;
    match insn.op1_kind() {
        OpKind::Register => with(Form::MemoryRegister, Op { from: register(insn.op1_register())?, ..op }),
        _ => {
            let immediate = insn.try_immediate(1).ok()?.cast_signed();
            // Immediate operands of memory have 32 bits at most; unsigned ones of 32 bits wrap to the same bits.
            with(Form::MemoryImmediate, Op { other: immediate as i32, ..op })
        }
    }
}

/// INC and DEC.
fn unary<X: Machine, B: by::Binary>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let to_register = insn.op0_kind() == OpKind::Register;
    let size = if to_register { insn.op0_register().size() } else { insn.memory_size().size() };
    let (form, op) = if to_register {
        (Form::RegisterImmediate, Op { to: register(insn.op0_register())?, value: 1, ..op })
    } else {
        (Form::MemoryImmediate, with_address(insn, Op { other: 1, ..op })?)
    };
    Some(Op { run: Forms::<B>::handler(form, size)?, ..op })
}

/// Shifts of a register by a number that is not 0.
fn shift<X: Machine, B: by::Binary>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let (to, size) = (register(insn.op0_register())?, insn.op0_register().size());
    if insn.op1_kind() != OpKind::Immediate8 || !matches!(size, 4 | 8) {
        return None;
    }
    let count = u64::from(insn.immediate8()) & if size == 8 { 63 } else { 31 };
    let run = Forms::<B>::handler(Form::RegisterImmediate, size)?;
    (count != 0).then_some(Op { run, to, value: count, ..op })
}

/// The handler of an extension, from memory or not, with a sign or without, by sizes.
fn extend_by<X: Machine>(from_memory: bool, sign: bool, from: usize, to: usize) -> Option<Handler<X>> {
    macro_rules! table {
        ($(($sign:literal, $from:literal, $to:literal)),*) => {
            match (from_memory, sign, from, to) {
                $((false, $sign, $from, $to) => transfer::extend::<X, $sign, $from, $to>,
                  (true, $sign, $from, $to) => transfer::extend_memory::<X, $sign, $from, $to>,)*
                _ => return None,
            }
        };
    }
    Some(table!(
        (false, 1, 4),
        (false, 1, 8),
        (false, 2, 4),
        (false, 2, 8),
        (true, 1, 4),
        (true, 1, 8),
        (true, 2, 4),
        (true, 2, 8),
        (true, 4, 8)
    ))
}

fn extension<X: Machine>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let sign = insn.mnemonic() != Mnemonic::Movzx;
    let from_memory = insn.op1_kind() == OpKind::Memory;
    let from = if from_memory { insn.memory_size().size() } else { insn.op1_register().size() };
    let run = extend_by(from_memory, sign, from, insn.op0_register().size())?;
    let op = Op { run, to: register(insn.op0_register())?, ..op };
    if from_memory { with_address(insn, op) } else { Some(Op { from: register(insn.op1_register())?, ..op }) }
}

fn address<X: Machine>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let run = match insn.op0_register().size() {
        4 => transfer::address::<X, 4>,
        8 => transfer::address::<X, 8>,
        _ => return None,
    };
    with_address(insn, Op { run, to: register(insn.op0_register())?, ..op })
}

fn stack<X: Machine>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    match insn.code() {
        Code::Push_r64 => Some(Op { run: transfer::push, from: register(insn.op0_register())?, ..op }),
        Code::Pushq_imm8 | Code::Pushq_imm32 => {
            Some(Op { run: transfer::push_immediate, value: insn.try_immediate(0).ok()?, ..op })
        }
        Code::Push_rm64 if insn.op0_kind() == OpKind::Memory => {
            with_address(insn, Op { run: transfer::push_memory, ..op })
        }
        Code::Pop_r64 => Some(Op { run: transfer::pop, to: register(insn.op0_register())?, ..op }),
        Code::Leaveq => Some(Op { run: transfer::leave_frame, ..op }),
        _ => None,
    }
}

fn flow<X: Machine>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let direct = |run| {
        let value = insn.near_branch_target();
        is_canonical(value).then_some(Op { run, value, ..op })
    };
    let indirect = |by_register, by_memory| match insn.op0_kind() {
        OpKind::Register => Some(Op { run: by_register, from: register(insn.op0_register())?, ..op }),
        _ => with_address(insn, Op { run: by_memory, ..op }),
    };
    match insn.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => direct(branch::jump),
        Code::Call_rel32_64 => direct(branch::call),
        Code::Jmp_rm64 => indirect(branch::jump_register, branch::jump_memory),
        Code::Call_rm64 => indirect(branch::call_register, branch::call_memory),
        Code::Retnq => Some(Op { run: branch::ret, ..op }),
        Code::Retnq_imm16 => Some(Op { run: branch::ret, value: insn.immediate16().into(), ..op }),
        _ => None,
    }
}

fn conditional<X: Machine>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    let condition = insn.condition_code();
    match insn.op0_kind() {
        OpKind::NearBranch64 if insn.is_jcc_short_or_near() => {
            let value = insn.near_branch_target();
            is_canonical(value).then_some(Op { run: branch::jump_if(condition)?, value, ..op })
        }
        OpKind::Register if insn.op_count() == 1 && insn.op0_register().size() == 1 => {
            Some(Op { run: branch::set_if(condition)?, to: register(insn.op0_register())?, ..op })
        }
        OpKind::Register if insn.op_count() == 2 && insn.op1_kind() == OpKind::Register => {
            let run = branch::move_if(condition, insn.op0_register().size())?;
            Some(Op { run, to: register(insn.op0_register())?, from: register(insn.op1_register())?, ..op })
        }
        _ => None,
    }
}

fn vectors<X: Machine, const ALIGNED: bool>(insn: &Instruction, op: Op<X>) -> Option<Op<X>> {
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => {
            with_address(insn, Op { run: vector::load::<X, ALIGNED>, to: xmm(insn.op0_register())?, ..op })
        }
        (OpKind::Memory, OpKind::Register) => {
            with_address(insn, Op { run: vector::store::<X, ALIGNED>, from: xmm(insn.op1_register())?, ..op })
        }
        _ => None,
    }
}
