//! Virtio devices: `paravane_virtio_op(op, arg)`, and the device table in the shared-info page.
//!
//! The only interface of this crate that is not Xen's, whose PV interface has no virtio. `docs/virtio.md` specifies
//! states, errors and ordering. Device types, feature bits, status bits, configuration spaces and rings are those of
//! the Virtual I/O Device specification, version 1.2, and are not repeated here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::shared_info::SharedInfo;

/// The interface's version that this crate describes.
pub const VIRTIO_OP_VERSION: u16 = 1;
/// Devices that a domain can have.
pub const VIRTIO_MAX_DEVICES: usize = 8;
/// Queues that a device can have.
pub const VIRTIO_MAX_QUEUES: usize = 16;
/// Regions in one activation.
pub const VIRTIO_MAX_REGIONS: usize = 64;
/// The most frames of all regions of one activation together: 256 MiB.
pub const VIRTIO_MAX_REGION_FRAMES: u64 = 65536;
/// Bytes of a configuration space.
pub const VIRTIO_MAX_CONFIG: usize = 72;

/// List the devices: [`VirtioList`].
pub const VIRTIOP_LIST: u32 = 0;
/// Describe a device: [`VirtioDescribe`].
pub const VIRTIOP_DESCRIBE: u32 = 1;
/// Negotiate, set up and start a device: [`VirtioActivate`].
pub const VIRTIOP_ACTIVATE: u32 = 2;
/// Read from a configuration space: [`VirtioConfig`].
pub const VIRTIOP_CONFIG_READ: u32 = 3;
/// Write to a configuration space: [`VirtioConfig`].
pub const VIRTIOP_CONFIG_WRITE: u32 = 4;
/// Stop a device and end its access to memory: [`VirtioDevice`]. `EAGAIN`: it is still stopping; call again.
pub const VIRTIOP_RESET: u32 = 5;
/// A device's status: [`VirtioStatus`].
pub const VIRTIOP_STATUS: u32 = 6;

/// Where [`VirtioTable`] is in the shared-info page, past Xen's part of it.
pub const VIRTIO_TABLE_OFFSET: usize = 0xc80;
/// [`VirtioTable::magic`], `PVIO` in memory. Another value: there is no table (Xen leaves zeroes there).
pub const VIRTIO_TABLE_MAGIC: u32 = u32::from_le_bytes(*b"PVIO");

/// What a guest can learn about a device without a hypercall.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioEntry {
    /// OUT: device type (virtio 1.2, section 5); 0 for no device.
    pub kind: u32,
    /// OUT: number of queues.
    pub queues: u16,
    /// OUT: most entries that each queue can have, a power of two.
    pub queue_size: u16,
    /// OUT: features offered.
    pub features: u64,
    /// OUT: incremented before and after each change of `config`; odd during a change.
    pub generation: u32,
    /// OUT: device status (virtio 1.2, section 2.1).
    pub status: u32,
    /// OUT: bytes of `config` that are in use.
    pub config_len: u32,
    /// Padding.
    pub _pad: u32,
    /// OUT: the configuration space.
    pub config: [u8; VIRTIO_MAX_CONFIG],
}

layout!(VirtioEntry: 104 {
    kind @ 0, queues @ 4, queue_size @ 6, features @ 8, generation @ 16, status @ 20, config_len @ 24, config @ 32,
});
default_is_zeroed!(VirtioEntry);

/// The device table, at [`VIRTIO_TABLE_OFFSET`] of the shared-info page. The host keeps it up to date and never reads
/// it.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioTable {
    /// OUT: [`VIRTIO_TABLE_MAGIC`].
    pub magic: u32,
    /// OUT: [`VIRTIO_OP_VERSION`].
    pub version: u16,
    /// OUT: how many entries of `devices` are in use.
    pub count: u16,
    /// Reserved, 0.
    pub _reserved: [u64; 3],
    /// OUT: the devices; a device's index is its id.
    pub devices: [VirtioEntry; VIRTIO_MAX_DEVICES],
}

layout!(VirtioTable: 864 { magic @ 0, version @ 4, count @ 6, devices @ 32 });
default_is_zeroed!(VirtioTable);

