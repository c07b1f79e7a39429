//! The privileged and sensitive instructions that trap at CPL 3: who may execute them, and their effects.

use iced_x86::{Instruction, Mnemonic, Register};
use paravane_abi::addr::is_canonical;

use super::executor::{Executor, Rights};
use super::operand::truncate;
use super::outside::{Attempt, Incomplete, Surroundings};
use super::port::PortAccess;
use super::transfer::{operand_bytes, return_extra};
use crate::x86::control::cr4;
use crate::x86::exception::{Exception, vector};
use crate::x86::sensitive::{Class, Effect};

/// How an instruction completed, and where execution goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion<E> {
    /// At the next instruction.
    Advance,
    /// At RIP, which has been set.
    Jumped,
    /// HLT: at the next instruction, after an interrupt.
    Halt,
    /// An output to a port requested something of the monitor.
    Event {
        /// The request.
        event: E,
        /// The instruction has ended. If not, it is repeated and has elements left: execution goes on at it.
        ended: bool,
    },
    /// At this instruction again: it is repeated, and one exit transfers a limited number of elements.
    Again,
    /// INT n: at the handler of this vector.
    Interrupt(u8),
}

/// Who may execute an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    Anyone,
    /// CPL 0, and CPL 3 with an IOPL of 3.
    WithIoPrivilege,
    Kernel,
}

/// Who may execute `insn`; `None` where it is not implemented here.
fn allowed(insn: &Instruction) -> Option<Permission> {
    use Class::*;
    let Some(class) = Class::of(insn) else {
        return is_breakpoint(insn).then_some(Permission::Anyone);
    };
    let known = match class {
        Identify | SoftwareInterrupt => return Some(Permission::Anyone),
        InterruptFlag | PortIo => return Some(Permission::WithIoPrivilege),
        Halt => insn.mnemonic() == Mnemonic::Hlt,
        TranslationCache => matches!(insn.mnemonic(), Mnemonic::Invlpg | Mnemonic::Invpcid),
        ModelSpecific => matches!(insn.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Wrmsr),
        SystemReturn => insn.mnemonic() == Mnemonic::Sysretq,
        StoreTables | LoadSegment | FarTransfer | InterruptReturn | ControlRegister | DebugRegister
        | LoadTables | DataCache | SwapGs | AccessFlag => true,
        Flags | ReadSegment | Virtualization | Other => false,
    };
    known.then_some(Permission::Kernel)
}

/// INT3 and INT1, which are not sensitive: they have the same effect at every privilege level.
fn is_breakpoint(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Int3 | Mnemonic::Int1)
}

/// Whether `insn` is certain to trap at CPL 3, whatever its operands are, and is implemented here.
///
/// Not certain are segment loads and far transfers, which the engine's own descriptor tables may allow, SGDT and its
/// kin, which trap under CR4.UMIP only, and CPUID, which traps only where the host can make it.
pub(crate) fn always_traps(insn: &Instruction) -> bool {
    let traps = Class::of(insn).map_or(is_breakpoint(insn), |class| class.effect() == Effect::Traps);
    traps && allowed(insn).is_some()
}

/// How many elements of a repeated INS or OUTS one exit transfers; the rest traps again.
const MAX_REPEATS: u64 = 256;

