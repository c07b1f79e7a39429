//! A driver may start and reset its device any number of times without a leak in the host. This is a separate program,
//! because it counts the resources of the whole process.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use paravane::compare::Needs;
use paravane::host::busy_poll::BusyPoll;
use paravane::machine::device_memory::{DeviceMemory, Region};
use paravane::machine::memory::{Backing, MachineMemory, Mfn};
use paravane::virtio::entropy::Entropy;
use paravane::virtio::{Device, Interrupt, QueueSetup, Slot};
use skip::skip;

const VERSION_1: u64 = 1 << 32;
/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Interrupts(Mutex<u64>, Condvar);

impl Interrupt for Interrupts {
    fn queue(&self, _: u16) {}
    fn config(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_all();
    }
}

impl Interrupts {
    /// Resets a device and waits for the reset to complete.
    fn reset(&self, slot: &mut Slot) {
        loop {
            let seen = *self.0.lock().unwrap();
            if slot.reset() {
                return;
            }
            drop(self.1.wait_while(self.0.lock().unwrap(), |count| *count == seen).unwrap());
        }
    }
}

fn list(directory: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("broken test: {directory}: {e}"));
    entries.map(|entry| entry.expect("broken test: an entry").path())
}

/// The targets of the open descriptors, sorted. One is the listing itself.
fn descriptors() -> Vec<PathBuf> {
    let mut all: Vec<_> = list("/proc/self/fd").filter_map(|path| fs::read_link(path).ok()).collect();
    all.sort();
    all
}

/// Starts and resets a device, with empty or invalid rings.
fn cycle(slot: &mut Slot, interrupts: &Interrupts, memory: &DeviceMemory, times: u32) {
    let setup = |n: u64| QueueSetup {
        size: 8,
        descriptors: n * 0x1000,
        driver: n * 0x1000 + 0x800,
        device: n * 0x1000 + 0xc00,
    };
    let setups: Vec<_> = (1..=u64::from(slot.info().queues)).map(setup).collect();
    for _ in 0..times {
        slot.activate(memory, VERSION_1, &setups).unwrap_or_else(|e| panic!("broken product: {e}"));
        slot.kick(0);
        interrupts.reset(slot);
    }
}

#[test]
fn ten_thousand_starts_leave_no_descriptors_and_no_threads() {
    let mut devices: Vec<(Box<dyn Device>, u32)> = vec![(Box::new(Entropy), 8000)];
    devices.extend(Needs::Network.provide().into_iter().flatten().map(|device| (device, 1000)));
    match Needs::Disk.provide() {
        Ok(disk) => devices.extend(disk.into_iter().map(|device| (device, 1000))),
        Err(why) => skip("disk", why),
    }
    // The first poll that finds no work opens a file for the whole process. When that happens depends on the host.
    BusyPoll::default().look(|| false);
    let machine = Arc::new(MachineMemory::new(0, 16, Backing::Anonymous).unwrap());
    let memory = DeviceMemory::new(&machine, &[Region { address: 0, first: Mfn(0), frames: 16 }]).unwrap();
    let interrupts = Arc::new(Interrupts::default());
    for (device, times) in devices {
        let mut slot = Slot::new(device, interrupts.clone());
        machine.zero_frame(Mfn(1)).unwrap();
        cycle(&mut slot, &interrupts, &memory, 2);
        let (before, threads) = (descriptors(), list("/proc/self/task").count());
        cycle(&mut slot, &interrupts, &memory, times / 2);
        // An available index that is too far ahead.
        machine.write_obj(Mfn(1).maddr(), &[0xffu8; 4096]).unwrap();
        cycle(&mut slot, &interrupts, &memory, times / 2);
        assert_eq!(before, descriptors(), "descriptors of device type {}", slot.info().kind);
        // A joined thread may stay listed until the kernel has removed it.
        let began = Instant::now();
        while list("/proc/self/task").count() > threads {
            assert!(began.elapsed() < PATIENCE, "threads of device type {} are left", slot.info().kind);
            std::thread::yield_now();
        }
    }
}
