//! The bus as a driver sees it.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::memory::{Backing, Maddr};
use crate::testing::virtio::{Numbers, cases, one_of_each};
use crate::virtio::entropy::Entropy;

#[derive(Default)]
struct Kicks(Mutex<u64>, Condvar);

impl Kick for Kicks {
    fn kick(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_all();
    }
    fn arm(&self, _: u64) {}
}

/// Frames of the hypervisor, which devices must not see, and of the guest.
const OURS: u64 = 2;
const GUESTS: u64 = 16;

fn bus(count: usize) -> (VirtioMmio, Arc<MachineMemory>, Arc<Kicks>) {
    let memory = Arc::new(MachineMemory::new(OURS, GUESTS, Backing::Anonymous).unwrap());
    let kicks = Arc::new(Kicks::default());
    let devices = (0..count).map(|_| Box::new(Entropy) as Box<dyn Device>).collect();
    let kick = kicks.clone() as Arc<dyn Kick>;
    (VirtioMmio::new(devices, &memory, &kick).unwrap(), memory, kicks)
}

fn load(bus: &mut VirtioMmio, offset: u64) -> u32 {
    let mut bytes = [0xff; 4];
    assert!(bus.read(BASE + offset, &mut bytes));
    u32::from_le_bytes(bytes)
}

fn store(bus: &mut VirtioMmio, offset: u64, value: u32) {
    assert!(bus.write(BASE + offset, &value.to_le_bytes()));
}

/// A driver's way from a reset to a working device.
fn set_up(bus: &mut VirtioMmio) {
    for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        store(bus, offset, value);
    }
    assert_eq!(load(bus, 0x70), 11, "features accepted");
    store(bus, 0x30, 0);
    assert_eq!((load(bus, 0x44), load(bus, 0x34)), (0, 64));
    for (offset, value) in [(0x38, 4), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1), (0x70, 15)]
    {
        store(bus, offset, value);
    }
}

fn wait_for_line(bus: &VirtioMmio, kicks: &Kicks) {
    let mut held = kicks.0.lock().unwrap();
    while bus.lines().all(|(_, level)| level == Level::Low) {
        held = kicks.1.wait(held).unwrap();
    }
}

fn reset(bus: &mut VirtioMmio, kicks: &Kicks) {
    store(bus, 0x70, 0);
    loop {
        let seen = *kicks.0.lock().unwrap();
        if load(bus, 0x70) == 0 {
            return;
        }
        drop(kicks.1.wait_while(kicks.0.lock().unwrap(), |n| *n == seen).unwrap());
    }
}

#[test]
fn a_driver_sets_it_up_register_by_register() {
    let (mut bus, memory, kicks) = bus(5);
    assert_eq!((load(&mut bus, 0), load(&mut bus, 4), load(&mut bus, 8)), (MAGIC, 2, 4));
    set_up(&mut bus);
    assert_eq!(load(&mut bus, 0x70), 15);
    let at = |physical: u64| Maddr(OURS * 4096 + physical);
    memory.write_obj(at(0x1000), &[0x4000u64, 16 | 2 << 32]).unwrap();
    memory.write_obj(at(0x2002), &1u16).unwrap();
    store(&mut bus, 0x50, 0);
    wait_for_line(&bus, &kicks);
    let low = |line| (line, Level::Low);
    assert_eq!(bus.lines().collect::<Vec<_>>(), [(5, Level::High), low(9), low(10), low(11)]);
    assert_eq!(load(&mut bus, 0x60), 1);
    store(&mut bus, 0x64, 1);
    assert!(bus.lines().all(|(_, level)| level == Level::Low));
    assert_eq!(memory.read_obj::<u16>(at(0x3002)), Ok(1));
    assert_ne!(memory.read_obj::<[u8; 16]>(at(0x4000)), Ok([0; 16]));
    reset(&mut bus, &kicks);
    assert_eq!(load(&mut bus, 0x44), 0);
    set_up(&mut bus);
    assert_eq!(load(&mut bus, 0x70) & 15, 15);
}