impl<M: Surroundings> Executor<'_, M> {
    /// Executes a privileged or sensitive instruction; `None` where it is not implemented, or not allowed at this
    /// privilege level.
    pub fn privileged(&mut self, insn: &Instruction) -> Option<Attempt<Completion<M::Event>, M>> {
        let allowed = match allowed(insn)? {
            Permission::Anyone => true,
            Permission::WithIoPrivilege => self.cpu.may_do_io(),
            Permission::Kernel => !self.cpu.user,
        };
        allowed.then(|| match PortAccess::of(insn, self.regs) {
            Some(access) => self.port_instruction(insn, access),
            None => self.execute(insn),
        })
    }

    fn port_instruction(
        &mut self,
        insn: &Instruction,
        access: PortAccess,
    ) -> Attempt<Completion<M::Event>, M> {
        Ok(match self.operands().access_ports(insn, access, MAX_REPEATS)? {
            (Some(event), ended) => Completion::Event { event, ended },
            (None, true) => Completion::Advance,
            (None, false) => Completion::Again,
        })
    }

    pub(super) fn execute(&mut self, insn: &Instruction) -> Attempt<Completion<M::Event>, M> {
        use Mnemonic::*;
        match insn.mnemonic() {
            Cli => self.cpu.interrupts = false,
            Sti => {
                if !self.cpu.interrupts {
                    self.cpu.shadowed_rip = Some(insn.next_ip());
                }
                self.cpu.interrupts = true;
            }
            Hlt => return Ok(Completion::Halt),
            Mov => self.privileged_move(insn)?,
            Clts => self.clear_task_switched(),
            Invlpg => {
                let va = self.operands().address(insn, 0)?;
                // INVLPG of a non-canonical address does nothing (SDM vol. 2, INVLPG).
                if is_canonical(va) {
                    self.outside.flush_page(va);
                }
            }
            Invpcid => self.outside.flush_all(),
            // Memory is coherent: there is nothing to write back. Without CR4.SMAP, AC has no effect in a kernel.
            Wbinvd | Invd | Wbnoinvd | Clac | Stac => {}
            Rdmsr => {
                let value = self.read_msr(self.regs.rcx as u32)?;
                (self.regs.rdx, self.regs.rax) = (value >> 32, truncate(value, 4));
            }
            Wrmsr => self.write_msr(self.regs.rcx as u32, self.edx_eax())?,
            Xsetbv => self.write_extended_control(self.regs.rcx as u32, self.edx_eax())?,
            Swapgs => self.swap_gs(),
            Cpuid => self.identify(),
            Lmsw => {
                let value = self.operands().read(insn, 0)?;
                self.load_machine_status(value)?;
            }
            Int => return Ok(Completion::Interrupt(insn.immediate8())),
            Int3 => return Ok(Completion::Interrupt(vector::BREAKPOINT)),
            Int1 => return Ok(Completion::Interrupt(vector::DEBUG)),
            Iret | Iretd | Iretq | Sysretq | Retf | Jmp | Call => {
                return self.transfer(insn).map(|()| Completion::Jumped);
            }
            _ => self.table_instruction(insn)?,
        }
        Ok(Completion::Advance)
    }

    fn identify(&mut self) {
        let (function, index) = (truncate(self.regs.rax, 4) as u32, truncate(self.regs.rcx, 4) as u32);
        let answer = self.outside.cpuid(function, index, self.cpu.cr4 & cr4::OSXSAVE != 0);
        self.regs.rax = answer.eax.into();
        self.regs.rbx = answer.ebx.into();
        self.regs.rcx = answer.ecx.into();
        self.regs.rdx = answer.edx.into();
    }

    fn edx_eax(&self) -> u64 {
        self.regs.rdx << 32 | truncate(self.regs.rax, 4)
    }

    fn transfer(&mut self, insn: &Instruction) -> Attempt<(), M> {
        match insn.mnemonic() {
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => self.interrupt_return(operand_bytes(insn)),
            Mnemonic::Sysretq => self.sysret(),
            Mnemonic::Jmp => self.far_branch(insn, false),
            Mnemonic::Call => self.far_branch(insn, true),
            _ => self.far_return(operand_bytes(insn), return_extra(insn)),
        }
    }

    /// MOV to and from control, debug and segment registers.
    fn privileged_move(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let (to, from) = (insn.op0_register(), insn.op1_register());
        if to.is_cr() {
            let value = self.operands().read(insn, 1)?;
            self.write_control(to, value)
        } else if from.is_cr() {
            let value = self.read_control(from)?;
            self.operands().write(insn, 0, value)
        } else if to.is_dr() {
            let value = self.operands().read(insn, 1)?;
            self.write_debug(to, value)
        } else if from.is_dr() {
            let value = self.read_debug(from);
            self.operands().write(insn, 0, value)
        } else {
            let selector = self.operands().read(insn, 1)? as u16;
            self.load_segment(insn, to, selector)
        }
    }

    fn load_segment(&mut self, insn: &Instruction, register: Register, selector: u16) -> Attempt<(), M> {
        self.load_data_segment(register, selector)?;
        if register == Register::SS {
            self.cpu.shadowed_rip = Some(insn.next_ip());
        }
        Ok(())
    }

    /// Instructions that load and store descriptor-table registers and segment registers.
    pub(super) fn table_instruction(&mut self, insn: &Instruction) -> Attempt<(), M> {
        match insn.mnemonic() {
            Mnemonic::Lgdt | Mnemonic::Lidt => {
                let va = self.operands().address(insn, 0)?;
                let table = self.read_table_register(va)?;
                if insn.mnemonic() == Mnemonic::Lgdt {
                    self.cpu.gdt = table
                } else {
                    self.cpu.idt = table
                }
                Ok(())
            }
            Mnemonic::Lldt => {
                let selector = self.operands().read(insn, 0)? as u16;
                self.load_ldt(selector)
            }
            Mnemonic::Ltr => {
                let selector = self.operands().read(insn, 0)? as u16;
                self.load_task(selector)
            }
            Mnemonic::Sgdt | Mnemonic::Sidt => {
                let va = self.operands().address(insn, 0)?;
                let table = if insn.mnemonic() == Mnemonic::Sgdt { self.cpu.gdt } else { self.cpu.idt };
                self.write_table_register(va, table)
            }
            Mnemonic::Smsw | Mnemonic::Sldt | Mnemonic::Str => {
                let value = match insn.mnemonic() {
                    Mnemonic::Smsw => self.cpu.cr0,
                    Mnemonic::Sldt => self.cpu.ldt.selector.into(),
                    _ => self.cpu.task.selector.into(),
                };
                self.operands().write(insn, 0, value)
            }
            Mnemonic::Pop => self.pop_segment(insn),
            Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => self.load_far_pointer(insn),
            _ => Err(Exception::undefined().into()),
        }
    }

    fn pop_segment(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let size = if insn.stack_pointer_increment() == 2 { 2 } else { 8 };
        let value = self.read_value(self.regs.rsp, size, Rights::Current);
        let selector = value.map_err(Incomplete::on_stack)? as u16;
        self.load_segment(insn, insn.op0_register(), selector)?;
        self.regs.rsp = self.regs.rsp.wrapping_add(size as u64);
        Ok(())
    }

    /// LSS, LFS and LGS.
    fn load_far_pointer(&mut self, insn: &Instruction) -> Attempt<(), M> {
        let (at, size) = (self.operands().address(insn, 1)?, insn.op0_register().size());
        let offset = self.read_value(at, size, Rights::Current)?;
        let selector_at = at.wrapping_add(size as u64);
        let selector = self.read_value(selector_at, 2, Rights::Current)? as u16;
        let register = match insn.mnemonic() {
            Mnemonic::Lss => Register::SS,
            Mnemonic::Lfs => Register::FS,
            _ => Register::GS,
        };
        self.load_segment(insn, register, selector)?;
        super::operand::write_register(self.regs, insn.op0_register(), offset);
        Ok(())
    }
}
