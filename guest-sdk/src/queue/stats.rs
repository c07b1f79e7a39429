//! Statistics of a queue, for the kernel to report.
#![forbid(unsafe_code)]

/// Why a queue was flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushReason {
    /// The kernel asked for it.
    Explicit,
    /// The queue was full.
    Overflow,
    /// The next operation needs the effect of the queued calls: a switch of address spaces, or freeing frames.
    Order,
}

impl FlushReason {
    /// All of them, in the order of [`QueueStats::flushes`].
    pub const ALL: [Self; 3] = [Self::Explicit, Self::Overflow, Self::Order];
}

/// Classes of batch sizes: class `i` holds sizes from `2^i` to just below `2^(i+1)`, the last class all larger sizes.
pub const BATCH_CLASSES: usize = 13;

/// Counters since the queue was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStats {
    /// Flushes that made calls, by [`FlushReason`]. Each is one transition.
    pub flushes: [u64; 3],
    /// Hypercalls that these flushes made.
    pub calls: u64,
    /// Single operations (page-table updates, extended operations, other calls) in these hypercalls.
    pub operations: u64,
    /// The number of flushes, by their number of operations: see [`BATCH_CLASSES`].
    pub batches: [u64; BATCH_CLASSES],
}

impl QueueStats {
    pub(super) const fn new() -> Self {
        Self { flushes: [0; 3], calls: 0, operations: 0, batches: [0; BATCH_CLASSES] }
    }

    pub(super) fn count(&mut self, reason: FlushReason, calls: usize, operations: usize) {
        self.flushes[reason as usize] += 1;
        self.calls += calls as u64;
        self.operations += operations as u64;
        let class = operations.checked_ilog2().unwrap_or(0) as usize;
        self.batches[class.min(BATCH_CLASSES - 1)] += 1;
    }

    /// The total number of transitions.
    pub fn transitions(&self) -> u64 {
        self.flushes.iter().sum()
    }
}