#[test]
fn what_a_driver_must_not_do() {
    let (mut bus, _, kicks) = bus(1);
    for (offset, value) in [(0x70, 3), (0x24, 0), (0x20, 1), (0x70, 11)] {
        store(&mut bus, offset, value);
    }
    assert_eq!(load(&mut bus, 0x70), 3, "features that are not offered");
    // A ring outside of the guest's memory, which ends where the device's does.
    set_up(&mut bus);
    reset(&mut bus, &kicks);
    for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x38, 4), (0x80, 0x1_0000)] {
        store(&mut bus, offset, value);
    }
    for (offset, value) in [(0x90, 0x2000), (0xa0, 0x3000), (0x44, 1), (0x70, 15)] {
        store(&mut bus, offset, value);
    }
    assert_eq!(load(&mut bus, 0x70), 0x4f);
    assert_eq!(load(&mut bus, 0x60), 2);
}

/// Writes registers of the first device, in order.
fn stores(bus: &mut VirtioMmio, list: &[(u64, u32)]) {
    for &(offset, value) in list {
        store(bus, offset, value);
    }
}

/// A valid ring, made ready.
const RING: [(u64, u32); 6] =
    [(0x30, 0), (0x38, 4), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1)];
/// Sets ACKNOWLEDGE and DRIVER, and accepts the features that a driver must.
const NEGOTIATED: [(u64, u32); 4] = [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];

#[test]
fn status_bits_are_taken_back_by_a_reset_only() {
    let (mut bus, _, kicks) = bus(1);
    set_up(&mut bus);
    for value in [3, 11, 0x40, 0x30, 15] {
        store(&mut bus, 0x70, value);
        assert_eq!(
            load(&mut bus, 0x70),
            15,
            "after {value:#x}: the device is not started twice, nor stopped"
        );
    }
    store(&mut bus, 0x70, 0x80);
    assert_eq!(load(&mut bus, 0x70), 0x8f, "the driver gave up");
    reset(&mut bus, &kicks);
    store(&mut bus, 0x70, 0x40);
    assert_eq!(load(&mut bus, 0x70), 0, "only the device says that it needs a reset");
}

#[test]
fn a_device_that_could_not_start_needs_a_reset_until_it_gets_one() {
    let (mut bus, _, kicks) = bus(1);
    stores(&mut bus, &NEGOTIATED);
    stores(&mut bus, &RING);
    store(&mut bus, 0xa0, 0x3000);
    stores(&mut bus, &[(0x44, 0), (0x38, 3), (0x44, 1), (0x70, 15)]);
    assert_eq!((load(&mut bus, 0x70), load(&mut bus, 0x60)), (0x4f, 2), "three entries");
    stores(&mut bus, &[(0x70, 15), (0x70, 0x8f)]);
    assert_eq!(load(&mut bus, 0x70), 0xcf, "the driver cannot say otherwise");
    reset(&mut bus, &kicks);
    set_up(&mut bus);
    assert_eq!(load(&mut bus, 0x70), 15);
}

#[test]
fn nothing_starts_without_features_that_were_accepted() {
    let (mut bus, _, kicks) = bus(1);
    stores(&mut bus, &[(0x70, 3), (0x24, 1), (0x20, 1)]);
    stores(&mut bus, &RING);
    store(&mut bus, 0x70, 7);
    assert_eq!(load(&mut bus, 0x70), 0x47);
    reset(&mut bus, &kicks);
    // After FEATURES_OK, writes to the features are ignored.
    stores(&mut bus, &NEGOTIATED);
    stores(&mut bus, &[(0x24, 1), (0x20, 0xff), (0x24, 0), (0x20, 0xff)]);
    stores(&mut bus, &RING);
    store(&mut bus, 0x70, 15);
    assert_eq!(load(&mut bus, 0x70), 15);
}

#[test]
fn a_ready_queue_without_entries_is_a_mistake() {
    for size in [None, Some(0), Some(3), Some(128), Some(0x1_0004), Some(u32::MAX)] {
        let (mut bus, _, _) = bus(1);
        stores(&mut bus, &NEGOTIATED);
        stores(&mut bus, &RING);
        store(&mut bus, 0x44, 0);
        match size {
            Some(size) => store(&mut bus, 0x38, size),
            None => {
                // As after a reset, with no size set.
                stores(&mut bus, &[(0x70, 0)]);
                stores(&mut bus, &NEGOTIATED);
                stores(&mut bus, &[(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)]);
            }
        }
        stores(&mut bus, &[(0x44, 1), (0x70, 15)]);
        assert_eq!(load(&mut bus, 0x70), 0x4f, "{size:?}");
    }
}

