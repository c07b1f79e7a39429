//! The processor's state while it is interpreted, and its operands.

use iced_x86::{Instruction, OpKind, Register};

use super::outside::Machine;
use super::reach::Reach;
use super::vector::VectorRegisters;
use crate::exec::alu::Computed;
use crate::exec::executor::Executor;
use crate::exec::operand::{is_memory, truncate};
use crate::exec::outside::Incomplete;
use crate::exec::status::Status;
use crate::exec::virtual_cpu::VirtualCpu;
use crate::x86::exception::Exception;
use crate::x86::registers::Regs;
use crate::x86::rflags;

/// Places in [`Core::r`] beyond the general registers: a zero, FS.base and GS.base.
pub(super) const ZERO: usize = 16;
pub(super) const FS: usize = 17;
pub(super) const GS: usize = 18;
/// How many places there are: a power of two, so that an index need not be checked.
pub(super) const PLACES: usize = 32;

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble<F> {
    /// It raised an exception; nothing that it changed is visible.
    Exception(Exception),
    /// The machine cannot go on.
    Machine(F),
    /// The machine has this instruction, and the interpreter has not.
    Unknown(Instruction),
}

impl<F> From<Exception> for Trouble<F> {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl<F> From<Incomplete<F>> for Trouble<F> {
    fn from(incomplete: Incomplete<F>) -> Self {
        match incomplete {
            Incomplete::Exception(exception) => Self::Exception(exception),
            Incomplete::Machine(failure) => Self::Machine(failure),
        }
    }
}

/// The processor.
pub(super) struct Core<X> {
    /// The general registers by their numbers in instructions, and what addresses are made of besides.
    pub r: [u64; PLACES],
    /// The status flags.
    pub status: Status,
    /// RFLAGS, without the status flags, IF and IOPL.
    pub rflags: u64,
    /// The instruction that is executed, or the next.
    pub rip: u64,
    pub cpu: VirtualCpu,
    pub vector: VectorRegisters,
    pub reach: Reach<X>,
    /// What operations leave behind when they end a run; see `run.rs`.
    pub page: u64,
    pub at: usize,
    pub left: u32,
    /// The last fault.
    pub raised: Exception,
}

impl<X: Machine> Core<X> {
    pub fn new(regs: &Regs, cpu: VirtualCpu, reach: Reach<X>) -> Self {
        let mut core = Self {
            r: [0; PLACES],
            status: Status::default(),
            rflags: 0,
            rip: 0,
            cpu,
            vector: VectorRegisters::default(),
            reach,
            page: 0,
            at: 0,
            left: 0,
            raised: Exception::undefined(),
        };
        core.set_regs(regs);
        core
    }

    /// The registers in the form that everything else has them in.
    pub fn regs(&self) -> Regs {
        let r = &self.r;
        Regs {
            rax: r[0],
            rcx: r[1],
            rdx: r[2],
            rbx: r[3],
            rsp: r[4],
            rbp: r[5],
            rsi: r[6],
            rdi: r[7],
            r8: r[8],
            r9: r[9],
            r10: r[10],
            r11: r[11],
            r12: r[12],
            r13: r[13],
            r14: r[14],
            r15: r[15],
            rip: self.rip,
            rflags: self.rflags & !rflags::STATUS | self.status.bits(),
            fs_base: r[FS],
            gs_base: r[GS],
            selectors: self.cpu.selectors,
        }
    }

    /// Takes the registers in that form.
    pub fn set_regs(&mut self, regs: &Regs) {
        let Regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, .. } = *regs;
        let Regs { r8, r9, r10, r11, r12, r13, r14, r15, .. } = *regs;
        let general = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
        for (to, from) in self.r.iter_mut().zip(general) {
            *to = from;
        }
        (self.r[FS], self.r[GS]) = (regs.fs_base, regs.gs_base);
        (self.rip, self.rflags) = (regs.rip, regs.rflags);
        self.status = Status::from_bits(regs.rflags);
    }

