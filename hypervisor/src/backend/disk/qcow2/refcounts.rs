//! The refcounts of an image, and the number of users of each cluster, which may not exceed its refcount.

#![forbid(unsafe_code)]

use super::fault::Fault;

/// Clusters of a file at most: 4 TiB in clusters of 64 KiB. That takes 256 MiB of memory while the file is opened.
const MOST_CLUSTERS: u64 = 1 << 26;
/// Stands for the number of users of a cluster that has a table, which cannot share its cluster.
const TABLE: u32 = 0xffff;

/// Refcounts and users of a file's clusters.
pub(super) struct Counts {
    /// For each cluster, the refcount in the upper 16 bits, and the number of users found so far in the lower 16.
    clusters: Vec<u32>,
    cluster_bits: u32,
}

impl Counts {
    /// For a file of `len` bytes; all clusters are free at first.
    pub fn new(len: u64, cluster_bits: u32) -> Result<Self, Fault> {
        let count = len.div_ceil(1 << cluster_bits);
        let many = Fault::TooLarge("the file has more than 2^26 clusters");
        let count = usize::try_from(count).ok().filter(|_| count <= MOST_CLUSTERS).ok_or(many)?;
        let mut clusters = Vec::new();
        let none = |_| Fault::TooLarge("there is not enough memory");
        clusters.try_reserve_exact(count).map_err(none)?;
        clusters.resize(count, 0);
        Ok(Self { clusters, cluster_bits })
    }

    /// Loads a refcount block: refcounts of 2^`order` bits each, for the clusters from `first` on.
    pub fn load(&mut self, first: u64, block: &[u8], order: u32) -> Result<(), Fault> {
        let clusters = usize::try_from(first).ok().and_then(|first| self.clusters.get_mut(first..));
        let clusters = clusters.unwrap_or_default();
        if order == 4 {
            // The common case.
            for (cluster, count) in clusters.iter_mut().zip(block.as_chunks::<2>().0) {
                *cluster = u32::from(u16::from_be_bytes(*count)) << 16;
            }
            return Ok(());
        }
        for (number, cluster) in clusters.iter_mut().enumerate() {
            let Some(count) = refcount(block, number, order) else { break };
            let offset = (first + number as u64) << self.cluster_bits;
            let count = u16::try_from(count).map_err(|_| Fault::HugeCount { offset, count })?;
            *cluster = u32::from(count) << 16;
        }
        Ok(())
    }

    /// Enters a table of `bytes` bytes, whose clusters may have nothing else.
    pub fn table(&mut self, what: &'static str, offset: u64, bytes: u64) -> Result<(), Fault> {
        let last = offset.saturating_add(bytes.saturating_sub(1)) >> self.cluster_bits;
        let first = offset >> self.cluster_bits;
        (first..=last).try_for_each(|n| self.shared_table(what, n << self.cluster_bits, 1, false))
    }

    /// Enters a table of one cluster with `users` references; `own`: it will be written in place.
    pub fn shared_table(
        &mut self,
        what: &'static str,
        offset: u64,
        users: u32,
        own: bool,
    ) -> Result<(), Fault> {
        self.add(what, offset, users, own, |seen| if seen == 0 { Some(TABLE) } else { None })
    }

    /// Enters data in the cluster of `offset`, with `users` references; `own`: it will be written in place.
    pub fn data(&mut self, what: &'static str, offset: u64, users: u32, own: bool) -> Result<(), Fault> {
        self.add(what, offset, users, own, |seen| if seen == TABLE { None } else { seen.checked_add(users) })
    }

