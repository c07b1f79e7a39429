//! The kernel's devices, by the drivers of the crate `virtio-drivers`.
#![no_std]

use paravane_guest::virtio::drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use paravane_guest::virtio::drivers::device::rng::VirtIORng;
use paravane_guest::virtio::drivers::transport::DeviceType;
use paravane_guest::virtio::{Device, POOL, PoolHal, PvTransport, devices};
use paravane_guest::{Boot, event, trap};

/// Pages for queues and buffers. Devices reach no other memory.
const POOL_FRAMES: u64 = 64;

/// Brings the kernel up, with memory for devices.
pub fn start(boot: &Boot) {
    trap::install().expect("the hypervisor takes handlers of exceptions");
    event::install().expect("the hypervisor takes handlers of events");
    let (_, mut free) = boot.take_memory().expect("memory can be mapped");
    let pool = free.take_bytes(POOL_FRAMES).expect("there is memory for devices");
    POOL.give_bytes(boot.memory(), pool).expect("the pool was empty");
}

/// Fills the beginning of `bytes` from the first entropy device; returns how many bytes.
pub fn random(boot: &Boot, bytes: &mut [u8]) -> Option<usize> {
    let (device, transport) = open(boot, DeviceType::EntropySource)?;
    let mut driver = VirtIORng::<PoolHal, _>::new(transport).ok()?;
    has_started(&device)?;
    driver.request_entropy(bytes).ok()
}

/// Reads the first sector of the first disk.
pub fn first_sector(boot: &Boot) -> Option<[u8; SECTOR_SIZE]> {
    let (device, transport) = open(boot, DeviceType::Block)?;
    let mut driver = VirtIOBlk::<PoolHal, _>::new(transport).ok()?;
    has_started(&device)?;
    let mut sector = [0; SECTOR_SIZE];
    driver.read_blocks(0, &mut sector).ok()?;
    Some(sector)
}

/// The first device of a type. These drivers poll, so that its interrupts need no work.
fn open(boot: &Boot, kind: DeviceType) -> Option<(Device, PvTransport)> {
    let device = devices().find(|device| device.kind() == u32::from(kind as u8))?;
    let transport = PvTransport::new(device, boot.memory(), |_port| ()).ok()?;
    Some((device, transport))
}

/// Drivers do not report that the host refused to start a device.
fn has_started(device: &Device) -> Option<()> {
    (device.status() != 0).then_some(())
}
