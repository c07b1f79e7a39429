//! Virtio devices on a bare kernel's memory bus: virtio-mmio, version 2 (virtio 1.2, section 4.2).
//!
//! A page of registers for each device, from [`BASE`] on, and one of four interrupt lines. Registers are 32 bits
//! wide and take nothing else; the configuration space takes any width. What the devices do is
//! `crate::device`'s, the same as for a paravirtual kernel.
//!
//! What may not be done here: waiting for a device. A reset that takes time shows in the status register, as the
//! specification has it: it reads 0 once the device has let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

use crate::device::{Device, DeviceMemory, Interrupt, MAX_QUEUES, MemoryError, QueueSetup, Region, Slot};
use crate::engine::Kick;
use crate::ledger::VirtioRegister;
use crate::memory::{MachineMemory, PAGE_SIZE};

/// Guest-physical address of the first device's registers.
pub const BASE: u64 = 0xd000_0000;
/// The lines of the interrupt controllers that the devices share, in turn.
pub const LINES: [u8; 4] = [5, 9, 10, 11];

/// "virt" (4.2.2, MagicValue).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Where the configuration space begins in a device's page.
const CONFIG: u64 = 0x100;
const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGED: u32 = 1 << 1;

/// The devices on the bus.
#[derive(Default)]
pub struct VirtioMmio {
    devices: Vec<Registers>,
    /// What their drivers share with them.
    memory: Option<DeviceMemory>,
}

/// What a device asks of the CPU: the interrupt status register, which a worker sets and the driver clears.
struct Line {
    status: AtomicU32,
    kick: Arc<dyn Kick>,
}

impl Line {
    fn raise(&self, cause: u32) {
        // A line that was high for this already has had its edge, or will when the vCPU looks.
        if self.status.fetch_or(cause, Ordering::AcqRel) & cause == 0 {
            self.kick.kick();
        }
    }
}

impl Interrupt for Line {
    fn queue(&self, _: u16) {
        self.raise(USED_BUFFER);
    }
    fn config(&self) {
        self.raise(CONFIG_CHANGED);
    }
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
    /// Puts devices on the bus of a machine whose vCPU `kick` kicks. Their memory is all of the guest's.
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
            let line = Arc::new(Line { status: AtomicU32::new(0), kick: Arc::clone(kick) });
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

