//! What a selector means: the guest's descriptor tables, and the flat descriptors behind them.
//!
//! Where the processor does not run on the guest's own table (`EngineInfo::native_selectors`), this stands in for it;
//! where it does, for loads by hypercalls and for the local table, which no engine loads. Facts: SDM vol. 3, 3.4.2
//! and 3.4.5; public/arch-x86/xen.h.

use paravane_abi::segment::{
    DESCRIPTORS_PER_FRAME, FIRST_RESERVED_GDT_ENTRY, FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64,
};
use paravane_abi::trap::{TRAP_GP_FAULT, TRAP_NO_SEGMENT, TRAP_STACK_ERROR};

use super::context::PvContext;
use crate::machine::memory::Maddr;
use crate::x86::descriptor::bits::{
    CODE, CONFORMING, DEFAULT_32, DPL, LONG, NOT_SYSTEM, PRESENT, READABLE, WRITABLE,
};
use crate::x86::descriptor::{LOCAL, RPL, error_of, flat};
use crate::x86::exception::Fault;

/// Selectors up to this one are null.
const LAST_NULL: u16 = 3;

/// The hypervisor's flat descriptors of privilege level 3, accessed.
const FLAT_CODE_64: u64 = flat::CODE_64 | DPL;
const FLAT_CODE_32: u64 = flat::CODE_32 | DPL;
const FLAT_DATA: u64 = flat::DATA | DPL;

impl PvContext<'_> {
    /// The descriptor that a selector names, if the guest may use it.
    fn descriptor(&self, selector: u16) -> Option<u64> {
        if selector <= LAST_NULL {
            return None;
        }
        let index = selector >> 3;
        if selector & LOCAL != 0 {
            let (base, entries) = self.vcpu.tables.ldt();
            if u32::from(index) >= entries {
                return None;
            }
            let va = base.checked_add(u64::from(index) * 8)?;
            let at = self.kernel_memory().translate(va, false).ok()?;
            // Not validated as the GDT is: the guest's privilege level is put in here.
            return self.domain.memory.load_u64(at).ok().map(|d| if d & PRESENT != 0 { d | DPL } else { d });
        }
        if u32::from(index) >= FIRST_RESERVED_GDT_ENTRY {
            return match selector & !LAST_NULL {
                s if s == FLAT_RING3_CS64 & !LAST_NULL => Some(FLAT_CODE_64),
                s if s == FLAT_RING3_CS32 & !LAST_NULL => Some(FLAT_CODE_32),
                s if s == FLAT_RING3_SS64 & !LAST_NULL => Some(FLAT_DATA),
                _ => None,
            };
        }
        let per_frame = usize::try_from(DESCRIPTORS_PER_FRAME).ok()?;
        let frame = self.vcpu.tables.gdt_frames().nth(usize::from(index) / per_frame)?;
        let offset = u64::from(index) % u64::from(DESCRIPTORS_PER_FRAME) * 8;
        self.domain.memory.load_u64(Maddr(frame.maddr().0 + offset)).ok()
    }

    /// The descriptor of a code or data segment, present or not: #GP if the selector names none.
    fn code_or_data(&self, selector: u16) -> Result<u64, Fault> {
        self.descriptor(selector).filter(|d| d & NOT_SYSTEM != 0).ok_or(refused(TRAP_GP_FAULT, selector))
    }

    /// What loading `selector` into DS, ES, FS or GS gives: the segment's base, 0 for a null selector.
    ///
    /// # Errors
    /// The exception that the load raises (SDM vol. 2, MOV): #GP or #NP.
    pub fn load_data(&self, selector: u16) -> Result<u64, Fault> {
        if selector <= LAST_NULL {
            return Ok(0);
        }
        let d = self.code_or_data(selector)?;
        let conforming = d & (CODE | CONFORMING) == CODE | CONFORMING;
        if d & CODE != 0 && d & READABLE == 0 || d & DPL != DPL && !conforming {
            return Err(refused(TRAP_GP_FAULT, selector));
        }
        if d & PRESENT == 0 {
            return Err(refused(TRAP_NO_SEGMENT, selector));
        }
        Ok((d >> 16 & 0xff_ffff) | (d >> 32 & 0xff00_0000))
    }

    /// Whether `selector` may be loaded into SS at CPL 3.
    ///
    /// # Errors
    /// The exception that the load raises (SDM vol. 2, MOV): #GP or #SS.
    pub fn load_stack(&self, selector: u16) -> Result<(), Fault> {
        if selector <= LAST_NULL {
            return Err(refused(TRAP_GP_FAULT, 0));
        }
        let d = self.code_or_data(selector)?;
        if selector & RPL != RPL || d & (CODE | WRITABLE) != WRITABLE || d & DPL != DPL {
            return Err(refused(TRAP_GP_FAULT, selector));
        }
        if d & PRESENT == 0 { Err(refused(TRAP_STACK_ERROR, selector)) } else { Ok(()) }
    }

    /// Whether `selector` names 64-bit code that CPL 3 may go to. 32-bit code is not supported: it is #GP.
    ///
    /// # Errors
    /// The exception that a far transfer raises (SDM vol. 2, JMP, RET, IRET): #GP or #NP.
    pub fn load_code(&self, selector: u16) -> Result<(), Fault> {
        if selector <= LAST_NULL {
            return Err(refused(TRAP_GP_FAULT, 0));
        }
        let d = self.code_or_data(selector)?;
        let privileged = d & CONFORMING == 0 && d & DPL != DPL;
        if d & CODE == 0 || privileged || d & (LONG | DEFAULT_32) != LONG {
            return Err(refused(TRAP_GP_FAULT, selector));
        }
        if d & PRESENT == 0 { Err(refused(TRAP_NO_SEGMENT, selector)) } else { Ok(()) }
    }

    /// Whether CS could hold this selector at CPL 3 in 64-bit mode. 32-bit user programs are not supported.
    pub fn is_code_64(&self, selector: u16) -> bool {
        self.load_code(selector).is_ok()
    }

    /// Whether SS could hold this selector, its privilege level raised to 3.
    pub fn is_stack(&self, selector: u16) -> bool {
        selector > LAST_NULL && self.load_stack(selector | RPL).is_ok()
    }
}

