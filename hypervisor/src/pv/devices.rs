//! A paravirtual domain's virtio devices: their slots, event channels and memory, and the table that shows them.
//!
//! State and its upkeep; what the guest asks for is checked and done in `hypercall::virtio`. The table is
//! written by the vCPU's thread alone: device threads only ask it to look.

use std::mem::{offset_of, size_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use paravane_abi::event::EvtchnPort;
use paravane_abi::virtio::{
    VIRTIO_MAX_DEVICES, VIRTIO_MAX_QUEUES, VIRTIO_OP_VERSION, VIRTIO_TABLE_MAGIC, VIRTIO_TABLE_OFFSET,
    VirtioEntry, VirtioTable,
};

use super::event::doorbell::Doorbells;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn};
use crate::virtio::{ConfigSpace, Device, Interrupt, Slot};

/// The devices of one domain.
#[derive(Default)]
pub struct PvDevices {
    list: Vec<PvDevice>,
    bells: Option<Arc<Doorbells>>,
    table: Maddr,
}

/// A device, and what an activation gave it.
pub struct PvDevice {
    /// The device.
    pub slot: Slot,
    /// Its event channels.
    pub ports: Arc<Ports>,
    /// Runs of frames that are held as writable memory for it: the first, and how many.
    pub held: Vec<(Mfn, u64)>,
}

/// The event channels of an active device; port 0 stands for no channel.
pub struct Ports {
    queues: [AtomicU32; VIRTIO_MAX_QUEUES],
    config: AtomicU32,
    /// The vCPU's thread has news of this device to publish.
    news: AtomicBool,
    bells: Arc<Doorbells>,
}

impl Ports {
    fn new(bells: Arc<Doorbells>) -> Self {
        Self { queues: Default::default(), config: AtomicU32::new(0), news: AtomicBool::new(false), bells }
    }
    /// Sets the ports of an activation; none for a device that is not active.
    pub fn set(&self, queues: &[EvtchnPort], config: EvtchnPort) {
        for (index, port) in self.queues.iter().enumerate() {
            port.store(queues.get(index).copied().unwrap_or(0), Ordering::Release);
        }
        self.config.store(config, Ordering::Release);
    }
    /// All ports that are set.
    pub fn all(&self) -> impl Iterator<Item = EvtchnPort> + '_ {
        let ports = self.queues.iter().chain([&self.config]);
        ports.map(|port| port.load(Ordering::Acquire)).filter(|&port| port != 0)
    }
    /// The port of the configuration and status; 0 none.
    pub fn config(&self) -> EvtchnPort {
        self.config.load(Ordering::Acquire)
    }
}

impl Interrupt for Ports {
    fn queue(&self, queue: u16) {
        let port = self.queues.get(usize::from(queue)).map_or(0, |port| port.load(Ordering::Acquire));
        if port != 0 {
            // A port that an activation allocated has its bits.
            let _ = self.bells.raise(port, None);
        }
    }
    /// The table is brought up to date before the port becomes pending, so the vCPU's thread does both.
    fn config(&self) {
        self.news.store(true, Ordering::Release);
        self.bells.call();
    }
}

impl PvDevices {
    /// The devices of a domain whose vCPUs have these `bells`; those past the most that there can be are dropped.
    pub fn new(devices: Vec<Box<dyn Device>>, bells: &Arc<Doorbells>) -> Self {
        let table = Maddr(bells.shared_info.0 + VIRTIO_TABLE_OFFSET as u64);
        if devices.is_empty() {
            return Self { list: Vec::new(), bells: None, table };
        }
        let put = |device| {
            let ports = Arc::new(Ports::new(Arc::clone(bells)));
            let slot = Slot::new(device, Arc::clone(&ports) as Arc<dyn Interrupt>);
            PvDevice { slot, ports, held: Vec::new() }
        };
        let list = devices.into_iter().take(VIRTIO_MAX_DEVICES).map(put).collect();
        Self { list, bells: Some(Arc::clone(bells)), table }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }
    /// Whether the domain has no devices.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    /// A device.
    pub fn get(&self, id: u32) -> Option<&PvDevice> {
        self.list.get(usize::try_from(id).ok()?)
    }
    /// A device, to change it.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut PvDevice> {
        self.list.get_mut(usize::try_from(id).ok()?)
    }
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &PvDevice> {
        self.list.iter()
    }

    /// Tells a device that a queue has buffers.
    pub fn kick(&self, device: u8, queue: u8) {
        if let Some(device) = self.get(device.into()) {
            device.slot.kick(queue.into());
        }
    }
    /// Whether a device wants to be looked at.
    pub fn has_news(&self) -> bool {
        self.bells.as_ref().is_some_and(|bells| bells.was_called())
    }
    /// The device that has news, from the `from`th on; its news are then told.
    pub fn next_news(&self, from: u32) -> Option<u32> {
        (from..)
            .zip(self.list.iter().skip(usize::try_from(from).ok()?))
            .find_map(|(id, device)| device.ports.news.swap(false, Ordering::AcqRel).then_some(id))
    }

    /// Writes the whole table: at the domain's start.
    pub fn publish_all(&self, memory: &MachineMemory) -> Result<(), BadMachineAddress> {
        memory.write_obj(self.at(offset_of!(VirtioTable, magic)), &VIRTIO_TABLE_MAGIC)?;
        memory.write_obj(self.at(offset_of!(VirtioTable, version)), &VIRTIO_OP_VERSION)?;
        let count = u16::try_from(self.list.len()).unwrap_or(u16::MAX);
        memory.write_obj(self.at(offset_of!(VirtioTable, count)), &count)?;
        (0..u32::from(count)).try_for_each(|id| self.publish(memory, id))
    }

    /// Writes a device's entry. The guest sees a change of the configuration between an odd generation and the
    /// next even one.
    pub fn publish(&self, memory: &MachineMemory, id: u32) -> Result<(), BadMachineAddress> {
        let (Some(device), Ok(index)) = (self.get(id), usize::try_from(id)) else { return Ok(()) };
        let entry = device.entry();
        let at = self.at(offset_of!(VirtioTable, devices) + index * size_of::<VirtioEntry>());
        let generation = Maddr(at.0 + offset_of!(VirtioEntry, generation) as u64);
        memory.write_obj(generation, &entry.generation.wrapping_sub(1))?;
        std::sync::atomic::fence(Ordering::SeqCst);
        memory.write_obj(at, &VirtioEntry { generation: entry.generation.wrapping_sub(1), ..entry })?;
        std::sync::atomic::fence(Ordering::SeqCst);
        memory.write_obj(generation, &entry.generation)
    }

    fn at(&self, field: usize) -> Maddr {
        Maddr(self.table.0 + field as u64)
    }
}

impl PvDevice {
    /// The configuration space and its generation, which belong together.
    pub fn config(&self) -> (ConfigSpace, u32) {
        let (config, changes) = self.slot.link().config();
        (config, changes.wrapping_mul(2))
    }
    /// What the table says of it.
    pub fn entry(&self) -> VirtioEntry {
        let (info, (config, generation)) = (self.slot.info(), self.config());
        VirtioEntry {
            kind: info.kind,
            queues: info.queues,
            queue_size: info.queue_size,
            features: info.features,
            generation,
            status: self.slot.status(),
            config_len: u32::try_from(config.bytes().len()).unwrap_or(0),
            config: config.padded(),
            ..VirtioEntry::default()
        }
    }
}
