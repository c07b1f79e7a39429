//! How many requests crossed into the host together: what a batch saves is its size less one.

use serde::Serialize;

use super::histogram::{self, BUCKETS};

/// The ways in which requests travel together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchKind {
    /// Entries of one multicall.
    Multicall,
    /// Entries of one mmu_update.
    MmuUpdate,
    /// Operations of one mmuext_op.
    MmuExt,
    /// Bytes of one console write.
    ConsoleBytes,
}

impl BatchKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Multicall, Self::MmuUpdate, Self::MmuExt, Self::ConsoleBytes];

    /// What tables and exports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multicall => "calls per multicall",
            Self::MmuUpdate => "entries per mmu_update",
            Self::MmuExt => "operations per mmuext_op",
            Self::ConsoleBytes => "bytes per console write",
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    batches: u64,
    requests: u64,
    max: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Batches {
    sizes: [Sizes; BatchKind::ALL.len()],
    histograms: Box<[u64]>,
}

/// The sizes of the batches of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchSizes {
    /// [`BatchKind::name`].
    pub kind: &'static str,
    /// How many batches.
    pub batches: u64,
    /// How many requests in all of them.
    pub requests: u64,
    /// The size below or at which half of them are, to one part in eight.
    pub median: u64,
    /// The largest.
    pub max: u64,
    /// (highest size, batches) of every bucket that is not empty.
    pub histogram: Vec<(u64, u64)>,
}

impl BatchSizes {
    /// Requests per batch.
    pub fn mean(&self) -> f64 {
        if self.batches == 0 { 0.0 } else { self.requests as f64 / self.batches as f64 }
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            sizes: Default::default(),
            histograms: vec![0; BatchKind::ALL.len() * BUCKETS].into_boxed_slice(),
        }
    }
}

impl Batches {
    pub(super) fn record(&mut self, kind: BatchKind, n: u64) {
        let i = kind as usize;
        let sizes = &mut self.sizes[i];
        sizes.batches += 1;
        sizes.requests = sizes.requests.saturating_add(n);
        sizes.max = sizes.max.max(n);
        self.histograms[i * BUCKETS + histogram::bucket(n)] += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (a, b) in self.sizes.iter_mut().zip(&other.sizes) {
            a.batches += b.batches;
            a.requests = a.requests.saturating_add(b.requests);
            a.max = a.max.max(b.max);
        }
        for (a, b) in self.histograms.iter_mut().zip(other.histograms.iter()) {
            *a += b;
        }
    }

    /// The kinds that occurred.
    pub(super) fn occupied(&self) -> Vec<BatchSizes> {
        let histograms = self.histograms.chunks_exact(BUCKETS);
        BatchKind::ALL
            .iter()
            .zip(self.sizes.iter().zip(histograms))
            .filter(|(_, (sizes, _))| sizes.batches != 0)
            .map(|(kind, (sizes, histogram))| BatchSizes {
                kind: kind.name(),
                batches: sizes.batches,
                requests: sizes.requests,
                median: histogram::percentile(histogram, 50.0).min(sizes.max),
                max: sizes.max,
                histogram: histogram::occupied(histogram),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_kept_by_kind() {
        let mut b = Batches::default();
        b.record(BatchKind::Multicall, 1);
        b.record(BatchKind::Multicall, 1);
        b.record(BatchKind::Multicall, 30);
        b.record(BatchKind::ConsoleBytes, 4096);
        let sizes = b.occupied();
        assert_eq!(sizes.len(), 2);
        assert_eq!((sizes[0].batches, sizes[0].requests, sizes[0].median, sizes[0].max), (3, 32, 1, 30));
        assert_eq!((sizes[1].kind, sizes[1].median), ("bytes per console write", 4096));
        let mut twice = b.clone();
        twice.merge(&b);
        assert_eq!(twice.occupied()[0].requests, 64);
    }
}