    /// Adds users to a cluster. `then` maps the old number of users to the new one; `None`: they cannot share it.
    fn add(
        &mut self,
        what: &'static str,
        offset: u64,
        users: u32,
        own: bool,
        then: impl Fn(u32) -> Option<u32>,
    ) -> Result<(), Fault> {
        let cluster = usize::try_from(offset >> self.cluster_bits).ok();
        let Some(cluster) = cluster.and_then(|n| self.clusters.get_mut(n)) else {
            return Err(Fault::Outside {
                what,
                offset,
                len: (self.clusters.len() as u64) << self.cluster_bits,
            });
        };
        let (count, seen) = (*cluster >> 16, *cluster & 0xffff);
        if count == 0 {
            return Err(Fault::Uncounted { what, offset });
        }
        let Some(now) = then(seen) else { return Err(Fault::Overlap { what, offset }) };
        if users > count || now != TABLE && now > count.min(TABLE - 1) {
            return Err(Fault::TooFew { what, offset, count });
        }
        if own && count != 1 {
            return Err(Fault::Shared { what, offset, count });
        }
        *cluster = count << 16 | now;
        Ok(())
    }
}

/// Refcount `number` of a block; `None` after the last.
fn refcount(block: &[u8], number: usize, order: u32) -> Option<u64> {
    if order < 3 {
        // Several refcounts in a byte; the first is in the least significant bits.
        let (in_byte, bits) = (8usize >> order, 1u32 << order);
        let byte = block.get(number / in_byte)?;
        let shift = (number % in_byte) as u32 * bits;
        return Some(u64::from(byte >> shift) & ((1 << bits) - 1));
    }
    let bytes = 1usize << (order - 3);
    let bytes = block.get(number.checked_mul(bytes)?..)?.get(..bytes)?;
    Some(bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use crate::backend::disk::qcow2::refcounts::*;

    #[test]
    fn refcounts_of_every_width_are_read() {
        let block = [0x93, 0x00, 0x00, 0x01, 0, 0, 0, 7, 0xff];
        let first = |order| (0..3).map_while(|n| refcount(&block, n, order)).collect::<Vec<_>>();
        assert_eq!(first(0), [1, 1, 0]);
        assert_eq!(first(1), [3, 0, 1]);
        assert_eq!(first(2), [3, 9, 0]);
        assert_eq!(first(3), [0x93, 0, 0]);
        assert_eq!(first(4), [0x9300, 1, 0]);
        assert_eq!(first(5), [0x9300_0001, 7]);
        assert_eq!(first(6), [0x9300_0001_0000_0007]);
        assert_eq!(refcount(&block, usize::MAX, 6), None);
    }

    fn counts(refcounts: &[u8]) -> Counts {
        let mut counts = Counts::new(refcounts.len() as u64 * 512, 9).unwrap();
        counts.load(0, refcounts, 3).unwrap();
        counts
    }

    #[test]
    fn more_users_than_the_refcount_are_an_error() {
        let mut c = counts(&[1, 2, 3, 0]);
        assert!(c.data("x", 0x10, 1, true).is_ok());
        assert!(matches!(c.data("x", 0, 1, false), Err(Fault::TooFew { count: 1, .. })));
        assert!(matches!(c.data("x", 0x200, 1, true), Err(Fault::Shared { count: 2, .. })));
        assert!(c.data("x", 0x200, 2, false).is_ok());
        assert!(matches!(c.shared_table("x", 0x200, 1, false), Err(Fault::Overlap { .. })));
        assert!(c.shared_table("x", 0x400, 2, false).is_ok());
        assert!(matches!(c.data("x", 0x400, 1, false), Err(Fault::Overlap { .. })), "although one is left");
        assert!(matches!(c.data("x", 0x600, 1, false), Err(Fault::Uncounted { .. })));
        assert!(matches!(c.data("x", 0x800, 1, false), Err(Fault::Outside { .. })));
        assert!(matches!(c.table("x", u64::MAX, u64::MAX), Err(Fault::Outside { .. })));
        assert!(matches!(counts(&[2]).shared_table("x", 0, u32::MAX, false), Err(Fault::TooFew { .. })));
    }

    #[test]
    fn too_many_clusters_are_refused() {
        assert!(matches!(Counts::new(u64::MAX, 9), Err(Fault::TooLarge(_))));
        assert!(matches!(
            counts(&[0; 8]).load(0, &[0, 1, 0, 0], 5),
            Err(Fault::HugeCount { count: 65536, .. })
        ));
    }
}