    /// What tells a kernel of `count` devices on its command line, as Linux reads it.
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
            // Outside of it there is nothing to change.
            let offset = usize::try_from(offset - CONFIG).unwrap_or(usize::MAX);
            device.slot.write_config(offset, bytes);
        } else if let Ok(word) = <[u8; 4]>::try_from(bytes) {
            device.write(VirtioRegister::at(offset), u32::from_le_bytes(word), memory);
        }
        true
    }

    /// The interrupt lines that have devices, and the level of each.
    pub fn lines(&self) -> impl Iterator<Item = (u8, bool)> + '_ {
        let high = |n: usize| {
            let sharing = self.devices.iter().skip(n).step_by(LINES.len());
            sharing.into_iter().any(|d| d.line.status.load(Ordering::Acquire) != 0)
        };
        LINES.iter().enumerate().take(self.devices.len()).map(move |(n, &line)| (line, high(n)))
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
            InterruptStatus => self.line.status.load(Ordering::Acquire),
            Status => self.read_status(),
            ConfigGeneration => self.slot.link().config().1,
            _ => 0,
        }
    }

    fn read_status(&mut self) -> u32 {
        if self.status == 0 {
            return self.finish_reset();
        }
        let broken = self.slot.is_active() && self.slot.link().needs_reset();
        self.status | if broken { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
    }

    /// Goes on with a reset: 0 when it is over, else the status of a device that works still.
    fn finish_reset(&mut self) -> u32 {
        if !self.slot.reset() {
            return self.slot.status();
        }
        self.line.status.store(0, Ordering::Release);
        (self.driver_features, self.queues) = (0, [QueueRegisters::default(); MAX_QUEUES]);
        0
    }

    fn write(&mut self, register: VirtioRegister, value: u32, memory: &DeviceMemory) {
        use VirtioRegister::*;
        match register {
            DeviceFeaturesSel => self.device_features_sel = value,
            DriverFeaturesSel => self.driver_features_sel = value,
            DriverFeatures if self.driver_features_sel < 2 => {
                set_half(&mut self.driver_features, self.driver_features_sel == 1, value);
            }
            QueueSel => self.queue_sel = value,
            QueueNotify => self.slot.kick(u16::try_from(value).unwrap_or(u16::MAX)),
            InterruptAck => {
                self.line.status.fetch_and(!value, Ordering::AcqRel);
            }
            Status => self.write_status(value, memory),
            QueueReady => self.set_ready(value == 1),
            _ => self.write_queue(register, value),
        }
    }

    fn write_queue(&mut self, register: VirtioRegister, value: u32) {
        use VirtioRegister::*;
        let Some(queue) = self.open_queue() else { return };
        match register {
            // A size past what 16 bits hold is no size: the activation will say so.
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
            self.finish_reset();
            return;
        }
        if self.status == 0 && self.finish_reset() != 0 {
            // The driver did not wait for its reset.
            return;
        }
        let newly = value & !self.status;
        self.status = value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        if newly & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.slot.accepts(self.driver_features) {
            self.status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if newly & VIRTIO_CONFIG_S_DRIVER_OK != 0 && self.activate(memory).is_none() {
            self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
            self.line.raise(CONFIG_CHANGED);
        }
    }

    /// Starts the device with the queues that are ready; `None` if it cannot be.
    fn activate(&mut self, memory: &DeviceMemory) -> Option<()> {
        let count = usize::from(self.slot.info().queues);
        let used = |q: &QueueRegisters| if q.ready { q.setup } else { QueueSetup::default() };
        let setups: Vec<QueueSetup> = self.queues.iter().take(count).map(used).collect();
        self.slot.activate(memory, self.driver_features, &setups).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::device::entropy::Entropy;
    use crate::memory::{Backing, Maddr};

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

    /// From nothing to a working device, as a driver does it.
    fn set_up(bus: &mut VirtioMmio) {
        for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            store(bus, offset, value);
        }
        assert_eq!(load(bus, 0x70), 11, "features accepted");
        store(bus, 0x30, 0);
        assert_eq!((load(bus, 0x44), load(bus, 0x34)), (0, 64));
        for (offset, value) in
            [(0x38, 4), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1), (0x70, 15)]
        {
            store(bus, offset, value);
        }
    }

    fn wait_for_line(bus: &VirtioMmio, kicks: &Kicks) {
        let mut held = kicks.0.lock().unwrap();
        while !bus.lines().any(|(_, high)| high) {
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
        assert_eq!(bus.lines().collect::<Vec<_>>(), [(5, true), (9, false), (10, false), (11, false)]);
        assert_eq!(load(&mut bus, 0x60), 1);
        store(&mut bus, 0x64, 1);
        assert!(!bus.lines().any(|(_, high)| high));
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

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever a driver writes where, nothing panics, and no byte outside of its memory changes.
        #[test]
        fn any_register_traffic(
            ops in prop::collection::vec((0u64..0x120, prop_oneof![0u32..16, any::<u32>()], any::<bool>()), 1..60),
            rings in prop::collection::vec(any::<u16>(), 64),
        ) {
            let (mut bus, memory, _) = bus(1);
            memory.write_obj(Maddr(0), &[0xa5u8; 8192]).unwrap();
            let view = bus.memory.clone().unwrap();
            for (n, word) in rings.iter().enumerate() {
                view.view().write_obj(*word, GuestAddress(0x1000 + n as u64 * 2)).unwrap();
            }
            set_up(&mut bus);
            for (offset, value, write) in ops {
                let offset = offset & !3;
                if write { store(&mut bus, offset, value) } else { load(&mut bus, offset); }
            }
            drop(bus);
            prop_assert_eq!(memory.read_obj::<[u8; 8192]>(Maddr(0)), Ok([0xa5; 8192]));
        }
    }
}
