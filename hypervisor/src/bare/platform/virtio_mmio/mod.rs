//! Virtio devices on a bare kernel's memory bus: virtio-mmio, version 2 (virtio 1.2, section 4.2).
//!
//! A page of registers for each device, from [`BASE`] on, and one of four interrupt lines. Registers are 32 bits
//! wide and ignore accesses of any other width; the configuration space takes any width. The devices themselves are
//! in `crate::virtio`, and the same as for a paravirtual kernel.
//!
//! What may not be done here: waiting for a device. While a reset is in progress the status register shows it, as
//! specified: it reads 0 once the reset is complete.

mod line;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

pub use line::Level;
use line::Line;

use crate::ledger::VirtioRegister;
use crate::machine::device_memory::{DeviceMemory, MemoryError, Region};
use crate::machine::kick::Kick;
use crate::machine::memory::{MachineMemory, PAGE_SIZE};
use crate::virtio::{ActivateError, Broken, Device, Interrupt, MAX_QUEUES, Offence, QueueSetup, Slot};

/// Guest-physical address of the first device's registers.
pub const BASE: u64 = 0xd000_0000;
/// The lines of the interrupt controllers that the devices share, in turn.
pub const LINES: [u8; 4] = [5, 9, 10, 11];

/// "virt" (4.2.2, MagicValue).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Where the configuration space begins in a device's page.
const CONFIG: u64 = 0x100;
/// The bits of the status register that a driver sets; the others are the device's, or reserved (2.1).
const DRIVERS_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

/// The devices on the bus.
#[derive(Default)]
pub struct VirtioMmio {
    devices: Vec<Registers>,
    /// The memory that drivers share with them.
    memory: Option<DeviceMemory>,
}

/// One device's registers.
struct Registers {
    slot: Slot,
    line: Arc<Line>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: [QueueRegisters; MAX_QUEUES],
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    ready: bool,
    setup: QueueSetup,
}

impl VirtioMmio {
    /// Puts devices on the bus of a machine whose vCPU `kick` kicks. They can access all of the guest's memory.
    pub fn new(
        devices: Vec<Box<dyn Device>>,
        memory: &Arc<MachineMemory>,
        kick: &Arc<dyn Kick>,
    ) -> Result<Self, MemoryError> {
        if devices.is_empty() {
            return Ok(Self::default());
        }
        let ram = Region { address: 0, first: memory.guest_base(), frames: memory.guest_frames() };
        let memory = DeviceMemory::new(memory, &[ram])?;
        let put = |device| {
            let line = Arc::new(Line::new(Arc::clone(kick)));
            Registers {
                slot: Slot::new(device, Arc::clone(&line) as Arc<dyn Interrupt>),
                line,
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                queues: [QueueRegisters::default(); MAX_QUEUES],
            }
        };
        Ok(Self { devices: devices.into_iter().map(put).collect(), memory: Some(memory) })
    }

    /// The command-line parameters that announce `count` devices to a kernel, in Linux's syntax.
    pub fn parameters(count: usize) -> String {
        let one = |(n, line): (u64, &u8)| {
            format!("virtio_mmio.device=4K@{:#x}:{line}", BASE.saturating_add(n * PAGE_SIZE))
        };
        let all: Vec<String> = (0u64..).zip(LINES.iter().cycle()).take(count).map(one).collect();
        all.join(" ")
    }

    /// The register at a guest-physical address, if it is in a device's page.
    pub fn register(&self, address: u64) -> Option<VirtioRegister> {
        self.locate(address).map(|(_, offset)| VirtioRegister::at(offset))
    }

    /// The device whose page holds `address`, and the offset in it.
    fn locate(&self, address: u64) -> Option<(usize, u64)> {
        let offset = address.checked_sub(BASE)?;
        let index = usize::try_from(offset / PAGE_SIZE).ok()?;
        (index < self.devices.len()).then_some((index, offset % PAGE_SIZE))
    }

