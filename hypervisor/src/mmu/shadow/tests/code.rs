//! Frames of code from which something was made.

use super::*;
use crate::machine::memory::PAGE_SIZE;

impl Bench {
    fn store(&mut self, pfn: u64, offset: u64, bytes: &[u8]) {
        let at = Maddr(self.at(pfn, 0).0 + offset);
        assert!(!self.shadow.store(&self.mem, &mut self.log, at, bytes).unwrap(), "no table");
    }
    fn replace(&mut self, pfn: u64, offset: u64, bytes: &[u8]) {
        let at = Maddr(self.at(pfn, 0).0 + offset);
        self.shadow.replace_code(&self.mem, at, bytes).unwrap();
    }
    /// What is in memory, and what the hypervisor reads in the guest's stead.
    fn bytes(&self, pfn: u64, offset: u64) -> ([u8; 8], [u8; 8]) {
        let (mut raw, mut read) = ([0; 8], [0; 8]);
        let at = Maddr(self.at(pfn, 0).0 + offset);
        self.mem.read(at, &mut raw).unwrap();
        self.shadow.read(&self.mem, at, &mut read).unwrap();
        (raw, read)
    }
    fn writes(&mut self) -> (Vec<(u64, u64, u64)>, bool) {
        let mut all = Vec::new();
        let more = self.shadow.take_code_writes(|w| all.push((w.pfn, w.offset, w.len)));
        (all, more)
    }
}

#[test]
fn code_is_protected_by_frame() {
    let mut b = Bench::new(SHADOW_FRAMES);
    // Two linear addresses of one frame.
    for slot in [5, 6] {
        b.poke(4, slot, 100 << 12 | RW_SEEN);
        b.touch(slot << 12, WRITE).unwrap();
    }
    b.space.caught_up(&b.log);
    b.shadow.protect_code(&b.mem, &mut b.log, 100);
    assert_eq!(b.space.pending(&b.log).flush, Flush::All);
    for va in [0x5000, 0x6000] {
        assert_eq!(b.cpu(va).map(|(_, w)| w), Some(false));
        assert_eq!(b.touch(va, WRITE), Ok(None), "a store has to be emulated");
    }
    b.poke(4, 7, 100 << 12 | RW_SEEN);
    b.touch(0x7000, READ).unwrap();
    assert_eq!(b.cpu(0x7000).map(|(_, w)| w), Some(false), "a third address is no way around it");
    b.shadow.unprotect_code(100);
    b.touch(0x7000, WRITE).unwrap();
    assert_eq!(b.cpu(0x7000).map(|(_, w)| w), Some(true));
}

#[test]
fn it_stays_protected_when_the_shadow_is_dropped() {
    let mut b = Bench::new(Shadow::MIN_FRAMES);
    b.shadow.protect_code(&b.mem, &mut b.log, 100);
    b.shadow.drop_all(&b.mem, &mut b.log);
    b.activate(1 << 12);
    b.poke(4, 5, 100 << 12 | RW_SEEN);
    b.touch(0x5000, READ).unwrap();
    assert_eq!(b.cpu(0x5000).map(|(_, w)| w), Some(false));
}

#[test]
fn stores_are_noted_and_made() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.store(100, 8, &[1, 2]);
    assert_eq!(b.writes(), (vec![], false), "not code yet");
    b.shadow.protect_code(&b.mem, &mut b.log, 100);
    b.store(100, 8, &[3, 4]);
    b.store(100, 10, &[5]);
    b.store(100, 20, &[6]);
    b.store(101, 0, &[7]);
    b.store(100, 30, &[]);
    assert_eq!(b.bytes(100, 8).0, [3, 4, 5, 0, 0, 0, 0, 0]);
    assert_eq!(b.writes(), (vec![(100, 8, 3), (100, 20, 1)], false), "what adjoins is one store");
    assert_eq!(b.writes(), (vec![], false));
    for i in 0..40 {
        b.store(100, i * 8, &[1]);
    }
    let (noted, more) = b.writes();
    assert!(more && noted.len() == 16);
}

