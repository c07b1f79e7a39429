//! Random instructions that both the interpreter and the processor can execute, with registers that make them useful.

use iced_x86::{Code, CpuidFeature, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::testing::engine::{CODE_VA, DATA_VA, STACK_TOP};
use crate::x86::decode::decoder;
use crate::x86::registers::Regs;
use crate::x86::rflags::{AF, CF, DF, OF, STATUS};
use crate::x86::sensitive::Class;

/// A generator of numbers: SplitMix64.
pub(super) struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A value at which arithmetic is interesting.
    pub fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => {
                self.pick(&[0, 1, u64::MAX, 1 << 63, i64::MAX as u64, 0x8000_0000, 0x7fff_ffff, 0xffff_ffff])
            }
            1 => self.pick(&[0x80, 0x7f, 0xff, 0x8000, 0x7fff, 0xffff, 0x100, 0x1_0000]),
            2 => self.below(64),
            3 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }
}

/// Where the middle of the data is that memory operands are near.
const MIDDLE: u64 = DATA_VA + 0x400;

/// One instruction, with the registers to execute it with.
pub(super) struct Case {
    pub insn: Instruction,
    pub bytes: Vec<u8>,
    pub regs: Regs,
}

/// A case; `vector` asks for an instruction of SSE.
pub(super) fn case(numbers: &mut Numbers, vector: bool, at: u64) -> Case {
    loop {
        let bytes = if vector { vector_bytes(numbers) } else { integer_bytes(numbers) };
        let insn = decoder(&bytes, CODE_VA + at).decode();
        // Near branches with an operand-size prefix: AMD's processors go to 16-bit addresses, Intel's ignore it.
        let narrow = insn.flow_control() != FlowControl::Next && bytes[..insn.len()].contains(&0x66);
        if !insn.is_invalid()
            && !narrow
            && is_fit(&insn, vector)
            && let Some(regs) = registers(numbers, &insn)
        {
            return Case { insn, bytes: bytes[..insn.len()].to_vec(), regs };
        }
    }
}

/// Instructions of a batch.
pub(super) const BATCH: u64 = 12;

/// Several instructions on registers that cannot fault, one after the other: a case is then a program. Flags that one of
/// them leaves undefined are cleared behind it.
pub(super) fn batch(numbers: &mut Numbers, vector: bool) -> Case {
    let (mut bytes, mut count) = (Vec::new(), 0);
    let mut regs = Regs::default();
    while count < BATCH {
        let one = case(numbers, vector, 0);
        let insn = &one.insn;
        let on_registers = (0..insn.op_count()).all(|op| !crate::exec::operand::is_memory(insn.op_kind(op)));
        let written = insn.op0_register().full_register();
        let faults = matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) || insn.has_lock_prefix();
        let stack = insn.is_stack_instruction() || insn.op_register(1).full_register() == Register::RSP;
        let moves_stack =
            stack || matches!(written, Register::RSP | Register::R15) || insn.mnemonic() == Mnemonic::Leave;
        let exchanges =
            insn.mnemonic() == Mnemonic::Mulx && insn.op1_register().full_register() == Register::R15;
        let swaps = insn.op_register(1).full_register() == Register::R15;
        let unfit = faults || moves_stack || exchanges || swaps || differs_by_vendor(insn);
        if !on_registers
            || unfit
            || insn.flow_control() != FlowControl::Next
            || insn.memory_size().size() != 0
        {
            continue;
        }
        let by_register =
            matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && insn.op2_kind() == OpKind::Register;
        if by_register || is_undefined(insn, &one.regs) {
            continue;
        }
        regs = one.regs;
        bytes.extend(&one.bytes);
        count += 1;
        let counted = insn.op_count() == 2 && insn.op1_register() == Register::CL;
        let undefined = if counted { OF | AF | CF } else { undefined_flags(insn, &one.regs) };
        if undefined != 0 {
            // pushfq; and dword [rsp], imm32; popfq
            let mask = !(undefined as u32);
            bytes.extend([0x9c, 0x81, 0x24, 0x24].into_iter().chain(mask.to_le_bytes()).chain([0x9d]));
        }
    }
    regs.rsp = STACK_TOP - 0x800;
    let insn = decoder(&[0x90], CODE_VA).decode();
    Case { insn, bytes, regs }
}

fn operands(numbers: &mut Numbers, bytes: &mut Vec<u8>) {
    for _ in 0..10 {
        bytes.push(numbers.next() as u8);
    }
}