    /// Reads `buf.len()` bytes; false where there is no device.
    pub fn read(&mut self, address: u64, buf: &mut [u8]) -> bool {
        let Some((index, offset)) = self.locate(address) else { return false };
        let Some(device) = self.devices.get_mut(index) else { return false };
        if offset >= CONFIG {
            device.read_config(offset - CONFIG, buf);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(&mut *buf) {
            *word = device.read(VirtioRegister::at(offset)).to_le_bytes();
        } else {
            buf.fill(0);
        }
        true
    }

    /// Writes `bytes`; false where there is no device.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let (Some((index, offset)), Some(memory)) = (self.locate(address), &self.memory) else {
            return false;
        };
        let Some(device) = self.devices.get_mut(index) else { return false };
        if offset >= CONFIG {
            // Beyond its end there is nothing to write.
            let offset = usize::try_from(offset - CONFIG).unwrap_or(usize::MAX);
            device.slot.write_config(offset, bytes);
        } else if let Ok(word) = <[u8; 4]>::try_from(bytes) {
            device.write(VirtioRegister::at(offset), u32::from_le_bytes(word), memory);
        }
        true
    }

    /// The devices, in order.
    pub fn slots(&self) -> Vec<&Slot> {
        self.devices.iter().map(|device| &device.slot).collect()
    }

    /// The interrupt lines that have devices, and what each did since the last call.
    pub fn lines(&self) -> impl Iterator<Item = (u8, Level)> + '_ {
        let level = |n: usize| {
            let sharing = self.devices.iter().skip(n).step_by(LINES.len());
            sharing.map(|device| device.line.sample()).max().unwrap_or_default()
        };
        LINES.iter().enumerate().take(self.devices.len()).map(move |(n, &line)| (line, level(n)))
    }
}

/// The half of a 64-bit value that a selector chooses.
fn half(value: u64, high: bool) -> u32 {
    let shifted = if high { value >> 32 } else { value };
    (shifted & 0xffff_ffff) as u32
}

fn set_half(value: &mut u64, high: bool, half: u32) {
    let (kept, put) = if high { (0xffff_ffff, 32) } else { (0xffff_ffff << 32, 0) };
    *value = *value & kept | u64::from(half) << put;
}

impl Registers {
    fn queue(&self) -> Option<&QueueRegisters> {
        let index = usize::try_from(self.queue_sel).ok()?;
        self.queues.get(index).filter(|_| index < usize::from(self.slot.info().queues))
    }

    /// The selected queue, while it may be changed: before it is ready and the device is active.
    fn open_queue(&mut self) -> Option<&mut QueueSetup> {
        if self.slot.is_active() || self.queue()?.ready {
            return None;
        }
        let index = usize::try_from(self.queue_sel).ok()?;
        self.queues.get_mut(index).map(|q| &mut q.setup)
    }

    fn read_config(&self, offset: u64, buf: &mut [u8]) {
        let (config, _) = self.slot.link().config();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.bytes().iter().copied().skip(skip).chain(std::iter::repeat(0));
        buf.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    }

    fn read(&mut self, register: VirtioRegister) -> u32 {
        use VirtioRegister::*;
        match register {
            MagicValue => MAGIC,
            Version => VERSION,
            DeviceId => self.slot.info().kind,
            VendorId => u32::from_le_bytes(*b"PVNE"),
            DeviceFeatures if self.device_features_sel < 2 => {
                half(self.slot.info().features, self.device_features_sel == 1)
            }
            QueueNumMax => self.queue().map_or(0, |_| self.slot.info().queue_size.into()),
            QueueReady => self.queue().map_or(0, |q| q.ready.into()),
            InterruptStatus => self.line.status(),
            Status => self.read_status(),
            ConfigGeneration => self.slot.link().config().1,
            // No region has a length, or an address (4.2.2).
            SharedMemory => u32::MAX,
            _ => 0,
        }
    }

