//! Exceptions on their way to the guest, and the ends that emulation can come to.

/// What a guest's interrupt descriptor table gets to handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// CR2, for a page fault.
    pub address: u64,
}

/// Vectors (SDM vol. 3, table 6-1).
pub(crate) mod vector {
    pub const DIVIDE: u8 = 0;
    pub const DEBUG: u8 = 1;
    pub const BREAKPOINT: u8 = 3;
    pub const UNDEFINED: u8 = 6;
    pub const DOUBLE_FAULT: u8 = 8;
    pub const INVALID_TSS: u8 = 10;
    pub const NOT_PRESENT: u8 = 11;
    pub const STACK: u8 = 12;
    pub const PROTECTION: u8 = 13;
    pub const PAGE: u8 = 14;
    pub const ALIGNMENT: u8 = 17;
    pub const CONTROL: u8 = 21;
}

impl Exception {
    const fn with_error(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), address: 0 }
    }
    pub const fn protection(error: u32) -> Self {
        Self::with_error(vector::PROTECTION, error)
    }
    pub const fn stack(error: u32) -> Self {
        Self::with_error(vector::STACK, error)
    }
    pub const fn not_present(error: u32) -> Self {
        Self::with_error(vector::NOT_PRESENT, error)
    }
    pub const fn invalid_tss(error: u32) -> Self {
        Self::with_error(vector::INVALID_TSS, error)
    }
    pub const fn double_fault() -> Self {
        Self::with_error(vector::DOUBLE_FAULT, 0)
    }
    pub const fn page(error: u32, address: u64) -> Self {
        Self { vector: vector::PAGE, error: Some(error), address }
    }
    pub const fn undefined() -> Self {
        Self { vector: vector::UNDEFINED, error: None, address: 0 }
    }

    /// Whether the CPU pushes an error code for `vector` (SDM vol. 3, table 6-1).
    pub const fn has_error(vector: u8) -> bool {
        use vector::*;
        matches!(vector, DOUBLE_FAULT | INVALID_TSS..=PAGE | ALIGNMENT | CONTROL)
    }

    /// Whether this, raised while `first` was being delivered, makes a double fault (SDM vol. 3, table 6-5).
    pub const fn doubles(self, first: Self) -> bool {
        const fn contributes(vector: u8) -> bool {
            matches!(vector, vector::DIVIDE | vector::INVALID_TSS..=vector::PROTECTION)
        }
        match first.vector {
            vector::PAGE => self.vector == vector::PAGE || contributes(self.vector),
            v => contributes(v) && contributes(self.vector),
        }
    }
}

/// Why a bare guest cannot go on. Each ends the guest, never the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Death {
    #[error(
        "triple fault: exception {vector} at rip {rip:#x} (cr2 {cr2:#x}, rsp {rsp:#x}) could not be delivered, nor \
         could the double fault; check the IDT at {idt:#x}, its handlers' segments and the stack"
    )]
    TripleFault { vector: u8, rip: u64, cr2: u64, rsp: u64, idt: u64 },
    #[error(
        "{0:#x} was loaded into CR3, which is not a frame of the guest's memory; load the address of an L4 table"
    )]
    BadRoot(u64),
    #[error(
        "rip {rip:#x} accessed {address:#x}, in the linear range 0xffff800000000000-0xffff87ffffffffff that is the \
         hypervisor's; map that page elsewhere"
    )]
    ReservedRange { rip: u64, address: u64 },
    #[error(
        "the instruction at rip {rip:#x} stores to {address:#x}, a page table in use, and is not emulated; use MOV, \
         XCHG or an arithmetic or bit instruction on general registers"
    )]
    UnknownStore { rip: u64, address: u64 },
    #[error(
        "the instruction at rip {rip:#x} accesses {address:#x}, which is not memory, and is not emulated; use MOV"
    )]
    UnknownDeviceAccess { rip: u64, address: u64 },
    #[error(
        "rip {rip:#x} keeps faulting on {address:#x}, which it may access: the engine lost track of that page"
    )]
    NoProgress { rip: u64, address: u64 },
    #[error("halted for ever: HLT at rip {rip:#x} with interrupts off; enable them first, or power off")]
    HaltedForEver { rip: u64 },
}

/// Why the emulation of an instruction stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It raised an exception; nothing that it changed is visible.
    Exception(Exception),
    /// The guest is dead.
    Dead(Death),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<Death> for Stop {
    fn from(death: Death) -> Self {
        Self::Dead(death)
    }
}
