//! Bits of the control registers and of EFER.

/// CR0 (SDM vol. 3, 2.5).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// WAIT obeys TS.
    pub const MP: u64 = 1 << 1;
    /// Task switched: FPU instructions raise #NM.
    pub const TS: u64 = 1 << 3;
    /// Reads as 1 always.
    pub const ET: u64 = 1 << 4;
    /// FPU errors raise #MF.
    pub const NE: u64 = 1 << 5;
    /// CPL 0 obeys read-only pages.
    pub const WP: u64 = 1 << 16;
    /// RFLAGS.AC has an effect at CPL 3.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disabled.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 (SDM vol. 3, 2.5).
pub mod cr4 {
    /// RDTSC and RDTSCP are for CPL 0.
    pub const TSD: u64 = 1 << 2;
    /// Breakpoints on I/O exist; DR4 and DR5 do not.
    pub const DE: u64 = 1 << 3;
    /// Physical address extension: always set in 64-bit mode.
    pub const PAE: u64 = 1 << 5;
    /// Machine checks raise #MC.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC can be executed at CPL 3.
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE and SSE can be used.
    pub const OSFXSR: u64 = 1 << 9;
    /// SSE errors raise #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// RDFSBASE and its kin can be executed.
    pub const FSGSBASE: u64 = 1 << 16;
    /// XSAVE and its kin can be executed, and XCR0 says which vector registers there are.
    pub const OSXSAVE: u64 = 1 << 18;
}

/// EFER (SDM vol. 3, 2.2.1).
pub mod efer {
    /// SYSCALL and SYSRET can be executed.
    pub const SCE: u64 = 1 << 0;
    /// 64-bit mode is enabled.
    pub const LME: u64 = 1 << 8;
    /// 64-bit mode is active.
    pub const LMA: u64 = 1 << 10;
    /// Bit 63 of a page-table entry forbids execution.
    pub const NXE: u64 = 1 << 11;
    /// All of them: what a 64-bit system that uses SYSCALL runs with.
    pub const LONG_MODE: u64 = SCE | LME | LMA | NXE;
}
