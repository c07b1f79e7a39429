//! A driver that does anything in any order, against devices of every kind: nothing panics, hangs or is kept.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::event::{EVTCHNOP_RESET, EVTCHNOP_UNMASK};
use paravane_abi::memory::{XENMEM_DECREASE_RESERVATION, XenMemoryReservation};
use proptest::prelude::*;

use super::*;
use crate::testing::virtio::{cases, one_of_each};
use crate::virtio::Broken;

/// Pages that devices see, from this one on; rings in the first ones, two of a device in each.
const SHARED: u64 = BUFFER + 8;
const PAGES: u64 = 16;
/// A page that no device sees.
const CANARY: u64 = SHARED + PAGES;
const SIZE: u16 = 8;

/// Words of a ring's descriptors that mean something more often than not.
fn descriptor() -> impl Strategy<Value = [u64; 2]> {
    let address = prop_oneof![8 => (0..PAGES * 4096).prop_map(|n| AT + n), 1 => any::<u64>()];
    let len = prop_oneof![6 => 0u64..4096, 2 => (0u64..17).prop_map(|n| n * 16), 1 => any::<u32>().prop_map(u64::from)];
    let next = prop_oneof![8 => 0u64..10, 1 => any::<u16>().prop_map(u64::from)];
    let flags = prop_oneof![8 => 0u64..4, 1 => 0u64..8, 1 => any::<u16>().prop_map(u64::from)];
    (address, len, flags, next)
        .prop_map(|(address, len, flags, next)| [address, len | flags << 32 | next << 48])
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Activate { device: u32, features: u64, queues: u32, size: u16, spoil: u64 },
    Reset(u32),
    Send(u32),
    Close(u32),
    ResetEvents,
    Unmask(u32),
    Publish { page: u64, half: u64, index: u16 },
    Describe { page: u64, half: u64, n: u64, words: [u64; 2] },
    Config { device: u32, write: bool, offset: u32, len: u32 },
    Ask { op: u32, device: u32 },
    GiveBack(u64),
    Service,
}

fn op() -> impl Strategy<Value = Op> {
    let device = || prop_oneof![16 => 0u32..5, 1 => any::<u32>()];
    let (page, half) = (|| 0..PAGES, || 0u64..2);
    let port = || prop_oneof![8 => 1u32..20, 1 => any::<u32>()];
    let few = |most: u32| prop_oneof![8 => 0..most, 1 => any::<u32>()];
    prop_oneof![
        4 => (device(), prop_oneof![Just(u64::MAX), any::<u64>()], 0u32..4, 0u16..4, prop_oneof![6 => Just(0), 1 => any::<u64>()])
            .prop_map(|(device, features, queues, size, spoil)| Op::Activate { device, features, queues, size, spoil }),
        2 => device().prop_map(Op::Reset),
        4 => port().prop_map(Op::Send),
        1 => port().prop_map(Op::Close),
        1 => Just(Op::ResetEvents),
        1 => port().prop_map(Op::Unmask),
        4 => (page(), half(), prop_oneof![8 => 0u16..12, 1 => any::<u16>()])
            .prop_map(|(page, half, index)| Op::Publish { page, half, index }),
        3 => (page(), half(), 0u64..8, descriptor())
            .prop_map(|(page, half, n, words)| Op::Describe { page, half, n, words }),
        1 => (device(), any::<bool>(), few(80), few(80))
            .prop_map(|(device, write, offset, len)| Op::Config { device, write, offset, len }),
        1 => (few(9), device()).prop_map(|(op, device)| Op::Ask { op, device }),
        1 => page().prop_map(Op::GiveBack),
        2 => Just(Op::Service),
    ]
}

/// Where a ring is: half a page, of which its descriptors have the first 128 bytes.
fn ring(page: u64, half: u64) -> VirtioQueue {
    let base = AT + page * 4096 + half * 0x800;
    VirtioQueue {
        size: SIZE,
        descriptors: base,
        driver: base + 0x100,
        device: base + 0x200,
        ..Default::default()
    }
}

impl Machine {
    fn any_activation(&mut self, device: u32, features: u64, queues: u32, size: u16, spoil: u64) {
        let Some(info) = self.t.virtio.get(device).map(|d| *d.slot.info()) else { return };
        let mut activate = VirtioActivate {
            device,
            kind: info.kind,
            features: info.features & features | MODERN,
            queues: va(LISTS),
            regions: va(LISTS) + 0x800,
            queue_count: queues,
            region_count: 2,
            ..Default::default()
        };
        let mut rings: Vec<VirtioQueue> =
            (0..4).map(|n| ring(u64::from(device) * 2 + n / 2, n % 2)).collect();
        rings.iter_mut().for_each(|ring| ring.size = SIZE >> size);
        // Two runs side by side, the second's frames before the first's.
        let region = |first: u64, page: u64| VirtioRegion {
            address: AT + first * 4096,
            mfn: self.t.mfn(SHARED + page),
            frames: PAGES / 2,
        };
        let mut regions = [region(0, PAGES / 2), region(PAGES / 2, 0)];
        match spoil % 8 {
            1 => activate.queue_count = (spoil >> 32) as u32,
            2 => activate.region_count = (spoil >> 32) as u32,
            3 => rings[0].driver = spoil,
            4 => rings[1].device = spoil,
            5 => regions[0].mfn = spoil >> 40,
            6 => regions[1].address = spoil,
            7 => activate.kind = (spoil >> 60) as u32,
            _ => {}
        }
        for (n, ring) in (0u64..).zip(&rings) {
            self.t.write_at(va(LISTS) + n * 32, ring).unwrap();
        }
        self.t.write_at(va(LISTS) + 0x800, &regions).unwrap();
        let before = self.t.virtio.get(device).map(|d| d.slot.is_active());
        let activated = self.virtio(VIRTIOP_ACTIVATE, activate);
        assert!(before != Some(true) || activated.is_err(), "activated twice");
    }

