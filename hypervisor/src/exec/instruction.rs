//! The privileged and sensitive instructions that trap at CPL 3, and what each does to the virtual CPU.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use paravane_abi::addr::is_canonical;

use super::access::Trap;
use super::exception::{Death, Stop};
use super::operand::truncate;
use crate::bare::platform::{Platform, PlatformEvent};
use crate::host::host_cpuid;
use crate::host::host_cpuid::Dynamic;
use crate::ledger::{Cause, PrivOp};
use crate::mmu::space::Flush;
use crate::x86::control::cr4;
use crate::x86::exception::{Exception, vector};

/// How an emulated instruction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// At the next instruction.
    Advance,
    /// Where RIP says now.
    Jumped,
    /// At the next instruction, once an interrupt came.
    Halt,
    /// At the next instruction (or this one again, if it is repeated), and the domain's owner must hear of it.
    Event(PlatformEvent, bool),
    /// At this instruction again: it is repeated, and one exit does a bounded part.
    Again,
    /// Through the IDT, as INT with this vector.
    Interrupt(u8),
}

/// The ledger's name for an instruction that is emulated; `None` if it is not.
pub(crate) fn classify(insn: &Instruction) -> Option<PrivOp> {
    use Mnemonic::*;
    Some(match insn.mnemonic() {
        Cli => PrivOp::Cli,
        Sti => PrivOp::Sti,
        Hlt => PrivOp::Hlt,
        Lgdt => PrivOp::Lgdt,
        Lidt => PrivOp::Lidt,
        Lldt => PrivOp::Lldt,
        Ltr => PrivOp::Ltr,
        Mov => return classify_move(insn),
        Pop | Lss | Lfs | Lgs if loads_segment(insn) => PrivOp::SegmentLoad,
        Clts => PrivOp::Clts,
        Invlpg | Invpcid => PrivOp::Invlpg,
        Wbinvd | Invd | Wbnoinvd => PrivOp::Wbinvd,
        Rdmsr => PrivOp::Rdmsr,
        Wrmsr => PrivOp::Wrmsr,
        Swapgs => PrivOp::Swapgs,
        Iret | Iretd | Iretq => PrivOp::Iretq,
        Sysretq => PrivOp::Sysret,
        Retf => PrivOp::FarReturn,
        Int | Int3 | Int1 => PrivOp::SoftInt,
        Xsetbv => PrivOp::Xsetbv,
        Cpuid => PrivOp::Cpuid,
        Jmp | Call if is_far(insn) => PrivOp::Other,
        Lmsw | Smsw | Sgdt | Sidt | Sldt | Str | Clac | Stac => PrivOp::Other,
        _ => return None,
    })
}

fn classify_move(insn: &Instruction) -> Option<PrivOp> {
    let register =
        |op| if insn.op_kind(op) == OpKind::Register { insn.op_register(op) } else { Register::None };
    let (to, from) = (register(0), register(1));
    if to.is_cr() {
        Some(PrivOp::MovToCr)
    } else if from.is_cr() {
        Some(PrivOp::MovFromCr)
    } else if to.is_dr() || from.is_dr() {
        Some(PrivOp::MovDr)
    } else {
        to.is_segment_register().then_some(PrivOp::SegmentLoad)
    }
}

fn loads_segment(insn: &Instruction) -> bool {
    insn.mnemonic() != Mnemonic::Pop || insn.op0_register().is_segment_register()
}

fn is_far(insn: &Instruction) -> bool {
    use Code::*;
    matches!(insn.code(), Jmp_m1616 | Jmp_m1632 | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664)
}

/// Whether `insn` is IN, OUT, INS or OUTS, and if so whether it writes the port.
pub(crate) fn port_direction(insn: &Instruction) -> Option<bool> {
    use Mnemonic::*;
    match insn.mnemonic() {
        In | Insb | Insw | Insd => Some(false),
        Out | Outsb | Outsw | Outsd => Some(true),
        _ => None,
    }
}

