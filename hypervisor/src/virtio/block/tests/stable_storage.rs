//! Whether data that must be on stable storage was really written there.
//!
//! Killing the program would not show this, because its writes stay in the page cache. cachestat(2) does (Linux 6.5): a
//! page that was written and not synced is dirty.

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::Queue;

/// Whether this kernel and file system say which pages are dirty. A tmpfs does not: its pages are only in memory.
fn can_tell(scratch: &Scratch) -> bool {
    let file = File::options().write(true).open(&scratch.0).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    let before = unsynced(&file);
    file.sync_all().unwrap();
    let tells = before.is_some_and(|n| n > 0) && unsynced(&file) == Some(0);
    if !tells {
        crate::testing::skip::skip(
            "cachestat",
            "this kernel (Linux 6.5 can) or file system does not say which pages are dirty",
        );
    }
    tells
}

#[test]
fn a_flush_reaches_the_hosts_disk_and_so_does_every_write_of_a_driver_without_flushes() {
    let scratch = Scratch::new("stable", SECTORS * SECTOR);
    if !can_tell(&scratch) {
        return;
    }
    let file = File::open(&scratch.0).unwrap();
    for features in [FLUSH, 0] {
        for mut bench in benches(&scratch) {
            let mut rings = bench.start(features, 1, 16);
            let ring = &mut rings[0];
            bench.put(DATA, &[5; 8192]);
            for sector in (0..512).step_by(16) {
                assert_eq!(request(&bench, ring, 1, sector, &[(DATA, 8192, false)]), ok(1));
                assert!(
                    features & FLUSH != 0 || unsynced(&file) == Some(0),
                    "a write of a driver without flushes"
                );
            }
            assert_eq!(request(&bench, ring, 4, 0, &[]), ok(1), "flush");
            assert_eq!(unsynced(&file), Some(0), "after a flush");
            bench.reset();
        }
    }
}

#[test]
fn a_flush_of_a_qcow2_image_reaches_the_hosts_disk() {
    let scratch = qcow2_image("stable.qcow2", 3);
    if !can_tell(&Scratch::new("stable-control", 4096)) {
        return;
    }
    let file = File::open(&scratch.0).unwrap();
    for features in [FLUSH, 0] {
        let mut bench = Bench::new(open(&scratch.options()).unwrap());
        let mut rings = bench.start(features, 1, 16);
        bench.put(DATA, &[5; 8192]);
        assert_eq!(request(&bench, &mut rings[0], 1, 500, &[(DATA, 8192, false)]), ok(1));
        if features & FLUSH != 0 {
            assert_eq!(request(&bench, &mut rings[0], 4, 0, &[]), ok(1), "flush");
        }
        assert_eq!(unsynced(&file), Some(0));
        bench.reset();
    }
}

/// A driver turns the cache off and on again (5.2.6.2), by the only byte of the configuration that it may change.
#[test]
fn a_driver_turns_the_cache_off() {
    const WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
    let scratch = Scratch::new("wce", SECTORS * SECTOR);
    if !can_tell(&scratch) {
        return;
    }
    let file = File::open(&scratch.0).unwrap();
    for mut bench in benches(&scratch) {
        let cache = |bench: &Bench| bench.slot.link().config().0.bytes()[WRITEBACK];
        let others = bench.slot.link().config().0;
        let mut rings = bench.start(FLUSH | WCE, 1, 16);
        assert_eq!(cache(&bench), 1);
        assert!(bench.slot.write_config(WRITEBACK - 2, &[7, 7, 0, 7]));
        assert_eq!(cache(&bench), 0);
        bench.put(DATA, &[6; 8192]);
        assert_eq!(request(&bench, &mut rings[0], 1, 64, &[(DATA, 8192, false)]), ok(1));
        assert_eq!(unsynced(&file), Some(0), "written through");
        assert!(bench.slot.write_config(WRITEBACK, &[1]) && bench.slot.write_config(WRITEBACK + 1, &[0; 20]));
        assert!(!bench.slot.write_config(60, &[0]));
        assert_eq!(bench.slot.link().config().0, others, "no other byte has changed");
        assert!(bench.slot.write_config(0, &[0; 60]));
        assert_eq!(cache(&bench), 0);
        bench.reset();
        // The next driver starts with the initial value. Without FLUSH there is no cache.
        assert_eq!(bench.slot.link().config().0, others, "as before the activation");
        drop(bench.start(FLUSH, 1, 16));
        assert_eq!(cache(&bench), 1);
        bench.reset();
        drop(bench.start(0, 1, 16));
        assert_eq!(cache(&bench), 0);
        bench.reset();
        assert_eq!(bench.slot.link().config().0, others, "the next driver starts with the initial value");
        // Between FEATURES_OK and DRIVER_OK, which virtio-mmio allows.
        assert!(bench.slot.write_config(WRITEBACK, &[0]));
        drop(bench.start(FLUSH | WCE, 1, 16));
        assert_eq!(cache(&bench), 0);
        bench.reset();
        assert_eq!(cache(&bench), 1);
    }
}

#[test]
fn an_activation_that_fails_leaves_the_cache_as_it_was() {
    let scratch = Scratch::new("wce-failed", SECTORS * SECTOR);
    let mut block = open(&scratch.options()).unwrap();
    for before in [true, false] {
        let bench = Bench::new(crate::virtio::entropy::Entropy);
        let link = Arc::new(Link::new(&block.config(), bench.interrupts.clone()));
        block.set_writeback(&link, before);
        let (setup, memory) = (Ring::new(&bench.memory, 0, 16).setup, bench.memory.clone());
        let ends = (EventFd::new(EFD_NONBLOCK).unwrap(), link.clone());
        let queues = vec![Queue::new(0, &setup, 256, 0, &memory, ends)];
        let features = if before { 0 } else { FLUSH };
        let activation = Activation { features, queues, memory, link: link.clone() };
        let mut workers = Workers::new(link.clone()).unwrap();
        workers.refuse = true;
        assert!(block.activate(activation, &mut workers).is_err());
        assert_eq!(block.disk.writeback.load(Ordering::Acquire), before);
    }
}
