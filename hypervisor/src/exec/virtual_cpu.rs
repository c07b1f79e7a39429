//! The privileged state of a virtual CPU, as its kernel has set it.
//!
//! What the hardware holds while the guest runs (general registers, flags other than IF and IOPL, FS.base and GS.base)
//! is in [`Regs`]. What may not be done here: accessing memory, or deciding what an instruction does.

use crate::x86::control::{cr0, cr4, efer};
use crate::x86::debug::{DR6_ONES, DR7_ONES};
use crate::x86::msr::PAT_POWER_ON;
use crate::x86::registers::{Regs, Selectors};
use crate::x86::rflags;

/// The bits of CR4 that a kernel may set: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, FSGSBASE and
/// OSXSAVE. Not UMIP, LA57, PCIDE, SMEP, SMAP and PKE, which this machine does not have.
pub(super) const CR4_KNOWN: u64 = 0x5_07ff;

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// LDTR or TR: a selector, and its descriptor's base and limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SystemSegment {
    pub selector: u16,
    pub base: u64,
    pub limit: u32,
}

/// The privileged state.
#[derive(Clone, Debug)]
pub(crate) struct VirtualCpu {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// RFLAGS.IF as the kernel has set it; the hardware's is always 1.
    pub interrupts: bool,
    /// RFLAGS.IOPL.
    pub io_privilege: u8,
    /// CPL 3 instead of 0.
    pub user: bool,
    pub gdt: TableRegister,
    pub idt: TableRegister,
    pub ldt: SystemSegment,
    pub task: SystemSegment,
    pub selectors: Selectors,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub syscall_mask: u64,
    pub kernel_gs_base: u64,
    pub pat: u64,
    /// DR0..=DR7; DR4 and DR5 are DR6 and DR7.
    pub debug: [u64; 8],
    /// The instruction after STI or a load of SS, before which no interrupt is delivered.
    pub shadowed_rip: Option<u64>,
    /// Waiting in HLT for an interrupt.
    pub halted: bool,
}

impl VirtualCpu {
    /// In 64-bit mode at CPL 0 with interrupts off, as a loader leaves it.
    pub fn new(cr3: u64) -> Self {
        Self {
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
            cr2: 0,
            cr3,
            cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
            cr8: 0,
            efer: efer::LME | efer::LMA | efer::NXE,
            interrupts: false,
            io_privilege: 0,
            user: false,
            gdt: TableRegister::default(),
            idt: TableRegister::default(),
            ldt: SystemSegment::default(),
            task: SystemSegment::default(),
            // The boot protocol promises no GDT: these have no meaning until the kernel loads its own.
            selectors: Selectors { es: 0, cs: 8, ss: 0, ds: 0, fs: 0, gs: 0 },
            star: 0,
            lstar: 0,
            cstar: 0,
            syscall_mask: 0,
            kernel_gs_base: 0,
            pat: PAT_POWER_ON,
            debug: [0, 0, 0, 0, 0, 0, DR6_ONES, DR7_ONES],
            shadowed_rip: None,
            halted: false,
        }
    }

    /// The privilege level, 0 or 3.
    pub(super) fn cpl(&self) -> u16 {
        if self.user { 3 } else { 0 }
    }

    /// Whether the running code may do I/O and change IF.
    pub fn may_do_io(&self) -> bool {
        !self.user || self.io_privilege == 3
    }

    /// RFLAGS as the guest finds them in a frame.
    pub fn flags(&self, regs: &Regs) -> u64 {
        let hidden = rflags::IF | rflags::IOPL | rflags::VM;
        let shown = if self.interrupts { rflags::IF } else { 0 };
        regs.rflags & !hidden | shown | u64::from(self.io_privilege) << rflags::IOPL_SHIFT | rflags::FIXED
    }

    /// Loads RFLAGS as code at CPL 0 may (IRET, SYSRET, SYSCALL): all of it.
    pub(super) fn set_flags(&mut self, regs: &mut Regs, flags: u64) {
        use rflags::*;
        self.interrupts = flags & IF != 0;
        self.io_privilege = (flags >> IOPL_SHIFT & 3) as u8;
        regs.rflags = hardware_flags(flags);
    }
}

/// The flags to run with at CPL 3 when the guest has set `flags`.
///
/// Without AC, which enables alignment checks at CPL 3 that a kernel at CPL 0 does not have, and without NT, which
/// makes the next IRET fault.
pub(crate) fn hardware_flags(flags: u64) -> u64 {
    use rflags::*;
    flags & (STATUS | TF | DF | RF | ID) | FIXED | IF
}
