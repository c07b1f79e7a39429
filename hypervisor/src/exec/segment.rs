//! Descriptors of the guest's own tables, and loads of segment registers.
//!
//! All code runs on the engine's flat segments; what is checked and kept here is what the kernel believes.
//! Checks and their order follow the pseudocode of MOV, LLDT and LTR in SDM vol. 2.

use iced_x86::Register;

use super::access::{Rights, Trap};
use super::cpu::{SystemSegment, TableRegister};
use super::exception::{Exception, Stop};

/// An 8-byte segment descriptor (SDM vol. 3, 3.4.5), or the lower half of a 16-byte one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor(u64);

impl Descriptor {
    pub fn present(self) -> bool {
        self.0 & 1 << 47 != 0
    }
    pub fn dpl(self) -> u16 {
        (self.0 >> 45 & 3) as u16
    }
    /// Type field: meaning depends on [`Descriptor::is_system`].
    fn kind(self) -> u64 {
        self.0 >> 40 & 15
    }
    fn is_system(self) -> bool {
        self.0 & 1 << 44 == 0
    }
    pub fn is_code(self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }
    pub fn is_conforming(self) -> bool {
        self.kind() & 4 != 0
    }
    /// A code segment of 64-bit code: L set, D clear.
    pub fn is_64_bit(self) -> bool {
        self.0 >> 53 & 3 == 1
    }
    fn is_readable(self) -> bool {
        !self.is_system() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    fn is_writable_data(self) -> bool {
        !self.is_system() && self.kind() & 0b1010 == 0b0010
    }
    fn is_available_tss(self) -> bool {
        self.is_system() && self.kind() == 9
    }
    fn is_ldt(self) -> bool {
        self.is_system() && self.kind() == 2
    }
    /// Whether this may be the stack of code at `level`, under the name `selector`.
    fn serves_as_stack(self, selector: u16, level: u16) -> Result<(), Exception> {
        if rpl(selector) != level || self.dpl() != level || !self.is_writable_data() {
            return Err(Exception::protection(error_of(selector)));
        }
        if self.present() { Ok(()) } else { Err(Exception::stack(error_of(selector))) }
    }
    fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 56) << 24
    }
    fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 & 1 << 55 != 0 { raw << 12 | 0xfff } else { raw }
    }
}

/// A selector without its RPL, as error codes have it.
pub(crate) const fn error_of(selector: u16) -> u32 {
    (selector & !3) as u32
}

pub(crate) const fn rpl(selector: u16) -> u16 {
    selector & 3
}

pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

const IN_LDT: u16 = 4;

impl Trap<'_> {
    /// Linear address of the descriptor, all of whose `len` bytes lie within its table.
    fn descriptor_address(&self, selector: u16, len: u64) -> Result<u64, Stop> {
        let (base, limit) = if selector & IN_LDT != 0 {
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

    /// The descriptor of `selector`, which is not null.
    pub fn descriptor(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        let at = self.descriptor_address(selector, 8)?;
        self.read_value(at, 8, Rights::System).map(Descriptor)
    }

    /// Loads ES, DS, FS, GS or SS.
    pub fn load_data_segment(&mut self, register: Register, selector: u16) -> Result<(), Stop> {
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

    fn check_data_segment(&self, register: Register, selector: u16, d: Descriptor) -> Result<(), Stop> {
        let (error, cpl) = (error_of(selector), self.cpu.cpl());
        if register == Register::SS {
            return d.serves_as_stack(selector, cpl).map_err(Stop::from);
        }
        let exempt = d.is_code() && d.is_conforming();
        let privileged = exempt || (rpl(selector) <= d.dpl() && cpl <= d.dpl());
        if !d.is_readable() || !privileged {
            return Err(Exception::protection(error).into());
        }
        if d.present() { Ok(()) } else { Err(Exception::not_present(error).into()) }
    }

    /// Checks that `selector` names 64-bit code that may run at its RPL, for a return or jump to it.
    pub fn check_code_segment(&mut self, selector: u16) -> Result<(), Stop> {
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
        if !d.present() {
            return Err(Exception::not_present(error).into());
        }
        self.mark_accessed(selector, d)
    }

    /// Checks the stack segment of a return to `level`.
    pub fn check_stack_segment(&mut self, selector: u16, level: u16) -> Result<(), Stop> {
        if is_null(selector) {
            return Err(Exception::protection(0).into());
        }
        let d = self.descriptor(selector)?;
        d.serves_as_stack(selector, level)?;
        self.mark_accessed(selector, d)
    }

    /// Sets the accessed bit of a code or data descriptor, as the CPU does.
    pub fn mark_accessed(&mut self, selector: u16, descriptor: Descriptor) -> Result<(), Stop> {
        let accessed = descriptor.0 | 1 << 40;
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
    ) -> Result<SystemSegment, Stop> {
        let error = Exception::protection(error_of(selector));
        if selector & IN_LDT != 0 {
            return Err(error.into());
        }
        let at = self.descriptor_address(selector, 16)?;
        let low = Descriptor(self.read_value(at, 8, Rights::System)?);
        let high = self.read_value(at.wrapping_add(8), 8, Rights::System)?;
        let base = low.base() | high << 32;
        if !fits(low) || !paravane_abi::addr::is_canonical(base) {
            return Err(error.into());
        }
        if !low.present() {
            return Err(Exception::not_present(error_of(selector)).into());
        }
        Ok(SystemSegment { selector, base, limit: low.limit() })
    }

    /// LLDT.
    pub fn load_ldt(&mut self, selector: u16) -> Result<(), Stop> {
        self.cpu.ldt = if is_null(selector) {
            SystemSegment { selector, ..SystemSegment::default() }
        } else {
            self.system_segment(selector, Descriptor::is_ldt)?
        };
        Ok(())
    }

    /// LTR: marks the task's descriptor busy.
    pub fn load_task(&mut self, selector: u16) -> Result<(), Stop> {
        if is_null(selector) {
            return Err(Exception::protection(0).into());
        }
        let segment = self.system_segment(selector, Descriptor::is_available_tss)?;
        let at = self.descriptor_address(selector, 8)?;
        let busy = self.read_value(at, 8, Rights::System)? | 1 << 41;
        self.write_value(at, 8, busy, Rights::System)?;
        self.cpu.task = segment;
        Ok(())
    }

    /// The memory operand of LGDT and LIDT.
    pub fn read_table_register(&mut self, va: u64) -> Result<TableRegister, Stop> {
        let limit = self.read_value(va, 2, Rights::Current)? as u16;
        let base = self.read_value(va.wrapping_add(2), 8, Rights::Current)?;
        if !paravane_abi::addr::is_canonical(base) {
            return Err(Exception::protection(0).into());
        }
        Ok(TableRegister { base, limit })
    }

    /// SGDT and SIDT, where the host makes them trap.
    pub fn write_table_register(&mut self, va: u64, table: TableRegister) -> Result<(), Stop> {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        self.write(va, &bytes, Rights::Current).map(drop)
    }
}
