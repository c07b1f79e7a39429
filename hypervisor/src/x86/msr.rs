//! Model-specific registers: their numbers, and values that the architecture defines.
//!
//! Which of them a guest finds, and with what contents, its machine decides. Facts: SDM vol. 4, table 2-2; AMD APM
//! vol. 2, appendix A.

use std::ops::RangeInclusive;

/// The time-stamp counter.
pub const TSC: u32 = 0x10;
/// Where the local APIC is, and whether it is enabled.
pub const APIC_BASE: u32 = 0x1b;
/// The revision of the microcode.
pub const MICROCODE_REVISION: u32 = 0x8b;
/// Intel: performance counters.
pub const P6_COUNTERS: RangeInclusive<u32> = 0xc1..=0xc8;
/// How many memory type range registers there are.
pub const MTRR_CAPABILITIES: u32 = 0xfe;
/// How many banks of machine-check registers there are.
pub const MCG_CAP: u32 = 0x179;
/// Whether a machine check is in progress.
pub const MCG_STATUS: u32 = 0x17a;
/// Which machine checks are reported.
pub const MCG_CTL: u32 = 0x17b;
/// Intel: what the performance counters count.
pub const P6_SELECTORS: RangeInclusive<u32> = 0x186..=0x189;
/// Intel: features that can be switched.
pub const MISC_ENABLE: u32 = 0x1a0;
/// The page attribute table.
pub const PAT: u32 = 0x277;
/// The first of the machine-check banks' registers; each bank has [`MC_BANK_REGISTERS`].
pub const MC_BANKS: u32 = 0x400;
/// Registers of one machine-check bank: CTL, STATUS, ADDR, MISC.
pub const MC_BANK_REGISTERS: u32 = 4;
/// Extended features: see [`efer`](super::control::efer).
pub const EFER: u32 = 0xc000_0080;
/// Selectors of SYSCALL and SYSRET.
pub const STAR: u32 = 0xc000_0081;
/// Where SYSCALL goes.
pub const LSTAR: u32 = 0xc000_0082;
/// Where SYSCALL goes from compatibility mode (AMD).
pub const CSTAR: u32 = 0xc000_0083;
/// The flags that SYSCALL clears.
pub const SYSCALL_MASK: u32 = 0xc000_0084;
/// FS.base.
pub const FS_BASE: u32 = 0xc000_0100;
/// GS.base.
pub const GS_BASE: u32 = 0xc000_0101;
/// What SWAPGS exchanges GS.base with.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What RDTSCP and RDPID read.
pub const TSC_AUX: u32 = 0xc000_0103;
/// AMD: performance counters of the K7 and their selectors.
pub const K7_COUNTERS: RangeInclusive<u32> = 0xc001_0000..=0xc001_0007;
/// AMD: hardware configuration.
pub const HWCR: u32 = 0xc001_0015;
/// AMD: decode configuration.
pub const DE_CFG: u32 = 0xc001_1029;

/// [`APIC_BASE`]: the address of the local APIC after reset.
pub const APIC_BASE_ADDRESS: u64 = 0xfee0_0000;
/// [`APIC_BASE`]: this is the first processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// [`APIC_BASE`]: the local APIC is enabled.
pub const APIC_BASE_ENABLED: u64 = 1 << 11;
/// [`MISC_ENABLE`]: fast strings.
pub const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// [`MISC_ENABLE`]: there is no branch trace storage.
pub const MISC_ENABLE_NO_BTS: u64 = 1 << 11;
/// [`MISC_ENABLE`]: there is no precise event-based sampling.
pub const MISC_ENABLE_NO_PEBS: u64 = 1 << 12;
/// [`PAT`] after power-on (SDM vol. 3, 12.12.4): WB WT UC- UC, twice.
pub const PAT_POWER_ON: u64 = 0x0007_0406_0007_0406;
/// [`HWCR`]: the TSC runs at the rate of P0.
pub const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// [`DE_CFG`]: LFENCE is serializing.
pub const DE_CFG_LFENCE_SERIALIZING: u64 = 1 << 1;

/// Whether WRMSR refuses a value for this register that is not a canonical address (SDM vol. 2, WRMSR).
pub const fn holds_address(number: u32) -> bool {
    matches!(number, LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE)
}

/// Whether each byte of `value` is a memory type that [`PAT`] may hold (SDM vol. 3, 12.12.2).
pub fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}
