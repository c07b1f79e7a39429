//! Virtio devices on the memory bus (virtio 1.2, section 4.2), at the addresses that the command line gives.
//!
//! `virtio-drivers` has the protocol. This file adds what both machines do alike: it leaves out notifications that
//! the device did not ask for. Interrupts are acknowledged in the handler, and end a wait.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use paravane_guest::virtio::drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use paravane_guest::virtio::drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use paravane_guest::virtio::drivers::{PhysAddr, Result};
use paravane_guest::virtio::{Interrupts, POOL, Rings};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::mmu::BareMmu;
use super::pic;
use crate::cmdline::MmioDevices;
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::paging::{Access, Mmu, Span, Stale};
use crate::memory::{Memory, direct_map};

/// The most devices.
const DEVICES: usize = 8;
/// The most queues of one device.
const QUEUES: usize = 4;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

// Registers that the interrupt handler uses itself (section 4.2.2).
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;

/// A device that the command line names.
struct Slot {
    /// Address of its registers; 0 if there is no device.
    registers: AtomicU64,
    irq: AtomicU8,
    /// Whether a driver has the device, so that it may interrupt.
    open: AtomicU8,
    /// Interrupts that the handler has acknowledged and the driver has not seen yet.
    pending: AtomicU32,
}

static SLOTS: [Slot; DEVICES] = [const {
    Slot {
        registers: AtomicU64::new(0),
        irq: AtomicU8::new(0),
        open: AtomicU8::new(0),
        pending: AtomicU32::new(0),
    }
}; DEVICES];

/// Maps the registers of the devices that the command line names, and unmasks their request lines.
pub fn attach(memory: &mut Memory<BareMmu>, cmdline: &str) -> usize {
    let Memory { mmu, frames, space, .. } = memory;
    let mut count = 0;
    for (slot, device) in SLOTS.iter().zip(MmioDevices::of(cmdline)) {
        let frame = Frame(device.address / PAGE_SIZE);
        let va = direct_map(frame);
        if space.map_run(mmu, frames, Span::pages(va, 1), frame, Access::ReadWrite).is_err() {
            break;
        }
        slot.registers.store(va, Ordering::Relaxed);
        slot.irq.store(device.irq, Ordering::Relaxed);
        pic::unmask(device.irq);
        count += 1;
    }
    mmu.flush(Stale::Nothing);
    count
}

/// Opens the device in a slot, if there is one, it is of this kind, and no driver has it.
pub fn open(number: usize, kind: DeviceType) -> Option<Mmio> {
    let slot = SLOTS.get(number).filter(|slot| slot.open.load(Ordering::Relaxed) == 0)?;
    let registers = NonNull::new(slot.registers.load(Ordering::Relaxed) as *mut VirtIOHeader)?;
    // SAFETY: a page of registers according to the command line, mapped by `attach` for good; `open` bars a second
    // driver.
    let mmio = unsafe { MmioTransport::new(registers, PAGE_SIZE as usize) }.ok()?;
    (mmio.device_type() == kind).then(|| {
        slot.open.store(1, Ordering::Release);
        Mmio { mmio, slot, features: 0, rings: [None; QUEUES], set: [(0, 0, 0); QUEUES] }
    })
}

/// Whether some device has this request line.
pub fn is_line(irq: u64) -> bool {
    on_line(irq as u8).next().is_some() && irq < 16
}

fn on_line(irq: u8) -> impl Iterator<Item = &'static Slot> {
    let used = move |slot: &&Slot| {
        slot.registers.load(Ordering::Relaxed) != 0 && slot.irq.load(Ordering::Relaxed) == irq
    };
    SLOTS.iter().filter(used)
}

/// For the interrupt handler: acknowledges the requests of all devices on the line.
///
/// The line is edge triggered. If devices share it, one may raise it while another keeps it up, which makes no new
/// edge. So on a shared line the handler returns only after a pass in which no device requested anything.
pub fn interrupt(irq: u8) {
    let open = || on_line(irq).filter(|slot| slot.open.load(Ordering::Acquire) != 0);
    let shared = open().nth(1).is_some();
    while open().fold(false, |any, slot| slot.acknowledge() | any) && shared {}
}

impl Slot {
    /// Acknowledges the device's requests; returns whether there were any.
    fn acknowledge(&self) -> bool {
        let registers = self.registers.load(Ordering::Relaxed);
        // SAFETY: a register in a page that stays mapped.
        let status = unsafe { ((registers + INTERRUPT_STATUS) as *const u32).read_volatile() };
        if status != 0 {
            // SAFETY: as above.
            unsafe { ((registers + INTERRUPT_ACK) as *mut u32).write_volatile(status) };
            self.pending.fetch_or(status, Ordering::Relaxed);
        }
        status != 0
    }
}

/// A device's registers as a transport.
pub struct Mmio {
    mmio: MmioTransport<'static>,
    slot: &'static Slot,
    features: u64,
    rings: [Option<Rings>; QUEUES],
    /// Size, driver area and device area of the queues that were set up.
    set: [(u16, PhysAddr, PhysAddr); QUEUES],
}

impl Mmio {
    /// Writing 0 resets the device; it is reset once 0 is read back (section 4.2.2.1).
    fn reset(&mut self) {
        self.mmio.set_status(DeviceStatus::empty());
        while !self.mmio.get_status().is_empty() {
            core::hint::spin_loop();
        }
        self.rings = [None; QUEUES];
        self.set = [(0, 0, 0); QUEUES];
    }
}

impl Interrupts for Mmio {
    fn interrupt_after(&self, queue: u16, more: u16, taken: u16) -> bool {
        let rings = self.rings.get(usize::from(queue)).and_then(Option::as_ref);
        rings.is_none_or(|rings| rings.interrupt_after(more, taken))
    }
}

impl Transport for Mmio {
    fn device_type(&self) -> DeviceType {
        self.mmio.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.mmio.read_device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.features = features;
        self.mmio.write_driver_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.mmio.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        let rings = self.rings.get_mut(usize::from(queue)).and_then(Option::as_mut);
        if rings.is_none_or(Rings::wants_kick) {
            self.mmio.notify(queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.mmio.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.mmio.set_status(status);
        if status.contains(DeviceStatus::DRIVER_OK) {
            let event_idx = self.features & EVENT_IDX != 0;
            for (rings, (size, driver, device)) in
                self.rings.iter_mut().zip(self.set).filter(|(_, set)| set.0 != 0)
            {
                *rings = Rings::new(&POOL, size, driver, device, event_idx);
            }
        }
    }

    fn set_guest_page_size(&mut self, bytes: u32) {
        self.mmio.set_guest_page_size(bytes);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.mmio.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        if let (Some(set), Ok(size)) = (self.set.get_mut(usize::from(queue)), u16::try_from(size)) {
            *set = (size, driver, device);
        }
        self.mmio.queue_set(queue, size, descriptors, driver, device);
    }

    /// Drivers call this before they free their queues' memory. The whole device is reset, which is simpler.
    fn queue_unset(&mut self, _: u16) {
        if self.set.iter().any(|set| set.0 != 0) {
            self.reset();
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.mmio.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(self.slot.pending.swap(0, Ordering::Relaxed))
    }

    fn read_config_generation(&self) -> u32 {
        self.mmio.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.mmio.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.mmio.write_config_space(offset, value)
    }
}

impl Drop for Mmio {
    fn drop(&mut self) {
        self.queue_unset(0);
        self.slot.open.store(0, Ordering::Release);
    }
}
