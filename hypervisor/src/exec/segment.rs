//! Descriptors of the guest's own tables, and loads of segment registers.
//!
//! All code runs on the engine's flat segments. What is checked and stored here are the segments that the kernel
//! believes it has loaded.
//! Checks and their order follow the pseudocode of MOV, LLDT and LTR in SDM vol. 2.

use iced_x86::Register;

use super::executor::{Executor, Rights};
use super::outside::{Attempt, Incomplete, Surroundings};
use super::virtual_cpu::{SystemSegment, TableRegister};
use crate::x86::descriptor::{Descriptor, LOCAL, bits, error_of, is_null, rpl};
use crate::x86::exception::Exception;

/// Checks that `d`, the descriptor of `selector`, can be the stack segment of code at privilege level `level`.
fn check_stack(d: Descriptor, selector: u16, level: u16) -> Result<(), Exception> {
    if rpl(selector) != level || d.dpl() != level || !d.is_writable_data() {
        return Err(Exception::protection(error_of(selector)));
    }
    if d.is_present() { Ok(()) } else { Err(Exception::stack(error_of(selector))) }
}

impl<M: Surroundings> Executor<'_, M> {
    /// The linear address of a descriptor of `len` bytes, which must lie within its table.
    fn descriptor_address(&self, selector: u16, len: u64) -> Attempt<u64, M> {
        let (base, limit) = if selector & LOCAL != 0 {
            (self.cpu.ldt.base, u64::from(self.cpu.ldt.limit))
        } else {
            (self.cpu.gdt.base, u64::from(self.cpu.gdt.limit))
        };
        let offset = u64::from(selector & !7);
        if offset + len - 1 > limit {
            return Err(Exception::protection(error_of(selector)).into());
        }
        Ok(base.wrapping_add(offset))
    }

    /// The descriptor of `selector`, which must not be null.
    pub(super) fn descriptor(&mut self, selector: u16) -> Attempt<Descriptor, M> {
        let at = self.descriptor_address(selector, 8)?;
        self.read_value(at, 8, Rights::System).map(Descriptor)
    }

    /// Loads ES, DS, FS, GS or SS.
    pub(super) fn load_data_segment(&mut self, register: Register, selector: u16) -> Attempt<(), M> {
        let base = if is_null(selector) {
            if register == Register::SS && (self.cpu.user || rpl(selector) != self.cpu.cpl()) {
                return Err(Exception::protection(0).into());
            }
            0
        } else {
            let descriptor = self.descriptor(selector)?;
            self.check_data_segment(register, selector, descriptor)?;
            self.mark_accessed(selector, descriptor)?;
            descriptor.base()
        };
        let selectors = &mut self.cpu.selectors;
        match register {
            Register::ES => selectors.es = selector,
            Register::DS => selectors.ds = selector,
            Register::SS => selectors.ss = selector,
            Register::FS => (selectors.fs, self.regs.fs_base) = (selector, base),
            Register::GS => (selectors.gs, self.regs.gs_base) = (selector, base),
            _ => return Err(Exception::undefined().into()),
        }
        Ok(())
    }

    fn check_data_segment(&self, register: Register, selector: u16, d: Descriptor) -> Attempt<(), M> {
        let (error, cpl) = (error_of(selector), self.cpu.cpl());
        if register == Register::SS {
            return check_stack(d, selector, cpl).map_err(Incomplete::from);
        }
        let exempt = d.is_code() && d.is_conforming();
        let privileged = exempt || (rpl(selector) <= d.dpl() && cpl <= d.dpl());
        if !d.is_readable() || !privileged {
            return Err(Exception::protection(error).into());
        }
        if d.is_present() { Ok(()) } else { Err(Exception::not_present(error).into()) }
    }

    /// Checks that `selector` names 64-bit code that may run at its RPL, for a return or jump to it.
    pub(super) fn check_code_segment(&mut self, selector: u16) -> Attempt<(), M> {
        if is_null(selector) {
            return Err(Exception::protection(0).into());
        }
        let (error, level) = (error_of(selector), rpl(selector));
        let d = self.descriptor(selector)?;
        let privileged = if d.is_conforming() { d.dpl() <= level } else { d.dpl() == level };
        // Rings 1 and 2 and compatibility mode do not exist on this machine.
        if !d.is_code() || !d.is_64_bit() || !privileged || !matches!(level, 0 | 3) {
            return Err(Exception::protection(error).into());
        }
        if !d.is_present() {
            return Err(Exception::not_present(error).into());
        }
        self.mark_accessed(selector, d)
    }

    /// Checks the stack segment of a return to `level`.
    pub(super) fn check_stack_segment(&mut self, selector: u16, level: u16) -> Attempt<(), M> {
        if is_null(selector) {
            return Err(Exception::protection(0).into());
        }
        let d = self.descriptor(selector)?;
        check_stack(d, selector, level)?;
        self.mark_accessed(selector, d)
    }

    /// Sets the accessed bit of a code or data descriptor, as the CPU does.
    pub(super) fn mark_accessed(&mut self, selector: u16, descriptor: Descriptor) -> Attempt<(), M> {
        let accessed = descriptor.0 | bits::ACCESSED;
        if accessed != descriptor.0 {
            let at = self.descriptor_address(selector, 8)?;
            self.write_value(at, 8, accessed, Rights::System)?;
        }
        Ok(())
    }

    /// A 16-byte system descriptor: its base takes both halves.
    fn system_segment(
        &mut self,
        selector: u16,
        fits: impl Fn(Descriptor) -> bool,
    ) -> Attempt<SystemSegment, M> {
        let error = Exception::protection(error_of(selector));
        if selector & LOCAL != 0 {
            return Err(error.into());
        }
        let at = self.descriptor_address(selector, 16)?;
        let low = Descriptor(self.read_value(at, 8, Rights::System)?);
        let high = self.read_value(at.wrapping_add(8), 8, Rights::System)?;
        let base = low.base() | high << 32;
        if !fits(low) || !paravane_abi::addr::is_canonical(base) {
            return Err(error.into());
        }
        if !low.is_present() {
            return Err(Exception::not_present(error_of(selector)).into());
        }
        Ok(SystemSegment { selector, base, limit: low.limit() })
    }

    /// LLDT.
    pub(super) fn load_ldt(&mut self, selector: u16) -> Attempt<(), M> {
        self.cpu.ldt = if is_null(selector) {
            SystemSegment { selector, ..SystemSegment::default() }
        } else {
            self.system_segment(selector, Descriptor::is_ldt)?
        };
        Ok(())
    }

    /// LTR: marks the task's descriptor busy.
    pub(super) fn load_task(&mut self, selector: u16) -> Attempt<(), M> {
        if is_null(selector) {
            return Err(Exception::protection(0).into());
        }
        let segment = self.system_segment(selector, Descriptor::is_available_tss)?;
        let at = self.descriptor_address(selector, 8)?;
        let busy = self.read_value(at, 8, Rights::System)? | bits::BUSY;
        self.write_value(at, 8, busy, Rights::System)?;
        self.cpu.task = segment;
        Ok(())
    }

    /// The memory operand of LGDT and LIDT.
    pub(super) fn read_table_register(&mut self, va: u64) -> Attempt<TableRegister, M> {
        let limit = self.read_value(va, 2, Rights::Current)? as u16;
        let base = self.read_value(va.wrapping_add(2), 8, Rights::Current)?;
        if !paravane_abi::addr::is_canonical(base) {
            return Err(Exception::protection(0).into());
        }
        Ok(TableRegister { base, limit })
    }

    /// SGDT and SIDT, which trap where the host has set CR4.UMIP.
    pub(super) fn write_table_register(&mut self, va: u64, table: TableRegister) -> Attempt<(), M> {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        self.write(va, &bytes, Rights::Current).map(drop)
    }
}
