//! How much a queue holds.
#![forbid(unsafe_code)]

/// Page-table updates that a queue holds.
pub const UPDATES: usize = 4096;
/// Extended MMU operations that a queue holds.
pub const EXTENDED: usize = 128;
/// Calls (a run of neighbouring operations counts once) that a queue holds.
pub const CALLS: usize = 64;

/// Room for the calls that a flush itself adds: the list of first updates, and a run of invalidations.
pub(super) const OWN_CALLS: usize = 2;
