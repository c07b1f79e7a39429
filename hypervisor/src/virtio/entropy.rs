//! The entropy device (virtio 1.2, section 5.4): random bytes of the host's kernel.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Activation, Broken, Chain, Device, Info, Queue, Stop, Workers};
use crate::host::poll::wait;
use crate::host::random;

/// Bytes at most for one request. The device may return fewer than requested, and the driver then asks again.
const MOST: usize = 4096;

/// An entropy device. It has no state: the bytes come from the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entropy;

impl Device for Entropy {
    fn info(&self) -> Info {
        Info { kind: VIRTIO_ID_RNG, features: 0, queues: 1, queue_size: 64 }
    }

    fn activate(&mut self, mut activation: Activation, workers: &mut Workers) -> io::Result<()> {
        match activation.queue(0) {
            Some(queue) => workers.spawn("pv-rng", move |stop| serve(queue, stop)),
            None => Ok(()),
        }
    }
}

fn serve(mut queue: Queue, stop: &Stop) -> Result<(), Broken> {
    while !stop.is_asked() {
        queue.refuse_kicks()?;
        while let Some(chain) = queue.take()? {
            let written = fill(&queue, &chain)?;
            queue.give_back(chain.head(), written)?;
            if stop.is_asked() {
                break;
            }
        }
        queue.notify()?;
        if !queue.ask_for_kicks()? {
            wait(&[stop.fd(), queue.kick_fd()]).map_err(|_| Broken::Bug)?;
            queue.take_kick();
        }
    }
    Ok(())
}

fn fill(queue: &Queue, chain: &Chain) -> Result<u32, Broken> {
    if !chain.readable().is_empty() {
        return Err(Broken::Request("an entropy request with bytes for the device to read"));
    }
    let mut bytes = [0; MOST];
    let want = usize::try_from(chain.writable_len()).unwrap_or(MOST).min(MOST);
    let part = bytes.get_mut(..want).unwrap_or_default();
    // If there are no bytes, as while the host boots, the driver asks again.
    let got = random::fill(part);
    let written = queue.memory().scatter(chain.writable(), 0, part.get(..got).unwrap_or_default());
    u32::try_from(written).map_err(|_| Broken::Bug)
}

#[cfg(test)]
mod tests {
    use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

    use crate::testing::virtio::{BUFFERS, Bench, MODERN};
    use crate::virtio::entropy::*;

    #[test]
    fn requests_are_filled_and_a_reset_stops_the_device() {
        for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
            let mut bench = Bench::new(Entropy);
            let mut rings = bench.start(features, 1, 4);
            let ring = &mut rings[0];
            for _ in 0..10 {
                bench.put(BUFFERS, &[0; 64]);
                ring.chain(1, &[(BUFFERS, 40, true), (BUFFERS + 48, 8, true)]);
                assert_eq!(bench.run(0, ring), (1, 48));
                let bytes = bench.get(BUFFERS, 64);
                assert!(bytes[..40].iter().any(|&b| b != 0) && bytes[40..48] == [0; 8]);
                assert!(bytes[48..56].iter().any(|&b| b != 0) && bytes[56..] == [0; 8]);
            }
            assert_eq!(bench.slot.status(), 0xf);
            bench.reset();
            assert_eq!(bench.slot.status(), 0);
            let mut rings = bench.start(features, 1, 4);
            rings[0].chain(0, &[(BUFFERS, 8, true)]);
            assert_eq!(bench.run(0, &mut rings[0]), (0, 8));
        }
    }

    #[test]
    fn buffers_that_were_there_before_the_activation_need_no_kick() {
        let mut bench = Bench::new(Entropy);
        let mut ring = crate::testing::virtio::Ring::new(&bench.memory, 0, 4);
        ring.chain(0, &[(BUFFERS, 5000, true)]);
        bench.slot.activate(&bench.memory, MODERN, &[ring.setup]).unwrap();
        let mut used = None;
        bench.interrupts.wait_until(|| {
            used = used.or_else(|| ring.next_used());
            used.is_some()
        });
        assert_eq!(used, Some((0, 4096)), "the most that one request gets");
    }

    #[test]
    fn a_readable_buffer_stops_the_device() {
        let mut bench = Bench::new(Entropy);
        let mut rings = bench.start(0, 1, 4);
        rings[0].chain(0, &[(BUFFERS, 8, false), (BUFFERS, 8, true)]);
        bench.slot.kick(0);
        assert!(matches!(bench.offence(), Broken::Request(_)));
        assert_eq!(bench.slot.status(), 0x4f);
        assert_eq!(rings[0].used_index(), 0);
        bench.reset();
        assert_eq!(bench.slot.status(), 0);
        assert_eq!(bench.start(0, 1, 4).len(), 1, "it can be started again");
    }
}
