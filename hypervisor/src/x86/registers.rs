//! The registers that a vCPU has in memory while it does not run.

use paravane_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use serde::{Deserialize, Serialize};

/// The registers that a kernel at CPL 3 and the host share: what an exit saves and an entry restores.
///
/// Vector state stays in the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    /// FS.base; the guest may change it natively (WRFSBASE).
    pub fs_base: u64,
    /// GS.base; the guest may change it natively (WRGSBASE).
    pub gs_base: u64,
    /// What the segment registers hold.
    pub selectors: Selectors,
}

/// Registers that only a kernel can set, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemRegisters {
    /// The base of GS that is not in use: SWAPGS would load it.
    pub other_gs_base: u64,
    /// CR0, as the guest reads it.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
}

/// The selectors of code at CPL 3.
///
/// An engine that loads them (`EngineInfo::native_selectors`) takes each as a flat segment of CPL 3, 64-bit code in CS,
/// and hands back what the guest's own loads made of them. Any other engine leaves them alone: they are then what
/// the layers above believe, and the guest that reads a segment register sees the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Selectors {
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
}

impl Selectors {
    /// The hypervisor's flat ones, and null where 64-bit code needs none: what a guest starts with.
    pub const FLAT: Self = Self { cs: FLAT_KERNEL_CS, ss: FLAT_KERNEL_SS, ds: 0, es: 0, fs: 0, gs: 0 };

    /// Makes CS and SS flat, as SYSCALL does.
    pub fn flatten(&mut self) {
        (self.cs, self.ss) = (FLAT_KERNEL_CS, FLAT_KERNEL_SS);
    }
}

impl Default for Selectors {
    fn default() -> Self {
        Self::FLAT
    }
}
