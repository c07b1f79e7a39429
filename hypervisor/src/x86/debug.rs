//! Debug registers (SDM vol. 3, 17.2).

/// DR6.BS: a single step.
pub const DR6_SINGLE_STEP: u64 = 1 << 14;
/// Bits of DR6 that read as 1 (SDM vol. 3, 17.2.3).
pub const DR6_ONES: u64 = 0xffff_0ff0;
/// Bits of DR7 that read as 1 (SDM vol. 3, 17.2.4).
pub const DR7_ONES: u64 = 0x400;