fn integer_bytes(numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    if numbers.below(12) == 0 {
        // VEX, map 2 or 3, 128 bits.
        let (rxb, map) = (numbers.next() as u8 & 0xe0, numbers.pick(&[2u8, 2, 3]));
        bytes.extend([
            0xc4,
            rxb | map,
            numbers.next() as u8 & !4,
            numbers.pick(&[0xf2, 0xf3, 0xf5, 0xf6, 0xf7, 0xf0]),
        ]);
        operands(numbers, &mut bytes);
        return bytes;
    }
    if numbers.below(16) == 0 {
        bytes.push(0xf0);
    }
    if numbers.below(4) == 0 {
        bytes.push(0x66);
    }
    if numbers.below(6) == 0 {
        bytes.push(numbers.pick(&[0xf2, 0xf3]));
    }
    if numbers.below(24) == 0 {
        bytes.push(0x67);
    }
    if numbers.below(2) == 0 {
        bytes.push(0x40 | numbers.next() as u8 & 15);
    }
    match numbers.below(8) {
        0..=4 => bytes.push(numbers.next() as u8),
        5..=6 => bytes.extend([0x0f, numbers.next() as u8]),
        _ => bytes.extend([0x0f, 0x38, numbers.pick(&[0xf0, 0xf1, 0xf6])]),
    }
    operands(numbers, &mut bytes);
    bytes
}

fn vector_bytes(numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    let prefix = numbers.pick(&[0, 0, 0x66, 0x66, 0x66, 0xf2, 0xf3]);
    if prefix != 0 {
        bytes.push(prefix);
    }
    if numbers.below(4) == 0 {
        // The registers are XMM0 to XMM7.
        bytes.push(numbers.pick(&[0x40, 0x48]));
    }
    bytes.extend([0x0f, numbers.next() as u8]);
    operands(numbers, &mut bytes);
    bytes
}

/// Whether the instruction can be compared.
fn is_fit(insn: &Instruction, vector: bool) -> bool {
    use Mnemonic::*;
    let plain_flow = match insn.flow_control() {
        FlowControl::Next => true,
        // Over one byte: see `processor.rs`.
        FlowControl::ConditionalBranch => insn.near_branch_target() == insn.next_ip() + 1,
        _ => false,
    };
    if !plain_flow || Class::of(insn).is_some() {
        return false;
    }
    let features = insn.cpuid_features();
    let is_vector = features.iter().any(|f| matches!(f, CpuidFeature::SSE | CpuidFeature::SSE2));
    let known = features.iter().all(|f| {
        use CpuidFeature::*;
        matches!(
            f,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | CX8
                | CMPXCHG16B
                | CMOV
                | SSE
                | SSE2
                | BMI1
                | BMI2
                | LZCNT
                | POPCNT
                | ADX
                | MOVBE
                | MULTIBYTENOP
                | PREFETCHW
        )
    });
    let mnemonic = insn.mnemonic();
    let uses_time = matches!(mnemonic, Rdtsc | Rdtscp | Rdpid | Cpuid);
    let floats = is_vector && !super::processor::is_integer_vector(insn);
    let touches_base =
        insn.op0_register() == Register::R15 || insn.op0_register().full_register() == Register::R15;
    // The processor need not look at these operands' memory.
    let hints = matches!(mnemonic, Prefetchw | Prefetch | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2);
    // Nothing but a memory operand makes sense of a segment prefix here, and FS and GS have bases of the engine's.
    let segment = insn.has_segment_prefix();
    let unusual =
        matches!(mnemonic, Ldmxcsr | Stmxcsr | Maskmovdqu | Enter | Ud0 | Ud1 | Ud2 | Xabort | Xbegin);
    known
        && !uses_time
        && !floats
        && !hints
        && !segment
        && !unusual
        && vector == is_vector
        && !(vector && touches_base)
}

