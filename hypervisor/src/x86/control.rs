//! Bits of control registers (SDM vol. 3, 2.5).

/// CR4.TSD: RDTSC and RDTSCP are for CPL 0.
pub const CR4_TSD: u64 = 1 << 2;
/// CR4.FSGSBASE: RDFSBASE and its kin can be executed.
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// CR4.OSXSAVE: XSAVE and its kin can be executed, and XCR0 says which vector registers there are.
pub const CR4_OSXSAVE: u64 = 1 << 18;