#[test]
fn a_ready_queue_stays_where_it_is() {
    let (mut bus, _, kicks) = bus(1);
    stores(&mut bus, &NEGOTIATED);
    stores(&mut bus, &RING);
    // Outside of the guest's memory, but ignored, because the queue is ready.
    stores(&mut bus, &[(0x38, 3), (0x84, u32::MAX), (0x94, u32::MAX), (0xa4, u32::MAX), (0x70, 15)]);
    assert_eq!(load(&mut bus, 0x70), 15);
    // A single queue of an active device cannot be disabled: that feature is not offered.
    store(&mut bus, 0x44, 0);
    assert_eq!(load(&mut bus, 0x44), 1);
    reset(&mut bus, &kicks);
    assert_eq!(load(&mut bus, 0x44), 0);
}

#[test]
fn registers_that_are_not_there() {
    let (mut bus, _, _) = bus(1);
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(load(&mut bus, offset), u32::MAX, "{offset:#x}: no shared memory");
    }
    // A selector past the features, a queue that does not exist, queue reset, a hole, the middle of a register.
    stores(&mut bus, &[(0x14, 2), (0x30, 1), (0x38, 4), (0x44, 1)]);
    for offset in [0x10, 0x34, 0x44, 0xc0, 0x28, 0x71] {
        assert_eq!(load(&mut bus, offset), 0, "{offset:#x}");
    }
    stores(&mut bus, &[(0x14, u32::MAX), (0x30, u32::MAX), (0x50, u32::MAX), (0x44, 1)]);
    assert_eq!((load(&mut bus, 0x10), load(&mut bus, 0x34), load(&mut bus, 0x44)), (0, 0, 0));
    let mut eight = [7; 8];
    assert!(bus.read(BASE, &mut eight) && eight == [0; 8]);
    assert!(bus.write(BASE + 0x70, &[1; 8]) && load(&mut bus, 0x70) == 0);
}

#[test]
fn only_its_pages_are_its() {
    let (mut bus, _, _) = bus(2);
    let mut byte = [7];
    assert!(
        !bus.read(BASE - 1, &mut byte)
            && !bus.read(BASE + 0x2000, &mut byte)
            && !bus.read(u64::MAX, &mut byte)
    );
    assert!(!bus.write(BASE + 0x2000, &byte) && byte == [7]);
    assert!(bus.read(BASE, &mut byte) && byte == [0], "registers are words");
    assert_eq!(
        VirtioMmio::parameters(2),
        "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:9"
    );
    assert!(VirtioMmio::parameters(5).ends_with("=4K@0xd0004000:5"));
}

/// The selector chooses the queue, and a notification names it.
#[test]
fn each_of_many_queues_is_set_up_and_notified_by_its_number() {
    let memory = Arc::new(MachineMemory::new(OURS, GUESTS, Backing::Anonymous).unwrap());
    let kicks = Arc::new(Kicks::default());
    let kick = kicks.clone() as Arc<dyn Kick>;
    let mut bus = VirtioMmio::new(vec![Box::new(Numbers)], &memory, &kick).unwrap();
    stores(&mut bus, &[(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)]);
    let count = MAX_QUEUES as u32;
    for n in 0..count {
        store(&mut bus, 0x30, n);
        assert_eq!((load(&mut bus, 0x34), load(&mut bus, 0x44)), (4, 0));
        let base = 0x1000 + n * 0x100;
        stores(&mut bus, &[(0x38, 2), (0x80, base), (0x90, base + 0x40), (0xa0, base + 0x80), (0x44, 1)]);
    }
    store(&mut bus, 0x30, count);
    assert_eq!(load(&mut bus, 0x34), 0, "there is no such queue");
    store(&mut bus, 0x70, 15);
    let view = bus.memory.clone().unwrap();
    let view = view.view();
    for n in (0..count).rev() {
        let (base, buffer) = (u64::from(0x1000 + n * 0x100), u64::from(0x3000 + n));
        view.write_obj([buffer, 1 | 2 << 32], GuestAddress(base)).unwrap();
        view.store(1u16, GuestAddress(base + 0x42), Ordering::Release).unwrap();
        store(&mut bus, 0x50, n);
        wait_for_line(&bus, &kicks);
        assert_eq!(load(&mut bus, 0x60), 1);
        store(&mut bus, 0x64, 1);
        let used = |n: u32| view.read_obj::<u16>(GuestAddress(u64::from(0x1000 + n * 0x100 + 0x82))).unwrap();
        assert!((0..count).all(|other| used(other) == u16::from(other >= n)), "queue {n} alone");
        assert_eq!(view.read_obj::<u8>(GuestAddress(buffer)).unwrap(), n as u8 + 1);
    }
    reset(&mut bus, &kicks);
}

