//! Stops of all devices, by the names that the user knows.

use std::sync::Arc;

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

use super::slot::Slot;
use super::stop_log::{DeviceStops, Tell};

/// The names of devices, after the options of `run`; each kind is numbered separately.
fn names<'a>(slots: &'a [&Slot]) -> impl Iterator<Item = String> + 'a {
    slots.iter().enumerate().map(|(n, slot)| {
        let kind = slot.info().kind;
        let number = slots.iter().take(n).filter(|other| other.info().kind == kind).count();
        let name = match kind {
            VIRTIO_ID_BLOCK => "disk",
            VIRTIO_ID_NET => "net",
            VIRTIO_ID_RNG => "rng",
            VIRTIO_ID_VSOCK => "vsock",
            VIRTIO_ID_CONSOLE => "console",
            _ => "device",
        };
        match slot.label() {
            Some(label) => format!("{name} {number} ({label})"),
            None => format!("{name} {number}"),
        }
    })
}

/// Sets `tell` to be called for stops of these devices.
pub fn watch(slots: &[&Slot], tell: &Tell) {
    for (slot, name) in slots.iter().zip(names(slots)) {
        slot.link().stops().set_audience(name, Arc::clone(tell));
    }
}

/// The stops of each of these devices.
pub fn report(slots: &[&Slot]) -> Vec<DeviceStops> {
    slots.iter().zip(names(slots)).map(|(slot, name)| slot.link().stops().report(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use crate::testing::virtio::{BUFFERS, Bench};
    use crate::virtio::entropy::Entropy;
    use crate::virtio::stop_log::{MOST, Stopped};
    use crate::virtio::stop_report::*;

    #[test]
    fn a_stop_is_reported_once_with_its_queue_and_counted_until_the_end() {
        let mut bench = Bench::new(Entropy);
        let said = Arc::new(Mutex::new(Vec::new()));
        let list = said.clone();
        watch(
            &[&bench.slot],
            &(Arc::new(move |s: &Stopped<'_>| list.lock().unwrap().push(s.to_string())) as Tell),
        );
        for _ in 0..7 {
            let mut rings = bench.start(0, 1, 4);
            rings[0].chain(0, &[(BUFFERS, 8, false)]);
            bench.slot.kick(0);
            bench.offence();
            bench.reset();
        }
        let line = "virtio rng 0: queue 0: an entropy request with bytes for the device to read; \
                    the device is stopped until the guest resets it";
        assert_eq!(*said.lock().unwrap(), [line; MOST]);
        let last = Some("queue 0: an entropy request with bytes for the device to read".to_owned());
        let device = "rng 0".to_owned();
        assert_eq!(report(&[&bench.slot]), [DeviceStops { device, stops: 7, last, untold: 2 }]);
    }
}
