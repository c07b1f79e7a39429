//! The device table in the shared page: the devices and their states, without a hypercall.

use core::sync::atomic::{Ordering, fence};

use paravane_abi::virtio::{
    VIRTIO_MAX_CONFIG, VIRTIO_MAX_DEVICES, VIRTIO_MAX_QUEUES, VIRTIO_OP_VERSION, VIRTIO_TABLE_MAGIC,
    VirtioEntry, VirtioTable,
};

use crate::shared::SHARED;

/// How often a configuration that keeps changing is read again before the last copy is used.
const PATIENCE: u32 = 1 << 16;

/// A device of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    id: u32,
    kind: u32,
    queues: u16,
    queue_size: u16,
    features: u64,
}

/// Reads one field once: the host writes some of them while the guest runs.
macro_rules! read {
    ($pointer:expr, $field:ident) => {{
        let pointer: *const _ = $pointer;
        // SAFETY: the pointer is to the table in the shared page, which is always mapped; plain data, any value is
        // valid.
        unsafe { (&raw const (*pointer).$field).read_volatile() }
    }};
}

/// The devices that the host offers: none if there is no table, or a table of another version.
pub fn devices() -> impl Iterator<Item = Device> {
    let table: *const VirtioTable = SHARED.virtio_table();
    let known = read!(table, magic) == VIRTIO_TABLE_MAGIC && read!(table, version) == VIRTIO_OP_VERSION;
    let count = if known { usize::from(read!(table, count)).min(VIRTIO_MAX_DEVICES) } else { 0 };
    (0..count).filter_map(Device::at)
}

impl Device {
    fn at(index: usize) -> Option<Self> {
        let entry = entry(index);
        let device = Self {
            id: u32::try_from(index).ok()?,
            kind: read!(entry, kind),
            queues: read!(entry, queues).min(VIRTIO_MAX_QUEUES as u16),
            queue_size: read!(entry, queue_size),
            features: read!(entry, features),
        };
        (device.kind != 0).then_some(device)
    }

    /// The device's number in hypercalls.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Its type (virtio 1.2, section 5): 1 network, 2 block, 3 console, 4 entropy, 19 socket.
    pub const fn kind(&self) -> u32 {
        self.kind
    }

    /// How many queues it has.
    pub const fn queues(&self) -> u16 {
        self.queues
    }

    /// The most entries that each queue can have.
    pub const fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// The features that it offers.
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// Its status (virtio 1.2, section 2.1) at this moment.
    pub fn status(&self) -> u32 {
        read!(self.entry(), status)
    }

    /// The generation of the configuration, which changes with each change of it. Waits for the end of a change.
    pub fn generation(&self) -> u32 {
        let mut generation = read!(self.entry(), generation);
        for _ in 0..PATIENCE {
            if generation & 1 == 0 {
                break;
            }
            core::hint::spin_loop();
            generation = read!(self.entry(), generation);
        }
        fence(Ordering::Acquire);
        generation
    }

    /// Copies the configuration space from `offset` on, all of it from one generation. False if the space is shorter.
    pub fn read_config(&self, offset: usize, into: &mut [u8]) -> bool {
        for _ in 0..PATIENCE {
            let before = self.generation();
            if !self.copy_config(offset, into) {
                return false;
            }
            fence(Ordering::Acquire);
            if read!(self.entry(), generation) == before {
                break;
            }
        }
        true
    }

    /// As [`read_config`](Self::read_config), possibly from several generations.
    pub(super) fn copy_config(&self, offset: usize, into: &mut [u8]) -> bool {
        let len = (read!(self.entry(), config_len) as usize).min(VIRTIO_MAX_CONFIG);
        let Some(part) = offset.checked_add(into.len()).filter(|end| *end <= len).map(|end| offset..end)
        else {
            return false;
        };
        let config = read!(self.entry(), config);
        config.get(part).is_some_and(|bytes| {
            into.copy_from_slice(bytes);
            true
        })
    }

    fn entry(&self) -> *const VirtioEntry {
        entry(self.id as usize)
    }
}

/// The address of a device's entry; that of the last entry for a number past it.
fn entry(index: usize) -> *const VirtioEntry {
    let table = SHARED.virtio_table();
    // SAFETY: in bounds of the table's array.
    unsafe { (&raw const (*table).devices).cast::<VirtioEntry>().add(index.min(VIRTIO_MAX_DEVICES - 1)) }
}
