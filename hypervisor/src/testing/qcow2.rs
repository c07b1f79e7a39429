//! A small qcow2 image that has every kind of table, byte by byte, and a check of the refcounts of such images that
//! shares no code with the product.

use std::collections::BTreeMap;

/// Bytes of a cluster.
pub const CLUSTER: usize = 512;
/// Bytes of the disk.
pub const DISK: u64 = 64 << 10;
pub const COPIED: u64 = 1 << 63;
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Offsets in the image.
pub const REFTABLE: usize = CLUSTER;
pub const REFBLOCK: usize = 2 * CLUSTER;
pub const L1: usize = 3 * CLUSTER;
pub const L2: usize = 4 * CLUSTER;
pub const GUEST_DATA: usize = 5 * CLUSTER;
/// A second L2 table, of the active image and of a snapshot, and its data.
pub const SHARED_L2: usize = 7 * CLUSTER;
pub const SHARED_DATA: usize = 8 * CLUSTER;
pub const SNAPSHOTS: usize = 9 * CLUSTER;
pub const SNAPSHOT_L1: usize = 10 * CLUSTER;
pub const CLUSTERS: usize = 11;

pub fn put<const N: usize>(image: &mut [u8], at: usize, bytes: [u8; N]) {
    image[at..at + N].copy_from_slice(&bytes);
}

pub fn be64(image: &[u8], at: usize) -> u64 {
    image.get(at..at + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
}

pub fn be32(image: &[u8], at: usize) -> u32 {
    (be64(image, at) >> 32) as u32
}

/// An image of version 3, with a snapshot.
pub fn image() -> Vec<u8> {
    let mut image = vec![0; CLUSTERS * CLUSTER];
    let i = &mut image[..];
    put(i, 0, *b"QFI\xfb");
    for (at, value) in [(4, 3u32), (20, 9), (36, 2), (56, 1), (60, 1), (96, 4), (100, 104)] {
        put(i, at, value.to_be_bytes());
    }
    for (at, value) in [(24, DISK), (40, L1 as u64), (48, REFTABLE as u64), (64, SNAPSHOTS as u64)] {
        put(i, at, value.to_be_bytes());
    }
    put(i, REFTABLE, (REFBLOCK as u64).to_be_bytes());
    for cluster in 0..CLUSTERS {
        let shared = matches!(cluster * CLUSTER, SHARED_L2 | SHARED_DATA);
        put(i, REFBLOCK + cluster * 2, if shared { 2u16 } else { 1 }.to_be_bytes());
    }
    put(i, L1, (L2 as u64 | COPIED).to_be_bytes());
    put(i, L1 + 8, (SHARED_L2 as u64).to_be_bytes());
    put(i, L2, (GUEST_DATA as u64 | COPIED).to_be_bytes());
    put(i, L2 + 8, 1u64.to_be_bytes());
    put(i, L2 + 16, ((GUEST_DATA + CLUSTER) as u64 | COPIED | 1).to_be_bytes());
    put(i, SHARED_L2, (SHARED_DATA as u64).to_be_bytes());
    put(i, SNAPSHOTS, (SNAPSHOT_L1 as u64).to_be_bytes());
    put(i, SNAPSHOTS + 8, 2u32.to_be_bytes());
    put(i, SNAPSHOTS + 12, [0, 1, 0, 1]);
    put(i, SNAPSHOTS + 40, *b"1s");
    put(i, SNAPSHOT_L1 + 8, (SHARED_L2 as u64).to_be_bytes());
    i[GUEST_DATA..GUEST_DATA + CLUSTER].fill(0xd1);
    i[SHARED_DATA..SHARED_DATA + CLUSTER].fill(0xd2);
    image
}

/// Checks an image with clusters of 512 bytes and refcounts of 16 bits: counts the users of each cluster by following
/// every table. The error says what is wrong.
pub fn recount(image: &[u8]) -> Result<(), String> {
    let mut users = BTreeMap::<u64, Vec<String>>::new();
    let mut uses = |who: String, at: u64, bytes: u64| {
        // An empty table does not use a cluster, whatever its offset is.
        let end = if bytes == 0 { 0 } else { (at + bytes).div_ceil(512) };
        for cluster in at / 512..end {
            users.entry(cluster).or_default().push(who.clone());
        }
    };
    uses("header".into(), 0, 512);
    let (reftable, blocks) = (be64(image, 48), u64::from(be32(image, 56)) * 64);
    uses("reftable".into(), reftable, blocks * 8);
    let mut refcounts = BTreeMap::new();
    for n in 0..blocks {
        let block = be64(image, (reftable + n * 8) as usize);
        if block != 0 {
            uses("refblock".into(), block, 512);
            for i in 0..256 {
                let count = be64(image, (block + i * 2) as usize) >> 48;
                refcounts.insert(n * 256 + i, count);
            }
        }
    }
    let mut l1_tables = vec![("active".to_owned(), be64(image, 40), be32(image, 36))];
    let (mut at, mut end) = (be64(image, 64) as usize, 0);
    for n in 0..be32(image, 60) {
        l1_tables.push((format!("snapshot {n}"), be64(image, at), be32(image, at + 8)));
        let more = be32(image, at + 12);
        let more = 40 + be32(image, at + 36) + (more >> 16) + (more & 0xffff);
        end = at as u64 + u64::from(more);
        at += (more as usize).next_multiple_of(8);
    }
    // One table, whose entries may share clusters.
    uses("snapshots".into(), be64(image, 64), end.saturating_sub(be64(image, 64)));
    for (name, l1, entries) in l1_tables {
        uses(format!("L1 of {name}"), l1, u64::from(entries) * 8);
        for n in 0..u64::from(entries) {
            let l2 = be64(image, (l1 + n * 8) as usize) & OFFSET;
            if l2 == 0 {
                continue;
            }
            uses(format!("L2 at {l2:#x}"), l2, 512);
            for i in 0..64 {
                let entry = be64(image, (l2 + i * 8) as usize);
                if entry & 1 << 62 != 0 {
                    let offset = entry & ((1 << 61) - 1) & 0x00ff_ffff_ffff_ffff;
                    let sectors = (entry >> 61 & 1) + 1;
                    uses("data".into(), offset & !511, sectors * 512);
                } else if entry & OFFSET != 0 {
                    uses("data".into(), entry & OFFSET, 512);
                }
            }
        }
    }
    for (cluster, users) in users {
        let count = refcounts.get(&cluster).copied().unwrap_or(0);
        let kinds = users.iter().collect::<std::collections::BTreeSet<_>>().len();
        if (users.len() as u64) > count
            || kinds > 1
            || users.len() > 1 && !users[0].starts_with(['L', 'd', 's'])
        {
            return Err(format!("cluster {cluster}, of refcount {count}, is used by {users:?}"));
        }
    }
    Ok(())
}