/// An exception whose error code is a selector (SDM vol. 3, 6.13).
fn refused(vector: u8, selector: u16) -> Fault {
    Fault { vector, error_code: error_of(selector), address: 0 }
}

#[cfg(test)]
mod tests {
    use crate::pv::selectors::*;
    use crate::testing::pv::TestDomain;

    #[test]
    fn the_flat_selectors_are_always_there() {
        let mut t = TestDomain::new();
        assert!(t.cx().is_code_64(FLAT_RING3_CS64));
        assert!(!t.cx().is_code_64(FLAT_RING3_CS32), "no 32-bit code");
        assert!(t.cx().is_stack(FLAT_RING3_SS64) && !t.cx().is_stack(FLAT_RING3_CS64));
        for selector in [0, 3, 0x33, 0x37, 0xe03b, 0xffff] {
            assert!(!t.cx().is_code_64(selector) && !t.cx().is_stack(selector), "{selector:#x}");
        }
    }

    #[test]
    fn descriptors_of_the_guest_are_looked_up() {
        let mut t = TestDomain::new();
        t.unmap(20);
        let [code, data] = [0x00af_9b00_0000_ffff, 0x12c0_9334_5678_ffff];
        t.poke(20, 6, code);
        t.poke(20, 5, data);
        t.poke(20, 7, 0x00cf_9b00_0000_ffff);
        t.set_gdt(&[20], 8);
        assert!(t.cx().is_code_64(0x33) && !t.cx().is_code_64(0x2b) && !t.cx().is_code_64(0x3b));
        assert!(t.cx().is_stack(0x2b) && !t.cx().is_stack(0x33) && !t.cx().is_stack(0x1003));
        assert_eq!((t.cx().load_data(0x2b), t.cx().load_data(0)), (Ok(0x1234_5678), Ok(0)));
        assert!(t.cx().load_data(0x43).is_err() && t.cx().load_data(0x2f).is_err());
    }
}
