use super::*;

#[test]
fn devices_are_where_the_command_line_says() {
    let line = "bench=x virtio_mmio.device=4K@0xd0000000:5 y virtio_mmio.device=4K@0xd0001000:9:3 \
                virtio_mmio.device=4K@d0000000:5 virtio_mmio.device=4K@0xd0000001:5 virtio_mmio.device= \
                virtio_mmio.device=4K@0xd0000000:2 virtio_mmio.device=4K@0xd0000000 virtio_mmio.device=4K@0x1:5";
    let at = |address, irq| MmioDevice { address, irq };
    assert!(MmioDevices::of(line).eq([at(0xd000_0000, 5), at(0xd000_1000, 9)]));
}

#[test]
fn the_command_line_names_one_purpose() {
    assert_eq!(Purpose::from_cmdline(""), Purpose::Shell);
    assert_eq!(Purpose::from_cmdline("quiet root=/dev/vda"), Purpose::Shell);
    assert_eq!(Purpose::from_cmdline("quiet bench=map-512 test=spin"), Purpose::Bench("map-512"));
    assert_eq!(Purpose::from_cmdline("test=panic"), Purpose::Test("panic"));
    assert_eq!(Purpose::from_cmdline("bench="), Purpose::Bench(""));
    assert_eq!(Purpose::from_cmdline("ip=dhcp serve bench=x"), Purpose::Serve);
    assert_eq!(Purpose::from_cmdline("serve=x server"), Purpose::Shell);
}

#[test]
fn numbers_have_a_default() {
    assert_eq!(number("test=x blocks=7 seed=q", "blocks", 1), 7);
    assert_eq!(number("test=x blocks=7 seed=q", "seed", 3), 3);
    assert_eq!(number("subblocks=7", "blocks", 2), 2);
    assert_eq!((text("ip=dhcp x", "ip"), text("zip=1", "ip")), (Some("dhcp"), None));
}
