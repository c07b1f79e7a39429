//! What devices show to drivers, compared with the headers that drivers use.

use std::mem::{offset_of, size_of};

use virtio_bindings::bindings::virtio_config as config;
use virtio_bindings::bindings::virtio_ring as ring;
use virtio_bindings::virtio_blk::virtio_blk_config;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET, VIRTIO_ID_RNG};
use virtio_bindings::virtio_net::virtio_net_config;

use crate::compare::Needs;
use crate::testing::skip::skip;
use crate::testing::virtio::Interrupts;
use crate::virtio::entropy::Entropy;
use crate::virtio::{Device, MAX_CONFIG, Slot};

/// A field of a configuration space.
fn field<const N: usize>(device: &dyn Device, offset: usize) -> [u8; N] {
    device.config()[offset..offset + N].try_into().unwrap()
}

#[test]
fn types_features_and_status_bits() {
    // Virtio 1.2, sections 5, 6 and 2.1, as numbers: this checks the headers, too.
    assert_eq!((VIRTIO_ID_NET, VIRTIO_ID_BLOCK, VIRTIO_ID_RNG), (1, 2, 4));
    let common = 1u64 << ring::VIRTIO_RING_F_INDIRECT_DESC
        | 1 << ring::VIRTIO_RING_F_EVENT_IDX
        | 1 << config::VIRTIO_F_VERSION_1;
    assert_eq!(common, 1 << 28 | 1 << 29 | 1 << 32);
    let slot = Slot::new(Box::new(Entropy), std::sync::Arc::new(Interrupts::default()));
    assert_eq!((slot.info().kind, slot.info().features), (VIRTIO_ID_RNG, common));
    let active = config::VIRTIO_CONFIG_S_ACKNOWLEDGE
        | config::VIRTIO_CONFIG_S_DRIVER
        | config::VIRTIO_CONFIG_S_DRIVER_OK
        | config::VIRTIO_CONFIG_S_FEATURES_OK;
    assert_eq!((active, config::VIRTIO_CONFIG_S_NEEDS_RESET, Slot::ACTIVE), (0xf, 0x40, 0xf));
}

#[test]
fn a_disks_configuration_space() {
    let Ok(disk) = Needs::Disk.provide() else { return skip("disk", "there is no room for one") };
    let disk = &*disk[0];
    assert_eq!(disk.info().kind, VIRTIO_ID_BLOCK);
    let capacity = offset_of!(virtio_blk_config, capacity);
    assert_eq!(u64::from_le_bytes(field(disk, capacity)), (16 << 20) / 512);
    assert_eq!(u32::from_le_bytes(field(disk, offset_of!(virtio_blk_config, blk_size))), 512);
    assert_eq!(u16::from_le_bytes(field(disk, offset_of!(virtio_blk_config, num_queues))), 1);
    let most = u32::from(disk.info().queue_size) - 2;
    assert_eq!(u32::from_le_bytes(field(disk, offset_of!(virtio_blk_config, seg_max))), most);
    assert_eq!(field(disk, offset_of!(virtio_blk_config, physical_block_exp)), [3]);
    assert_eq!(u32::from_le_bytes(field(disk, offset_of!(virtio_blk_config, max_discard_seg))), 1);
    assert_eq!(u32::from_le_bytes(field(disk, offset_of!(virtio_blk_config, max_write_zeroes_seg))), 1);
    let zeroes = offset_of!(virtio_blk_config, write_zeroes_may_unmap);
    assert!((zeroes + 1..=MAX_CONFIG).contains(&disk.config().len()));
}

#[test]
fn a_network_interfaces_configuration_space() {
    let network = Needs::Network.provide().unwrap();
    let network = &*network[0];
    assert_eq!(network.info().kind, VIRTIO_ID_NET);
    assert_eq!(field(network, offset_of!(virtio_net_config, mac)), [0x02, 0, 0, 0, 0x88, 0xb6]);
    assert_eq!(
        u16::from_le_bytes(field(network, offset_of!(virtio_net_config, status))),
        1,
        "the link is up"
    );
}

/// The layout of rings (2.7), on which the queue's arithmetic depends.
#[test]
fn ring_parts() {
    assert_eq!((size_of::<ring::vring_desc>(), size_of::<ring::vring_used_elem>()), (16, 8));
    assert_eq!(offset_of!(ring::vring_desc, len), 8);
    assert_eq!((offset_of!(ring::vring_desc, flags), offset_of!(ring::vring_desc, next)), (12, 14));
    assert_eq!((offset_of!(ring::vring_avail, idx), offset_of!(ring::vring_avail, ring)), (2, 4));
    assert_eq!((offset_of!(ring::vring_used, idx), offset_of!(ring::vring_used, ring)), (2, 4));
}