#[test]
fn replaced_bytes_are_hidden_and_come_back_before_a_store() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.shadow.protect_code(&b.mem, &mut b.log, 100);
    b.store(100, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    b.replace(100, 1, &[0xa; 2]);
    b.replace(100, 5, &[0xb; 3]);
    assert_eq!(b.bytes(100, 0), ([1, 10, 10, 4, 5, 11, 11, 11], [1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(b.bytes(100, 2).1[..6], [3, 4, 5, 6, 7, 8]);
    // Beside, between, and over the end of one.
    b.store(100, 3, &[9, 9]);
    assert_eq!(b.bytes(100, 0), ([1, 10, 10, 9, 9, 11, 11, 11], [1, 2, 3, 9, 9, 6, 7, 8]));
    b.store(100, 2, &[0xff]);
    assert_eq!(b.bytes(100, 0), ([1, 2, 0xff, 9, 9, 11, 11, 11], [1, 2, 0xff, 9, 9, 6, 7, 8]));
    // Replaced anew: the originals are the guest's, not the first replacement.
    b.replace(100, 4, &[0xc; 2]);
    assert_eq!(b.bytes(100, 0), ([1, 2, 0xff, 9, 12, 12, 7, 8], [1, 2, 0xff, 9, 9, 6, 7, 8]));
    assert!(b.shadow.replace_code(&b.mem, Maddr(b.at(100, 0).0 + 4094), &[0; 3]).is_err());
    // Released as a whole.
    let at = Maddr(b.at(100, 0).0 + 4);
    b.shadow.release_code(&b.mem, at).unwrap();
    assert_eq!(b.bytes(100, 0).0, [1, 2, 0xff, 9, 9, 6, 7, 8]);
    assert!(!b.shadow.is_code(100));
    assert_eq!(b.writes().0.last(), Some(&(100, 0, PAGE_SIZE)));
}

#[test]
fn a_log_of_stores_is_followed() {
    let mut b = Bench::new(SHADOW_FRAMES);
    b.poke(4, 5, 100 << 12 | RW_SEEN);
    b.touch(0x5000, WRITE).unwrap();
    assert!(!b.shadow.drain(&b.mem, &mut b.log, 100, 0), "no table");
    // As through a writable alias: no trap.
    b.mem.store_u64(b.at(4, 5), 101 << 12 | RW_SEEN).unwrap();
    b.mem.store_u64(b.at(4, 6), 102 << 12 | RW_SEEN).unwrap();
    assert_eq!(b.cpu(0x5000), Some((b.at(100, 0), true)), "until an exit the old one may be used");
    assert!(b.shadow.drain(&b.mem, &mut b.log, 4, 6) && b.shadow.drain(&b.mem, &mut b.log, 4, 5));
    assert_eq!((b.cpu(0x5000), b.cpu(0x6000)), (Some((b.at(101, 0), true)), Some((b.at(102, 0), true))));
    assert!(!b.shadow.drain(&b.mem, &mut b.log, u64::MAX, u64::MAX));
}

proptest! {
    /// Random stores and replacements against a plain copy of what the guest believes is there.
    #[test]
    fn the_hypervisor_reads_what_the_guest_wrote(
        ops in prop::collection::vec((any::<bool>(), 0u64..40, prop::collection::vec(any::<u8>(), 1..16)), 1..60),
    ) {
        let mut b = Bench::new(SHADOW_FRAMES);
        b.shadow.protect_code(&b.mem, &mut b.log, 100);
        let mut believed = [0u8; 64];
        for (replaces, offset, bytes) in &ops {
            if *replaces {
                b.replace(100, *offset, bytes);
            } else {
                b.store(100, *offset, bytes);
                believed[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            let mut read = [0; 64];
            b.shadow.read(&b.mem, b.at(100, 0), &mut read).unwrap();
            prop_assert_eq!(read, believed);
        }
        b.shadow.restore_code(&b.mem, b.at(100, 0), 64).unwrap();
        let mut raw = [0; 64];
        b.mem.read(b.at(100, 0), &mut raw).unwrap();
        prop_assert_eq!(raw, believed);
    }
}