/// Whether `insn` traps at CPL 3 whatever its operands are. Segment loads and far transfers do not where the
/// engine's own descriptor tables allow them, nor do SGDT and its like without UMIP, nor CPUID unless it is made to.
pub(crate) fn always_traps(insn: &Instruction) -> bool {
    use PrivOp::{Cpuid, FarReturn, Iretq, Other, SegmentLoad};
    let depends = |op| matches!(op, SegmentLoad | FarReturn | Iretq | Cpuid | Other);
    port_direction(insn).is_some() || classify(insn).is_some_and(|op| !depends(op))
}

impl Trap<'_> {
    /// The cause of the exit, and how the instruction ends; `None` where it is not one to be emulated, or
    /// not at this privilege level.
    pub fn privileged_instruction(&mut self, insn: &Instruction) -> Option<(Cause, Result<Next, Stop>)> {
        if let Some(writes) = port_direction(insn) {
            let owner = Platform::owner(self.port(insn));
            let cause = if writes { Cause::PortOut(owner) } else { Cause::PortIn(owner) };
            return self.cpu.may_do_io().then(|| (cause, self.port_instruction(insn)));
        }
        let op = classify(insn)?;
        let allowed = match op {
            PrivOp::SoftInt | PrivOp::Cpuid => true,
            PrivOp::Cli | PrivOp::Sti => self.cpu.may_do_io(),
            _ => !self.cpu.user,
        };
        allowed.then(|| (Cause::PrivilegedInstruction(op), self.execute(insn)))
    }

    fn port_instruction(&mut self, insn: &Instruction) -> Result<Next, Stop> {
        match insn.mnemonic() {
            Mnemonic::In => {
                self.port_in(insn);
                Ok(Next::Advance)
            }
            Mnemonic::Out => Ok(self.port_out(insn).map_or(Next::Advance, |event| Next::Event(event, true))),
            _ => Ok(match self.port_string(insn)? {
                (Some(event), ended) => Next::Event(event, ended),
                (None, true) => Next::Advance,
                (None, false) => Next::Again,
            }),
        }
    }

    fn execute(&mut self, insn: &Instruction) -> Result<Next, Stop> {
        use Mnemonic::*;
        match insn.mnemonic() {
            Cli => self.cpu.interrupts = false,
            Sti => {
                if !self.cpu.interrupts {
                    self.cpu.shadowed_rip = Some(insn.next_ip());
                }
                self.cpu.interrupts = true;
            }
            Hlt if self.cpu.interrupts => return Ok(Next::Halt),
            Hlt => return Err(Death::HaltedForEver { rip: self.regs.rip }.into()),
            Mov => self.privileged_move(insn)?,
            Clts => self.clear_task_switched(),
            Invlpg => {
                let va = self.linear_address(insn, 0)?;
                // Of no effect where there can be no translation (SDM vol. 2, INVLPG).
                if is_canonical(va) {
                    self.space.flush(Flush::Page(va));
                }
            }
            Invpcid => self.space.flush(Flush::All),
            // Caches are coherent and stay as they are; with CR4.SMAP clear AC means nothing to a kernel.
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
                let value = self.read_operand(insn, 0)?;
                self.load_machine_status(value)?;
            }
            Int => return Ok(Next::Interrupt(insn.immediate8())),
            Int3 => return Ok(Next::Interrupt(vector::BREAKPOINT)),
            Int1 => return Ok(Next::Interrupt(vector::DEBUG)),
            Iret | Iretd | Iretq | Sysretq | Retf | Jmp | Call => {
                return self.transfer(insn).map(|()| Next::Jumped);
            }
            _ => self.table_instruction(insn)?,
        }
        Ok(Next::Advance)
    }

    fn identify(&mut self) {
        // XCR0 is the engine's, with all that there is.
        let dynamic = Dynamic { osxsave: self.cpu.cr4 & cr4::OSXSAVE != 0, xcr0: u64::MAX };
        let (function, index) = (truncate(self.regs.rax, 4) as u32, truncate(self.regs.rcx, 4) as u32);
        let answer = host_cpuid::for_guest(function, index, dynamic);
        self.regs.rax = answer.eax.into();
        self.regs.rbx = answer.ebx.into();
        self.regs.rcx = answer.ecx.into();
        self.regs.rdx = answer.edx.into();
    }

    fn edx_eax(&self) -> u64 {
        self.regs.rdx << 32 | truncate(self.regs.rax, 4)
    }

    fn transfer(&mut self, insn: &Instruction) -> Result<(), Stop> {
        match insn.mnemonic() {
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
                self.interrupt_return(Self::operand_bytes(insn))
            }
            Mnemonic::Sysretq => self.sysret(),
            Mnemonic::Jmp => self.far_branch(insn, false),
            Mnemonic::Call => self.far_branch(insn, true),
            _ => self.far_return(Self::operand_bytes(insn), Self::return_extra(insn)),
        }
    }

    /// MOV to and from control, debug and segment registers.
    fn privileged_move(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let (to, from) = (insn.op0_register(), insn.op1_register());
        if to.is_cr() {
            let value = self.read_operand(insn, 1)?;
            self.write_control(to, value)
        } else if from.is_cr() {
            let value = self.read_control(from)?;
            self.write_operand(insn, 0, value)
        } else if to.is_dr() {
            let value = self.read_operand(insn, 1)?;
            self.write_debug(to, value)
        } else if from.is_dr() {
            let value = self.read_debug(from);
            self.write_operand(insn, 0, value)
        } else {
            let selector = self.read_operand(insn, 1)? as u16;
            self.load_segment(insn, to, selector)
        }
    }

    fn load_segment(&mut self, insn: &Instruction, register: Register, selector: u16) -> Result<(), Stop> {
        self.load_data_segment(register, selector)?;
        if register == Register::SS {
            self.cpu.shadowed_rip = Some(insn.next_ip());
        }
        Ok(())
    }

    /// Instructions that load and store descriptor-table registers and segment registers.
    fn table_instruction(&mut self, insn: &Instruction) -> Result<(), Stop> {
        match insn.mnemonic() {
            Mnemonic::Lgdt | Mnemonic::Lidt => {
                let va = self.linear_address(insn, 0)?;
                let table = self.read_table_register(va)?;
                if insn.mnemonic() == Mnemonic::Lgdt {
                    self.cpu.gdt = table
                } else {
                    self.cpu.idt = table
                }
                Ok(())
            }
            Mnemonic::Lldt => {
                let selector = self.read_operand(insn, 0)? as u16;
                self.load_ldt(selector)
            }
            Mnemonic::Ltr => {
                let selector = self.read_operand(insn, 0)? as u16;
                self.load_task(selector)
            }
            Mnemonic::Sgdt | Mnemonic::Sidt => {
                let va = self.linear_address(insn, 0)?;
                let table = if insn.mnemonic() == Mnemonic::Sgdt { self.cpu.gdt } else { self.cpu.idt };
                self.write_table_register(va, table)
            }
            Mnemonic::Smsw => self.write_operand(insn, 0, self.cpu.cr0),
            Mnemonic::Sldt => self.write_operand(insn, 0, self.cpu.ldt.selector.into()),
            Mnemonic::Str => self.write_operand(insn, 0, self.cpu.task.selector.into()),
            Mnemonic::Pop => self.pop_segment(insn),
            Mnemonic::Lss | Mnemonic::Lfs | Mnemonic::Lgs => self.load_far_pointer(insn),
            _ => Err(Exception::undefined().into()),
        }
    }

    fn pop_segment(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let size = if insn.stack_pointer_increment() == 2 { 2 } else { 8 };
        let value = self.read_value(self.regs.rsp, size, super::access::Rights::Current);
        let selector = value.map_err(super::transfer::as_stack_fault)? as u16;
        self.load_segment(insn, insn.op0_register(), selector)?;
        self.regs.rsp = self.regs.rsp.wrapping_add(size as u64);
        Ok(())
    }

    /// LSS, LFS and LGS.
    fn load_far_pointer(&mut self, insn: &Instruction) -> Result<(), Stop> {
        let (at, size) = (self.linear_address(insn, 1)?, insn.op0_register().size());
        let offset = self.read_value(at, size, super::access::Rights::Current)?;
        let selector_at = at.wrapping_add(size as u64);
        let selector = self.read_value(selector_at, 2, super::access::Rights::Current)? as u16;
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
