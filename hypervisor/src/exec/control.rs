//! Control, debug and model-specific registers.
//!
//! A value for a feature that the machine does not have raises #GP, as on a CPU without that feature.

use iced_x86::Register;
use paravane_abi::addr::is_canonical;

use super::executor::Executor;
use super::outside::{Attempt, Incomplete, Surroundings};
use super::virtual_cpu::CR4_KNOWN;
use crate::x86::control::{cr0, cr4, efer};
use crate::x86::debug::{DR6_ONES, DR7_ONES};
use crate::x86::exception::Exception;
use crate::x86::{guest_cpuid, msr};

/// Bits of CR3 that do not select a frame, PWT and PCD among them. They have no effect here.
const CR3_IGNORED: u64 = 0xfff;
/// The bits of DR6 that keep what is written: the four breakpoints' and BD, BS and BT.
const DR6_WRITABLE: u64 = 0xe00f;

fn refuse<T, F>() -> Result<T, Incomplete<F>> {
    Err(Exception::protection(0).into())
}

impl<M: Surroundings> Executor<'_, M> {
    /// MOV from CR.
    pub(super) fn read_control(&self, register: Register) -> Attempt<u64, M> {
        Ok(match register {
            Register::CR0 => self.cpu.cr0,
            Register::CR2 => self.cpu.cr2,
            Register::CR3 => self.cpu.cr3,
            Register::CR4 => self.cpu.cr4,
            Register::CR8 => self.cpu.cr8,
            _ => return Err(Exception::undefined().into()),
        })
    }

    /// MOV to CR.
    pub(super) fn write_control(&mut self, register: Register, value: u64) -> Attempt<(), M> {
        match register {
            Register::CR0 => self.write_cr0(value),
            Register::CR2 => {
                self.cpu.cr2 = value;
                Ok(())
            }
            Register::CR3 => self.write_cr3(value),
            Register::CR4 => self.write_cr4(value),
            Register::CR8 if value <= 15 => {
                self.cpu.cr8 = value;
                Ok(())
            }
            Register::CR8 => refuse(),
            _ => Err(Exception::undefined().into()),
        }
    }

    /// CR0.TS is stored, but FPU instructions do not trap: the hardware's bit belongs to the engine.
    fn write_cr0(&mut self, value: u64) -> Attempt<(), M> {
        let needed = cr0::PE | cr0::PG;
        let no_write_through = value & cr0::NW != 0 && value & cr0::CD == 0;
        if value >> 32 != 0 || value & needed != needed || no_write_through {
            return refuse();
        }
        let changes_paging = (self.cpu.cr0 ^ value) & cr0::WP != 0;
        self.cpu.cr0 = value | cr0::ET;
        if changes_paging { self.activate() } else { Ok(()) }
    }

    /// LMSW: sets the low four bits of CR0, but cannot clear PE.
    pub(super) fn load_machine_status(&mut self, value: u64) -> Attempt<(), M> {
        let low = value & 0xf | cr0::PE;
        self.write_cr0(self.cpu.cr0 & !0xf | low)
    }

    /// CLTS.
    pub(super) fn clear_task_switched(&mut self) {
        self.cpu.cr0 &= !cr0::TS;
    }

    fn write_cr3(&mut self, value: u64) -> Attempt<(), M> {
        if value & !(paravane_abi::pte::ADDR_MASK | CR3_IGNORED) != 0 {
            return refuse();
        }
        self.cpu.cr3 = value;
        self.activate()
    }

    fn write_cr4(&mut self, value: u64) -> Attempt<(), M> {
        if value & !CR4_KNOWN != 0 || value & cr4::PAE == 0 {
            return refuse();
        }
        if (self.cpu.cr4 ^ value) & cr4::PGE != 0 {
            self.outside.flush_all();
        }
        self.cpu.cr4 = value;
        Ok(())
    }

    /// MOV from DR: reads back what was written. Breakpoints never fire: the hardware's registers stay the engine's.
    pub(super) fn read_debug(&self, register: Register) -> u64 {
        self.cpu.debug.get(debug_index(register)).copied().unwrap_or(0)
    }

    /// MOV to DR.
    pub(super) fn write_debug(&mut self, register: Register, value: u64) -> Attempt<(), M> {
        let index = debug_index(register);
        if index >= 6 && value >> 32 != 0 {
            return refuse();
        }
        if let Some(cell) = self.cpu.debug.get_mut(index) {
            *cell = match index {
                6 => value & DR6_WRITABLE | DR6_ONES,
                7 => value | DR7_ONES,
                _ => value,
            };
        }
        Ok(())
    }

    /// RDMSR.
    pub(super) fn read_msr(&self, number: u32) -> Attempt<u64, M> {
        Ok(match number {
            // The enable bit is clear: there is no local APIC.
            msr::APIC_BASE => msr::APIC_BASE_ADDRESS,
            msr::MICROCODE_REVISION | msr::MTRR_CAPABILITIES => 0,
            msr::MISC_ENABLE => msr::MISC_ENABLE_FAST_STRINGS,
            msr::PAT => self.cpu.pat,
            msr::EFER => self.cpu.efer,
            msr::STAR => self.cpu.star,
            msr::LSTAR => self.cpu.lstar,
            msr::CSTAR => self.cpu.cstar,
            msr::SYSCALL_MASK => self.cpu.syscall_mask,
            msr::FS_BASE => self.regs.fs_base,
            msr::GS_BASE => self.regs.gs_base,
            msr::KERNEL_GS_BASE => self.cpu.kernel_gs_base,
            _ => return refuse(),
        })
    }

    /// WRMSR.
    pub(super) fn write_msr(&mut self, number: u32, value: u64) -> Attempt<(), M> {
        if msr::holds_address(number) && !is_canonical(value) {
            return refuse();
        }
        match number {
            msr::APIC_BASE if value == msr::APIC_BASE_ADDRESS => {}
            msr::MICROCODE_REVISION | msr::MISC_ENABLE => {}
            msr::PAT if msr::is_valid_pat(value) => self.cpu.pat = value,
            msr::EFER => return self.write_efer(value),
            msr::STAR => self.cpu.star = value,
            msr::LSTAR => self.cpu.lstar = value,
            msr::CSTAR => self.cpu.cstar = value,
            msr::SYSCALL_MASK => self.cpu.syscall_mask = value & 0xffff_ffff,
            msr::FS_BASE => self.regs.fs_base = value,
            msr::GS_BASE => self.regs.gs_base = value,
            msr::KERNEL_GS_BASE => self.cpu.kernel_gs_base = value,
            _ => return refuse(),
        }
        Ok(())
    }

    fn write_efer(&mut self, value: u64) -> Attempt<(), M> {
        if value & !efer::LONG_MODE != 0 || value & efer::LME == 0 {
            return refuse();
        }
        let changes_paging = (self.cpu.efer ^ value) & efer::NXE != 0;
        self.cpu.efer = value | efer::LMA;
        if changes_paging { self.activate() } else { Ok(()) }
    }

    /// SWAPGS.
    pub(super) fn swap_gs(&mut self) {
        std::mem::swap(&mut self.regs.gs_base, &mut self.cpu.kernel_gs_base);
    }

    /// XSETBV: checks the value, and ignores it. XCR0 stays the engine's, which is what XGETBV shows.
    pub(super) fn write_extended_control(&mut self, number: u32, value: u64) -> Attempt<(), M> {
        let available = self.outside.available_state();
        let fine = number == 0 && guest_cpuid::is_consistent(value) && value & !available == 0;
        if fine { Ok(()) } else { refuse() }
    }
}

/// The index of a debug register. DR4 and DR5 are taken for DR6 and DR7 also where CR4.DE is set.
fn debug_index(register: Register) -> usize {
    match register {
        Register::DR0 => 0,
        Register::DR1 => 1,
        Register::DR2 => 2,
        Register::DR3 => 3,
        Register::DR4 | Register::DR6 => 6,
        Register::DR5 | Register::DR7 => 7,
        _ => usize::MAX,
    }
}