/// The addresses of the rings of queue `queue`: descriptors, available and used ring.
fn ring_of(device: u64, queue: u64) -> [u64; 3] {
    let base = 0x1000 + device * 0x1000 + queue * 0x800;
    [base, base + 0x100, base + 0x200]
}

/// A register that drivers use, or any other offset.
fn offset() -> impl Strategy<Value = u64> {
    const KNOWN: [u64; 20] = [
        0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0,
        0xa4, 0xfc, 0x100,
    ];
    prop_oneof![8 => prop::sample::select(&KNOWN[..]), 1 => 0u64..0x1000]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(512), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver writes, nothing panics, no byte outside of its memory changes, and after a reset the device is
    /// as it was at the beginning.
    #[test]
    fn any_register_traffic(
        ops in prop::collection::vec(
            (0u64..8, offset(), prop_oneof![8 => 0u32..16, 1 => any::<u32>()], 0u8..4), 1..60),
        descriptors in prop::collection::vec((0u64..0x1_1000, 0u64..0x400, 0u64..8, 0u64..9), 8),
        ready in any::<bool>(),
        index in 0u16..12,
    ) {
        let memory = Arc::new(MachineMemory::new(OURS, GUESTS, Backing::Anonymous).unwrap());
        let kicks = Arc::new(Kicks::default());
        let kick = kicks.clone() as Arc<dyn Kick>;
        let mut bus = VirtioMmio::new(one_of_each(), &memory, &kick).unwrap();
        memory.write_obj(Maddr(0), &[0xa5u8; 8192]).unwrap();
        let count = bus.slots().len() as u64;
        let view = bus.memory.clone().unwrap();
        for (device, queue) in (0..count).flat_map(|d| [(d, 0), (d, 1)]) {
            let [table, available, _] = ring_of(device, queue);
            for (n, (address, len, flags, next)) in (0u64..).zip(&descriptors) {
                let words = [*address, len | flags << 32 | next << 48];
                view.view().write_obj(words[0], GuestAddress(table + n * 16)).unwrap();
                view.view().write_obj(words[1], GuestAddress(table + n * 16 + 8)).unwrap();
                view.view().write_obj(n as u16, GuestAddress(available + 4 + n * 2)).unwrap();
            }
            view.view().write_obj(index, GuestAddress(available + 2)).unwrap();
            if ready {
                let page = device * PAGE_SIZE;
                let [table, available, used] = ring_of(device, queue).map(|at| at as u32);
                for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, queue as u32)] {
                    store(&mut bus, page + offset, value);
                }
                for (offset, value) in [(0x38, 8), (0x80, table), (0x90, available), (0xa0, used), (0x44, 1)] {
                    store(&mut bus, page + offset, value);
                }
            }
        }
        for (device, offset, value, kind) in ops {
            let at = BASE + device % count * PAGE_SIZE + (offset & !3);
            match kind {
                0 => drop(bus.read(at, &mut [0; 4])),
                // The steps that matter most.
                1 => drop(bus.write(BASE + device % count * PAGE_SIZE + 0x70, &15u32.to_le_bytes())),
                _ => drop(bus.write(at, &value.to_le_bytes())),
            }
            bus.lines().for_each(drop);
        }
        for device in 0..count {
            let status = device * PAGE_SIZE + 0x70;
            store(&mut bus, status, 0);
            loop {
                let seen = *kicks.0.lock().unwrap();
                // A cause that is not acknowledged does not interrupt again.
                store(&mut bus, status - 0x70 + 0x64, 3);
                if load(&mut bus, status) == 0 {
                    break;
                }
                drop(kicks.1.wait_while(kicks.0.lock().unwrap(), |n| *n == seen).unwrap());
            }
            prop_assert_eq!(load(&mut bus, device * PAGE_SIZE + 0x60), 0);
        }
        for slot in bus.slots() {
            let bug = slot.link().last_offence().is_some_and(|offence| offence.what == Broken::Bug);
            prop_assert!(!bug && !slot.is_active());
        }
        drop(bus);
        prop_assert_eq!(memory.read_obj::<[u8; 8192]>(Maddr(0)), Ok([0xa5; 8192]));
    }
}