    /// Has `exec` do something with the processor.
    pub fn with_executor<R>(&mut self, f: impl FnOnce(&mut Executor<'_, &mut Reach<X>>) -> R) -> R {
        let mut regs = self.regs();
        let mut executor = Executor { cpu: &mut self.cpu, regs: &mut regs, outside: &mut self.reach };
        let result = f(&mut executor);
        self.set_regs(&regs);
        result
    }

    /// Takes over the flags of a result.
    pub fn apply(&mut self, computed: &Computed) {
        if computed.affected == rflags::STATUS {
            self.status = Status::from_bits(computed.flags);
        } else if computed.affected != 0 {
            self.status = Status::from_bits(computed.apply(self.status.bits()));
        }
    }

    /// A general register of any size, zero-extended.
    pub fn get(&self, register: Register) -> u64 {
        let full = self.r[register.full_register().number() % PLACES];
        if is_high_byte(register) { full >> 8 & 0xff } else { truncate(full, register.size()) }
    }

    /// Sets a general register of any size: 32-bit ones clear the upper half, smaller ones keep the rest.
    pub fn set(&mut self, register: Register, value: u64) {
        let full = &mut self.r[register.full_register().number() % PLACES];
        *full = match register.size() {
            1 if is_high_byte(register) => *full & !0xff00 | (value & 0xff) << 8,
            1 => *full & !0xff | value & 0xff,
            2 => *full & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// The linear address of a memory operand. Whether it is canonical is seen when it is accessed.
    pub fn address(&self, insn: &Instruction, operand: u32) -> Result<u64, Exception> {
        let value = |register: Register, _, _| {
            Some(match register {
                Register::FS => self.r[FS],
                Register::GS => self.r[GS],
                Register::ES | Register::CS | Register::SS | Register::DS => 0,
                r if r.is_gpr() => self.get(r),
                _ => return None,
            })
        };
        insn.virtual_address(operand, 0, value).ok_or(Exception::undefined())
    }

    /// Reads `size` (1 to 8) bytes.
    pub fn load(&mut self, va: u64, size: usize) -> Result<u64, Exception> {
        let user = self.cpu.user;
        match size {
            1 => self.reach.load::<1>(va, user),
            2 => self.reach.load::<2>(va, user),
            4 => self.reach.load::<4>(va, user),
            8 => self.reach.load::<8>(va, user),
            _ => Err(Exception::undefined()),
        }
    }

    /// Stores the low `size` (1 to 8) bytes of `value`.
    pub fn store(&mut self, va: u64, size: usize, value: u64) -> Result<(), Exception> {
        let user = self.cpu.user;
        let done = match size {
            1 => self.reach.store::<1>(va, value, user),
            2 => self.reach.store::<2>(va, value, user),
            4 => self.reach.store::<4>(va, value, user),
            8 => self.reach.store::<8>(va, value, user),
            _ => Err(Exception::undefined()),
        };
        // The loop looks at what the store touched.
        done.map(drop)
    }

    /// The value of a register, memory or immediate operand; immediates are sign-extended.
    pub fn read(&mut self, insn: &Instruction, operand: u32) -> Result<u64, Exception> {
        match insn.op_kind(operand) {
            OpKind::Register => Ok(self.get(insn.op_register(operand))),
            kind if is_memory(kind) => {
                let va = self.address(insn, operand)?;
                self.load(va, insn.memory_size().size()).map_err(|e| of_operand(insn, e))
            }
            _ => insn.try_immediate(operand).map_err(|_| Exception::undefined()),
        }
    }

    /// The same of an operand that the instruction also writes: memory is accessed as a store is from the beginning, so
    /// that a fault is a store's.
    pub fn read_to_modify(&mut self, insn: &Instruction, operand: u32) -> Result<u64, Exception> {
        if is_memory(insn.op_kind(operand)) {
            let va = self.address(insn, operand)?;
            let (size, user) = (insn.memory_size().size(), self.cpu.user);
            self.reach.check_write(va, size, user).map_err(|e| of_operand(insn, e))?;
        }
        self.read(insn, operand)
    }

    /// Sets a register or memory operand.
    pub fn write(&mut self, insn: &Instruction, operand: u32, value: u64) -> Result<(), Exception> {
        if insn.op_kind(operand) == OpKind::Register {
            self.set(insn.op_register(operand), value);
            return Ok(());
        }
        let va = self.address(insn, operand)?;
        self.store(va, insn.memory_size().size(), value).map_err(|e| of_operand(insn, e))
    }

    /// Pushes `size` bytes.
    pub fn push(&mut self, size: usize, value: u64) -> Result<(), Exception> {
        let rsp = self.r[4].wrapping_sub(size as u64);
        self.store(rsp, size, value).map_err(on_stack)?;
        self.r[4] = rsp;
        Ok(())
    }

    /// What is on top of the stack.
    pub fn top(&mut self, size: usize) -> Result<u64, Exception> {
        self.load(self.r[4], size).map_err(on_stack)
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// For an access to the stack: a non-canonical address raises #SS instead of #GP.
pub(super) fn on_stack(exception: Exception) -> Exception {
    if exception == Exception::protection(0) { Exception::stack(0) } else { exception }
}

/// For an access to a memory operand: the same where its segment is SS.
pub(super) fn of_operand(insn: &Instruction, exception: Exception) -> Exception {
    if insn.memory_segment() == Register::SS { on_stack(exception) } else { exception }
}
