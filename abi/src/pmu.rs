//! Virtual performance counters, `xenpmu_op(op, arg)`: numbers only.
//!
//! Source: public/pmu.h.

/// Ask for the mode.
pub const XENPMU_MODE_GET: u32 = 0;
/// Set the mode.
pub const XENPMU_MODE_SET: u32 = 1;
/// Ask for the features.
pub const XENPMU_FEATURE_GET: u32 = 2;
/// Set the features.
pub const XENPMU_FEATURE_SET: u32 = 3;
/// Start on one vCPU.
pub const XENPMU_INIT: u32 = 4;
/// Stop on one vCPU.
pub const XENPMU_FINISH: u32 = 5;
/// Set the local vector table's entry.
pub const XENPMU_LVTPC_SET: u32 = 6;
/// Write cached registers to the hardware.
pub const XENPMU_FLUSH: u32 = 7;