    fn perform(&mut self, op: Op) {
        // The halves of the two runs have changed places.
        let shared = |page: u64| SHARED + (page + PAGES / 2) % PAGES;
        // What is refused is refused; what must not happen is looked for in the end.
        let event = |m: &mut Self, op, port| {
            let _ = m.t.op(nr::EVENT_CHANNEL_OP, op, EvtchnSend { port });
        };
        match op {
            Op::Activate { device, features, queues, size, spoil } => {
                self.any_activation(device, features, queues, size, spoil);
            }
            Op::Reset(device) => {
                let _ = self.virtio(VIRTIOP_RESET, VirtioDevice { device });
            }
            Op::Send(port) => event(self, EVTCHNOP_SEND, port),
            Op::Close(port) => {
                // The console's is not what this is about.
                if port != 1 {
                    event(self, EVTCHNOP_CLOSE, port);
                }
            }
            Op::ResetEvents => event(self, EVTCHNOP_RESET, DOMID_SELF.into()),
            Op::Unmask(port) => event(self, EVTCHNOP_UNMASK, port),
            Op::Publish { page, half, index } => {
                let word = (half * 0x800 + 0x100) / 8;
                let heads = self.t.peek(shared(page), word) & 0xffff_ffff_0000_0000;
                self.t.poke(shared(page), word, heads | u64::from(index) << 16);
            }
            Op::Describe { page, half, n, words } => {
                let at = half * 0x100 + n * 2;
                words
                    .into_iter()
                    .enumerate()
                    .for_each(|(i, word)| self.t.poke(shared(page), at + i as u64, word));
                self.t.poke(shared(page), half * 0x100 + 0x21 + n / 4, n * 0x0001_0000_0001_0000);
            }
            Op::Config { device, write, offset, len } => {
                let op = if write { VIRTIOP_CONFIG_WRITE } else { VIRTIOP_CONFIG_READ };
                let argument = VirtioConfig { device, offset, len, buffer: va(LISTS), ..Default::default() };
                let _ = self.virtio(op, argument);
            }
            // An activation of whatever the argument's bytes are among them.
            Op::Ask { op, device } => {
                let _ = self.virtio(op, VirtioDescribe { device, ..Default::default() });
            }
            Op::GiveBack(page) => {
                self.t.poke(LISTS, 0, self.t.mfn(SHARED + page));
                let one = XenMemoryReservation {
                    extent_start: va(LISTS),
                    nr_extents: 1,
                    domid: DOMID_SELF,
                    ..Default::default()
                };
                let given = self.t.op(nr::MEMORY_OP, XENMEM_DECREASE_RESERVATION, one).map(|r| r.0);
                assert_eq!(given, Ok(0), "it is mapped");
            }
            Op::Service => service(&mut self.t.cx()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(512), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_driver(
        descriptors in prop::collection::vec(descriptor(), 8),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let mut m = machine_with(one_of_each());
        for page in 0..PAGES {
            for (n, words) in (0u64..).zip(&descriptors) {
                for half in 0..2 {
                    m.perform(Op::Describe { page, half, n: (n + page) % 8, words: *words });
                }
            }
        }
        (0..512).for_each(|n| m.t.poke(CANARY, n, 0x5a5a << (n % 48)));
        ops.into_iter().for_each(|op| m.perform(op));
        for device in 0..m.t.virtio.len() {
            m.reset_device(device as u32);
            let slot = &m.t.virtio.get(device as u32).unwrap().slot;
            prop_assert_eq!((slot.status(), m.entry(device).status), (0, 0));
            let bug = slot.link().last_offence().is_some_and(|offence| offence.what == Broken::Bug);
            prop_assert!(!bug, "device {}", device);
        }
        prop_assert_eq!(m.t.death(), None);
        for page in 0..PAGES {
            let frame = m.t.mmu.frame(crate::machine::memory::Mfn(m.t.mfn(SHARED + page))).unwrap();
            prop_assert_eq!(frame.refs(), 1, "page {} is mapped and no more", page);
        }
        prop_assert!((CONSOLE_PORT + 1..64).all(|port| m.t.events.send(port).is_err()), "a port was left open");
        prop_assert!((0..512).all(|n| m.t.peek(CANARY, n) == 0x5a5a << (n % 48)));
    }
}