const _: () = assert!(VIRTIO_TABLE_OFFSET >= core::mem::size_of::<SharedInfo>());
const _: () = assert!(VIRTIO_TABLE_OFFSET + core::mem::size_of::<VirtioTable>() <= 4096);

/// Argument of [`VIRTIOP_LIST`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioList {
    /// OUT: [`VIRTIO_OP_VERSION`].
    pub version: u32,
    /// IN: entries that `kinds` has room for. OUT: number of devices.
    pub count: u32,
    /// IN: address of a `u32` for each device's type; as many are written as fit.
    pub kinds: u64,
}

layout!(VirtioList: 16 { version @ 0, count @ 4, kinds @ 8 });

/// Argument of [`VIRTIOP_DESCRIBE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioDescribe {
    /// IN: the device.
    pub device: u32,
    /// Padding, 0.
    pub _pad: u32,
    /// OUT: its entry in the table.
    pub entry: VirtioEntry,
}

layout!(VirtioDescribe: 112 { device @ 0, entry @ 8 });

/// One queue of an activation. Addresses are device addresses: see [`VirtioRegion`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioQueue {
    /// IN: entries, a power of two, at most the device's `queue_size`; 0 for a queue that is not used.
    pub size: u16,
    /// Padding, 0.
    pub _pad: u16,
    /// OUT: the event channel for notifications in both directions.
    pub port: u32,
    /// IN: the descriptor area, 16-byte aligned.
    pub descriptors: u64,
    /// IN: the driver area (available ring), 2-byte aligned.
    pub driver: u64,
    /// IN: the device area (used ring), 4-byte aligned.
    pub device: u64,
}

layout!(VirtioQueue: 32 { size @ 0, port @ 4, descriptors @ 8, driver @ 16, device @ 24 });

/// Frames that a device may read and write while it is active, and the addresses by which it knows them.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioRegion {
    /// IN: the first frame's address as the device sees it, page-aligned. Commonly the pseudo-physical one.
    pub address: u64,
    /// IN: the first frame.
    pub mfn: u64,
    /// IN: number of frames, contiguous in both address spaces.
    pub frames: u64,
}

layout!(VirtioRegion: 24 { address @ 0, mfn @ 8, frames @ 16 });

/// Argument of [`VIRTIOP_ACTIVATE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioActivate {
    /// IN: the device.
    pub device: u32,
    /// IN: the type that it must have.
    pub kind: u32,
    /// IN: features that the driver accepts. All must be offered.
    pub features: u64,
    /// IN: address of [`VirtioQueue`]s, written back with their ports.
    pub queues: u64,
    /// IN: address of [`VirtioRegion`]s.
    pub regions: u64,
    /// IN: how many queues.
    pub queue_count: u32,
    /// IN: how many regions.
    pub region_count: u32,
    /// OUT: the event channel of configuration changes and of `DEVICE_NEEDS_RESET`.
    pub config_port: u32,
    /// OUT: device status.
    pub status: u32,
}

layout!(VirtioActivate: 48 {
    device @ 0, kind @ 4, features @ 8, queues @ 16, regions @ 24, queue_count @ 32, region_count @ 36,
    config_port @ 40, status @ 44,
});

/// Argument of [`VIRTIOP_CONFIG_READ`] and [`VIRTIOP_CONFIG_WRITE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioConfig {
    /// IN: the device.
    pub device: u32,
    /// IN: first byte.
    pub offset: u32,
    /// IN: how many bytes.
    pub len: u32,
    /// OUT: the configuration's generation.
    pub generation: u32,
    /// IN: address of the bytes.
    pub buffer: u64,
}

layout!(VirtioConfig: 24 { device @ 0, offset @ 4, len @ 8, generation @ 12, buffer @ 16 });

/// Argument of [`VIRTIOP_RESET`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioDevice {
    /// IN: the device.
    pub device: u32,
}

layout!(VirtioDevice: 4 { device @ 0 });

/// Argument of [`VIRTIOP_STATUS`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioStatus {
    /// IN: the device.
    pub device: u32,
    /// OUT: device status.
    pub status: u32,
    /// OUT: the configuration's generation.
    pub generation: u32,
}

layout!(VirtioStatus: 12 { device @ 0, status @ 4, generation @ 8 });
