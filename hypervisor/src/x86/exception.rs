//! Exceptions: what the processor raises, and what a guest's handler gets (SDM vol. 3, chapter 6).

/// A fault that the hardware raised while guest code ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The exception's vector, 0..=31 (SDM vol. 3, 6.3).
    pub vector: u8,
    /// The error code; 0 for vectors without one.
    pub error_code: u32,
    /// CR2 as the fault left it; meaningful for vector 14 only.
    pub address: u64,
}

/// Vectors (SDM vol. 3, table 6-1), by the names of their exceptions. The numbers are those of the interface.
pub mod vector {
    pub use paravane_abi::trap::{
        TRAP_ALIGNMENT_CHECK as ALIGNMENT, TRAP_COPRO_ERROR as FPU, TRAP_DEBUG as DEBUG,
        TRAP_DIVIDE_ERROR as DIVIDE, TRAP_DOUBLE_FAULT as DOUBLE_FAULT, TRAP_GP_FAULT as PROTECTION,
        TRAP_INT3 as BREAKPOINT, TRAP_INVALID_OP as UNDEFINED, TRAP_INVALID_TSS as INVALID_TSS,
        TRAP_NO_SEGMENT as NOT_PRESENT, TRAP_OVERFLOW as OVERFLOW, TRAP_PAGE_FAULT as PAGE,
        TRAP_SIMD_ERROR as SIMD, TRAP_STACK_ERROR as STACK,
    };

    /// #BR.
    pub const BOUND: u8 = 5;
    /// #CP.
    pub const CONTROL_PROTECTION: u8 = 21;
    /// #VC (AMD APM vol. 2, 8.2).
    pub const VMM_COMMUNICATION: u8 = 29;
    /// #SX (AMD APM vol. 2, 8.2).
    pub const SECURITY: u8 = 30;
}

/// Bits of a page fault's error code (SDM vol. 3, 4.7).
pub mod page_error {
    pub use paravane_abi::trap::{
        PFEC_FETCH as FETCH, PFEC_PRESENT as PRESENT, PFEC_RESERVED as RESERVED, PFEC_USER as USER,
        PFEC_WRITE as WRITE,
    };
}

/// Bits of an error code that names a selector or a vector (SDM vol. 3, 6.13).
pub mod selector_error {
    /// The event came from outside the program.
    pub const EXTERNAL: u32 = 1 << 0;
    /// The index is that of a vector, not of a selector.
    pub const IDT: u32 = 1 << 1;
    /// Position of the index.
    pub const INDEX_SHIFT: u32 = 3;
}

/// An exception or interrupt on its way to the guest's handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// The error code that the processor pushes, if it pushes one.
    pub error: Option<u32>,
    /// CR2, for a page fault.
    pub address: u64,
}

impl Exception {
    const fn with_error(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), address: 0 }
    }
    /// One without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, address: 0 }
    }
    /// #GP.
    pub const fn protection(error: u32) -> Self {
        Self::with_error(vector::PROTECTION, error)
    }
    /// #SS.
    pub const fn stack(error: u32) -> Self {
        Self::with_error(vector::STACK, error)
    }
    /// #NP.
    pub const fn not_present(error: u32) -> Self {
        Self::with_error(vector::NOT_PRESENT, error)
    }
    /// #TS.
    pub const fn invalid_tss(error: u32) -> Self {
        Self::with_error(vector::INVALID_TSS, error)
    }
    /// #DF.
    pub const fn double_fault() -> Self {
        Self::with_error(vector::DOUBLE_FAULT, 0)
    }
    /// #PF.
    pub const fn page(error: u32, address: u64) -> Self {
        Self { vector: vector::PAGE, error: Some(error), address }
    }
    /// #UD.
    pub const fn undefined() -> Self {
        Self::plain(vector::UNDEFINED)
    }

    /// Whether the CPU pushes an error code for `vector` (SDM vol. 3, table 6-1).
    pub const fn has_error(vector: u8) -> bool {
        use vector::*;
        matches!(
            vector,
            DOUBLE_FAULT | INVALID_TSS..=PAGE | ALIGNMENT | CONTROL_PROTECTION | VMM_COMMUNICATION | SECURITY
        )
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

impl From<Fault> for Exception {
    fn from(fault: Fault) -> Self {
        let error = Self::has_error(fault.vector).then_some(fault.error_code);
        Self { vector: fault.vector, error, address: fault.address }
    }
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        let Exception { vector, error, address } = exception;
        Self { vector, error_code: error.unwrap_or(0), address }
    }
}
