//! A kernel with devices: it lists them, and uses those that it knows.
#![no_std]
#![no_main]

use paravane_guest::{Boot, power, println, virtio};

paravane_guest::entry!(main);
paravane_guest::panic_handler!();

fn main(boot: Boot) -> ! {
    my_kernel::start(&boot);
    println!("hello, {} devices", virtio::devices().count());
    for device in virtio::devices() {
        println!("device {}: virtio type {}, {} queues", device.id(), device.kind(), device.queues());
    }
    let mut bytes = [0; 16];
    match my_kernel::random(&boot, &mut bytes) {
        Some(count) => println!("random bytes: {:02x?}", &bytes[..count]),
        None => println!("no entropy device: give me one with --rng"),
    }
    match my_kernel::first_sector(&boot) {
        Some(sector) => println!("the disk begins with {:02x?}", &sector[..16]),
        None => println!("no disk: give me one with --disk FILE"),
    }
    power::power_off()
}