/// Registers with which the memory operand, if there is one, lies in the data; sometimes it does not.
fn registers(numbers: &mut Numbers, insn: &Instruction) -> Option<Regs> {
    let mut core = [0u64; 16];
    for register in &mut core {
        *register = numbers.value();
    }
    core[4] = MIDDLE + numbers.below(64) * 8;
    core[15] = DATA_VA;
    let place = MIDDLE + if numbers.below(4) == 0 { numbers.below(0x400) } else { numbers.below(64) * 16 };
    for operand in 0..insn.op_count() {
        match insn.op_kind(operand) {
            OpKind::Memory => memory_operand(numbers, insn, place, &mut core)?,
            OpKind::MemorySegRSI | OpKind::MemorySegESI => core[6] = MIDDLE + numbers.below(0x100),
            OpKind::MemoryESRDI | OpKind::MemoryESEDI => core[7] = MIDDLE + numbers.below(0x100),
            _ => {}
        }
    }
    if insn.has_rep_prefix() || insn.has_repne_prefix() {
        core[1] = numbers.below(9);
    }
    if insn.mnemonic() == Mnemonic::Leave {
        core[5] = place;
    }
    let by_register = matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register;
    if by_register {
        // The bit must not be far away; where the same register is in the address, the operand is.
        let number = insn.op1_register().full_register().number();
        let used = |r: Register| r != Register::None && r.full_register().number() == number;
        if used(insn.memory_base()) || used(insn.memory_index()) {
            return None;
        }
        core[number] = numbers.below(0x800).wrapping_sub(0x400);
    }
    let direction = if numbers.below(4) == 0 { DF } else { 0 };
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = core;
    let rflags = numbers.next() & STATUS | direction | 0x202;
    Some(Regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rflags,
        rip: CODE_VA,
        ..Regs::default()
    })
}

fn memory_operand(numbers: &mut Numbers, insn: &Instruction, place: u64, core: &mut [u64; 16]) -> Option<()> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if !base.is_gpr() || base == index || base.full_register() == Register::R15 {
        return None;
    }
    if index.is_gpr() && index.full_register() != Register::R15 {
        core[index.full_register().number()] = numbers.below(16);
    }
    let scaled = if index.is_gpr() {
        core[index.full_register().number()].wrapping_mul(insn.memory_index_scale().into())
    } else {
        0
    };
    if numbers.below(16) == 0 {
        // Wherever it leads: mostly to a fault.
        return Some(());
    }
    let wanted = place.wrapping_sub(insn.memory_displacement64()).wrapping_sub(scaled);
    let number = base.full_register().number();
    core[number] = if base.is_gpr32() { wanted & 0xffff_ffff } else { wanted };
    Some(())
}

/// The flags that the manual leaves undefined after this instruction, with these registers.
pub(super) fn undefined_flags(insn: &Instruction, regs: &Regs) -> u64 {
    use Mnemonic::*;
    let mnemonic = insn.mnemonic();
    let size = crate::exec::operand::operand_size(insn, 0) as u64;
    let count_operand = match mnemonic {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => 1,
        Shld | Shrd => 2,
        _ => {
            let by = insn.rflags_undefined();
            let named = [
                (iced_x86::RflagsBits::OF, OF),
                (iced_x86::RflagsBits::SF, crate::x86::rflags::SF),
                (iced_x86::RflagsBits::ZF, crate::x86::rflags::ZF),
                (iced_x86::RflagsBits::AF, AF),
                (iced_x86::RflagsBits::CF, CF),
                (iced_x86::RflagsBits::PF, crate::x86::rflags::PF),
            ];
            return named.iter().filter(|(bit, _)| by & bit != 0).map(|(_, flag)| flag).sum();
        }
    };
    let count = match insn.op_kind(count_operand) {
        OpKind::Register => regs.rcx,
        _ => insn.immediate(count_operand),
    };
    let count = count & if size == 8 { 63 } else { 31 };
    let rotates = matches!(mnemonic, Rol | Ror | Rcl | Rcr);
    match count {
        0 => 0,
        1 if rotates => 0,
        1 => AF,
        _ if rotates => OF,
        _ if count >= size * 8 && mnemonic != Sar => OF | AF | CF,
        _ => OF | AF,
    }
}

/// Whether the result, and not only a flag, is undefined.
pub(super) fn is_undefined(insn: &Instruction, regs: &Regs) -> bool {
    if !matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) {
        return false;
    }
    let bits = crate::exec::operand::operand_size(insn, 0) as u64 * 8;
    let count = if insn.op_kind(2) == OpKind::Register { regs.rcx } else { insn.immediate8().into() };
    bits == 16 && count & 31 > 16
}

/// Forms that differ between vendors, or that the decoder takes otherwise than this processor.
pub(super) fn differs_by_vendor(insn: &Instruction) -> bool {
    // A 16-bit near branch: Intel ignores the prefix.
    let narrow_branch = insn.flow_control() == FlowControl::ConditionalBranch
        && matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32);
    // BSWAP of 16 bits is undefined, and the registers of a prefetch are NOPs on Intel's processors only.
    let undefined = matches!(
        insn.code(),
        Code::Bswap_r16
            | Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    );
    narrow_branch || undefined
}