    fn read_status(&mut self) -> u32 {
        if self.status == 0 {
            return self.finish_reset();
        }
        let broken = self.slot.link().needs_reset();
        self.status | if broken { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
    }

    /// Continues a reset: returns 0 when it is complete, else the status of the device that is still active.
    fn finish_reset(&mut self) -> u32 {
        if !self.slot.reset() {
            return self.slot.status();
        }
        self.line.clear();
        (self.driver_features, self.queues) = (0, [QueueRegisters::default(); MAX_QUEUES]);
        0
    }

    fn write(&mut self, register: VirtioRegister, value: u32, memory: &DeviceMemory) {
        use VirtioRegister::*;
        match register {
            DeviceFeaturesSel => self.device_features_sel = value,
            DriverFeaturesSel => self.driver_features_sel = value,
            // What was accepted stays (3.1.1, step 5).
            DriverFeatures if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 => {}
            DriverFeatures if self.driver_features_sel < 2 => {
                set_half(&mut self.driver_features, self.driver_features_sel == 1, value);
            }
            QueueSel => self.queue_sel = value,
            QueueNotify => self.slot.kick(u16::try_from(value).unwrap_or(u16::MAX)),
            InterruptAck => self.line.acknowledge(value),
            Status => self.write_status(value, memory),
            QueueReady => self.set_ready(value == 1),
            _ => self.write_queue(register, value),
        }
    }

    fn write_queue(&mut self, register: VirtioRegister, value: u32) {
        use VirtioRegister::*;
        let Some(queue) = self.open_queue() else { return };
        match register {
            // A size that does not fit in 16 bits is invalid; the activation refuses this one.
            QueueNum => queue.size = u16::try_from(value).unwrap_or(u16::MAX),
            QueueDescLow => set_half(&mut queue.descriptors, false, value),
            QueueDescHigh => set_half(&mut queue.descriptors, true, value),
            QueueDriverLow => set_half(&mut queue.driver, false, value),
            QueueDriverHigh => set_half(&mut queue.driver, true, value),
            QueueDeviceLow => set_half(&mut queue.device, false, value),
            QueueDeviceHigh => set_half(&mut queue.device, true, value),
            _ => {}
        }
    }

    fn set_ready(&mut self, ready: bool) {
        let known = self.queue().is_some() && !self.slot.is_active();
        let index = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        if let Some(queue) = self.queues.get_mut(index).filter(|_| known) {
            queue.ready = ready;
        }
    }

    fn write_status(&mut self, value: u32, memory: &DeviceMemory) {
        if value == 0 {
            self.status = 0;
            // An interrupt that the driver did not acknowledge must not outlive the reset, which may take a while.
            self.line.clear();
            self.finish_reset();
            return;
        }
        if self.status == 0 && self.finish_reset() != 0 {
            // The driver did not wait for its reset.
            return;
        }
        // Only a reset clears bits (2.1.1).
        let newly = value & DRIVERS_STATUS & !self.status;
        self.status |= newly;
        if newly & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.slot.accepts(self.driver_features) {
            self.status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if newly & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && let Err(offence) = self.activate(memory)
        {
            self.slot.link().break_down(offence);
        }
    }

    /// Starts the device with the queues that are ready.
    fn activate(&mut self, memory: &DeviceMemory) -> Result<(), Offence> {
        let count = usize::from(self.slot.info().queues);
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return Err(Offence { queue: None, what: Broken::NotNegotiated });
        }
        let setup = |queue| Offence { queue: u16::try_from(queue).ok(), what: Broken::Setup };
        // A slot takes a queue without entries for an unused one, but this driver has enabled it.
        if let Some(empty) = self.queues.iter().position(|q| q.ready && q.setup.size == 0) {
            return Err(setup(empty));
        }
        let used = |q: &QueueRegisters| if q.ready { q.setup } else { QueueSetup::default() };
        let setups: Vec<QueueSetup> = self.queues.iter().take(count).map(used).collect();
        self.slot.activate(memory, self.driver_features, &setups).map_err(|e| match e {
            ActivateError::Queue(queue) => setup(queue),
            ActivateError::Busy | ActivateError::Features => {
                Offence { queue: None, what: Broken::NotNegotiated }
            }
            ActivateError::Host(_) => Offence { queue: None, what: Broken::Host },
        })
    }
}
