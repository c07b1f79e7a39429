//! What a guest gets from `paravane_virtio_op`, without a guest.

mod clauses;
mod frames;
mod hostile;
mod largest;

use std::sync::{Arc, Condvar, Mutex};

use paravane_abi::event::{
    EVTCHNOP_CLOSE, EVTCHNOP_SEND, EVTCHNOP_STATUS, EVTCHNSTAT_INTERDOMAIN, EvtchnClose, EvtchnSend,
    EvtchnStatus,
};
use paravane_abi::hypercall as nr;
use paravane_abi::mmu::{MMUEXT_PIN_L1_TABLE, MmuextOp};

use super::*;
use crate::machine::kick::Kick;
use crate::pv::devices::PvDevices;
use crate::pv::domain::CONSOLE_PORT;
use crate::pv::vcpu::VcpuId;
use crate::testing::pv::{FRAMES, FREE, L1, NOWHERE, RO, TestDomain, va};
use crate::virtio::Device;
use crate::virtio::entropy::Entropy;

/// Pages of the test domain: a ring, and a buffer.
const RING: u64 = FREE;
const BUFFER: u64 = FREE + 1;
/// Arguments, out of the way of [`TestDomain::op`].
const LISTS: u64 = FREE + 2;
/// The device address of the ring's page.
const AT: u64 = 0x10_0000;
const RNG: u32 = 4;
const MODERN: u64 = 1 << 32;

/// Counts kicks, and lets a test wait for one.
#[derive(Default)]
struct Kicks {
    count: Mutex<usize>,
    came: Condvar,
}

impl Kick for Kicks {
    fn kick(&self) {
        *self.count.lock().unwrap() += 1;
        self.came.notify_all();
    }
    fn arm(&self, _: u64) {}
}

struct Machine {
    t: TestDomain,
    kicks: Arc<Kicks>,
}

fn machine() -> Machine {
    machine_with(vec![Box::new(Entropy), Box::new(Entropy)])
}

fn domain_of(frames: u64) -> (TestDomain, Arc<Kicks>) {
    let kicks = Arc::new(Kicks::default());
    (TestDomain::with_kicks(frames, vec![kicks.clone()]), kicks)
}

fn machine_with(devices: Vec<Box<dyn Device>>) -> Machine {
    machine_on(domain_of(FRAMES), devices)
}

/// On a domain whose devices kick `kicks`.
fn machine_on((mut t, kicks): (TestDomain, Arc<Kicks>), devices: Vec<Box<dyn Device>>) -> Machine {
    t.virtio = PvDevices::new(devices, &t.bells);
    t.virtio.publish_all(&t.memory).unwrap();
    Machine { t, kicks }
}

impl Machine {
    fn virtio<T>(&mut self, op: u32, argument: T) -> Result<T, Errno>
    where
        T: zerocopy::IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
    {
        self.t.op(nr::PARAVANE_VIRTIO_OP, op, argument).map(|(_, argument)| argument)
    }
    fn entry(&self, id: usize) -> VirtioEntry {
        let table = self.t.upcall().shared_info.0 + VIRTIO_TABLE_OFFSET as u64;
        let table: VirtioTable = self.t.memory.read_obj(crate::machine::memory::Maddr(table)).unwrap();
        assert_eq!((table.magic, table.version), (VIRTIO_TABLE_MAGIC, VIRTIO_OP_VERSION));
        assert_eq!(usize::from(table.count), self.t.virtio.len());
        table.devices[id]
    }
    /// An activation that is right, for a test to spoil.
    fn request(&self) -> (VirtioActivate, VirtioQueue, [VirtioRegion; 2]) {
        let queue = VirtioQueue {
            size: 4,
            descriptors: AT,
            driver: AT + 0x400,
            device: AT + 0x800,
            ..Default::default()
        };
        let region = |address, page| VirtioRegion { address, mfn: self.t.mfn(page), frames: 1 };
        let activate = VirtioActivate {
            device: 0,
            kind: RNG,
            features: MODERN,
            queues: va(LISTS),
            regions: va(LISTS) + 0x100,
            queue_count: 1,
            region_count: 2,
            ..Default::default()
        };
        (activate, queue, [region(AT, RING), region(AT + 0x1000, BUFFER)])
    }
    fn activate(
        &mut self,
        (activate, queue, regions): (VirtioActivate, VirtioQueue, [VirtioRegion; 2]),
    ) -> Result<(VirtioActivate, VirtioQueue), Errno> {
        self.t.write_at(va(LISTS), &queue).unwrap();
        self.t.write_at(va(LISTS) + 0x100, &regions).unwrap();
        let activate = self.virtio(VIRTIOP_ACTIVATE, activate)?;
        Ok((activate, self.t.read_at(va(LISTS)).unwrap()))
    }
    fn activated(&mut self) -> (VirtioActivate, VirtioQueue) {
        let request = self.request();
        self.activate(request).unwrap()
    }
    /// Waits, as a vCPU that blocks, until `done`.
    fn wait_until(&mut self, mut done: impl FnMut(&mut TestDomain) -> bool) {
        let kicks = self.kicks.clone();
        loop {
            self.t.bells.poll(VcpuId::BOOT, &[]);
            let seen = *kicks.count.lock().unwrap();
            service(&mut self.t.cx());
            if done(&mut self.t) {
                return;
            }
            drop(kicks.came.wait_while(kicks.count.lock().unwrap(), |count| *count == seen).unwrap());
        }
    }
    fn pending(&self, port: u32) -> bool {
        self.t.upcall().is_pending(&self.t.memory, port).unwrap()
    }
    fn send(&mut self, port: u32) {
        self.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_SEND, EvtchnSend { port }).unwrap();
    }
    fn reset(&mut self) {
        self.reset_device(0);
    }
    fn reset_device(&mut self, device: u32) {
        self.wait_until(|t| match t.op(nr::PARAVANE_VIRTIO_OP, VIRTIOP_RESET, VirtioDevice { device }) {
            Ok((0, _)) => true,
            other => {
                assert_eq!(other.unwrap_err(), Errno::EAGAIN);
                false
            }
        });
    }
    /// What nothing of a device holds any more.
    fn is_clean(&self) -> bool {
        let free =
            |page| self.t.mmu.frame(crate::machine::memory::Mfn(self.t.mfn(page))).unwrap().refs() == 1;
        let closed = (CONSOLE_PORT + 1..CONSOLE_PORT + 3).all(|port| self.t.events.send(port).is_err());
        free(RING) && free(BUFFER) && closed
    }
}

#[test]
fn devices_are_listed_and_described_by_call_and_in_the_table() {
    let mut m = machine();
    let list =
        m.virtio(VIRTIOP_LIST, VirtioList { count: 9, kinds: va(LISTS), ..Default::default() }).unwrap();
    assert_eq!((list.version, list.count), (1, 2));
    assert_eq!(m.t.read_at::<[u32; 3]>(va(LISTS)), Ok([RNG, RNG, 0]));
    let list = m.virtio(VIRTIOP_LIST, VirtioList { kinds: NOWHERE, ..Default::default() }).unwrap();
    assert_eq!(list.count, 2, "asking for the number needs no room");
    let told = m.virtio(VIRTIOP_DESCRIBE, VirtioDescribe { device: 1, ..Default::default() }).unwrap();
    assert_eq!(told.entry, m.entry(1));
    assert_eq!((told.entry.kind, told.entry.queues, told.entry.status), (RNG, 1, 0));
    assert_ne!(told.entry.features & MODERN, 0);
    for op in [VIRTIOP_DESCRIBE, VIRTIOP_ACTIVATE, VIRTIOP_CONFIG_READ, VIRTIOP_RESET, VIRTIOP_STATUS] {
        let argument = VirtioDescribe { device: 2, ..Default::default() };
        assert_eq!(m.virtio(op, argument).unwrap_err(), Errno::ENODEV, "{op}");
        assert_eq!(m.t.call(nr::PARAVANE_VIRTIO_OP, [op.into(), NOWHERE]), Err(Errno::EFAULT));
    }
    assert_eq!(m.t.call(nr::PARAVANE_VIRTIO_OP, [7, NOWHERE]), Err(Errno::ENOSYS));
}

#[test]
fn one_call_makes_a_device_work() {
    let mut m = machine();
    let (activate, queue) = m.activated();
    assert_eq!((activate.status, m.entry(0).status), (0xf, 0xf));
    let status = m.t.op(
        nr::EVENT_CHANNEL_OP,
        EVTCHNOP_STATUS,
        EvtchnStatus { dom: 0x7ff0, port: queue.port, ..Default::default() },
    );
    let status = status.unwrap().1;
    assert_eq!((status.status, status.u0), (EVTCHNSTAT_INTERDOMAIN, 0));
    let closed = m.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_CLOSE, EvtchnClose { port: queue.port });
    assert_eq!(closed.map(|r| r.0), Err(Errno::EINVAL));
    // A descriptor: 64 bytes of the buffer's page, for the device to write.
    m.t.poke(RING, 0, AT + 0x1000);
    m.t.poke(RING, 1, 64 | 2 << 32);
    m.t.poke(RING, 0x400 / 8, 1 << 16);
    m.send(queue.port);
    m.wait_until(|t| t.upcall().is_pending(&t.memory, queue.port).unwrap());
    assert_eq!(m.t.peek(RING, 0x800 / 8) >> 16, 1, "used");
    assert!((0..8).any(|i| m.t.peek(BUFFER, i) != 0));
    m.reset();
    assert!(m.is_clean() && m.entry(0).status == 0);
    assert_eq!(m.activated().1.port, queue.port, "all is as it was");
}

#[test]
fn memory_of_an_active_device_cannot_become_a_page_table() {
    let mut m = machine();
    m.activated();
    let read_only = m.t.entry(BUFFER, RO);
    m.t.map(BUFFER, read_only).unwrap();
    let pin = MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: m.t.mfn(BUFFER), ..Default::default() };
    m.t.write_at(va(LISTS), &pin).unwrap();
    let own = u64::from(paravane_abi::domid::DOMID_SELF);
    assert_eq!(m.t.call(nr::MMUEXT_OP, [va(LISTS), 1, 0, own]), Err(Errno::EINVAL));
    m.reset();
    m.t.write_at(va(LISTS), &pin).unwrap();
    assert_eq!(m.t.call(nr::MMUEXT_OP, [va(LISTS), 1, 0, own]), Ok(0));
}

#[test]
fn an_activation_that_fails_leaves_nothing() {
    let mut m = machine();
    let page_table = m.t.mfn(L1);
    type Spoil = dyn Fn(&mut VirtioActivate, &mut VirtioQueue, &mut [VirtioRegion; 2]);
    let cases: &[(Errno, &Spoil)] = &[
        (Errno::ENODEV, &|a, _, _| a.kind = 2),
        (Errno::ENODEV, &|a, _, _| a.device = u32::MAX),
        (Errno::EOPNOTSUPP, &|a, _, _| a.features = 0),
        (Errno::EOPNOTSUPP, &|a, _, _| a.features |= 1 << 33),
        (Errno::EINVAL, &|a, _, _| a.queue_count = 2),
        (Errno::EINVAL, &|_, q, _| q.size = 3),
        (Errno::EINVAL, &|_, q, _| q.size = 128),
        (Errno::EINVAL, &|_, q, _| q.descriptors += 8),
        (Errno::EINVAL, &|_, q, _| q.driver = AT - 0x1000),
        (Errno::EINVAL, &|_, q, _| q.device = AT + 0x2000),
        (Errno::EINVAL, &|_, q, _| q.device = u64::MAX - 3),
        (Errno::EINVAL, &|_, _, r| r[1].address = AT),
        (Errno::EINVAL, &|_, _, r| r[1].address += 8),
        (Errno::EINVAL, &|_, _, r| r[1].address = u64::MAX - 0xfff),
        (Errno::EINVAL, &|a, _, _| a.region_count = 0),
        (Errno::E2BIG, &|_, _, r| r[1].frames = 65536),
        (Errno::E2BIG, &|_, _, r| r[1].frames = u64::MAX),
        (Errno::E2BIG, &|a, _, _| a.region_count = 65),
        (Errno::EPERM, &move |_, _, r| r[1].mfn = page_table),
        (Errno::EPERM, &|_, _, r| r[1].mfn = 0),
        (Errno::EPERM, &|_, _, r| r[1].mfn = u64::MAX),
        (Errno::EPERM, &|_, _, r| r[1].frames = 4096),
        (Errno::EFAULT, &|a, _, _| a.queues = NOWHERE),
        (Errno::EFAULT, &|a, _, _| a.regions = u64::MAX - 7),
    ];
    for (n, (errno, spoil)) in cases.iter().enumerate() {
        let (mut a, mut q, mut r) = m.request();
        spoil(&mut a, &mut q, &mut r);
        assert_eq!(m.activate((a, q, r)).map(|_| ()), Err(*errno), "case {n}");
        assert!(m.is_clean(), "case {n}");
    }
    assert_eq!(m.entry(0).status, 0);
    let request = m.request();
    m.activated();
    assert_eq!(m.activate(request).map(|_| ()), Err(Errno::EBUSY));
}

#[test]
fn queues_that_cannot_be_written_back_are_found_in_time() {
    let mut m = machine();
    let (mut a, q, r) = m.request();
    m.t.write_at(va(LISTS), &q).unwrap();
    m.t.write_at(va(LISTS) + 0x100, &r).unwrap();
    a.queues = va(LISTS);
    let read_only = m.t.entry(LISTS, RO);
    m.t.map(LISTS, read_only).unwrap();
    assert_eq!(m.virtio(VIRTIOP_ACTIVATE, a).unwrap_err(), Errno::EFAULT);
    assert!(m.is_clean() && m.entry(0).status == 0);
}

#[test]
fn ports_run_out() {
    let mut m = machine();
    while m.t.events.allocate(crate::pv::event::Binding::Ipi).is_ok() {}
    let last = 4095;
    m.t.events.close(last, DOMID).unwrap();
    let request = m.request();
    assert_eq!(m.activate(request).map(|_| ()), Err(Errno::ENOSPC), "one is not enough");
    assert!(m.t.events.send(last).is_err(), "and is free again");
}

#[test]
fn a_driver_that_breaks_the_rules_stops_its_device_alone() {
    let mut m = machine();
    let (activate, queue) = m.activated();
    // A descriptor that is its own next.
    m.t.poke(RING, 0, AT + 0x1000);
    m.t.poke(RING, 1, 64 | 3 << 32);
    m.t.poke(RING, 0x400 / 8, 1 << 16);
    m.send(queue.port);
    m.wait_until(|t| t.upcall().is_pending(&t.memory, activate.config_port).unwrap());
    assert_eq!(m.entry(0).status, 0x4f, "told before the port was pending");
    assert_eq!(m.t.peek(RING, 0x800 / 8) >> 16, 0, "nothing was used");
    assert!(!m.pending(queue.port));
    m.send(queue.port);
    let status = m.virtio(VIRTIOP_STATUS, VirtioStatus::default()).unwrap();
    assert_eq!(status.status, 0x4f);
    let other = VirtioStatus { device: 1, ..Default::default() };
    assert_eq!(m.virtio(VIRTIOP_STATUS, other).unwrap().status, 0);
    m.reset();
    assert!(m.is_clean() && m.entry(0).status == 0);
}

#[test]
fn a_configuration_space_of_no_bytes_has_none() {
    let mut m = machine();
    for (offset, len, result) in
        [(0, 0, Ok(())), (0, 1, Err(Errno::EINVAL)), (u32::MAX, u32::MAX, Err(Errno::EINVAL))]
    {
        for op in [VIRTIOP_CONFIG_READ, VIRTIOP_CONFIG_WRITE] {
            let argument = VirtioConfig { offset, len, buffer: va(LISTS), ..Default::default() };
            assert_eq!(m.virtio(op, argument).map(drop), result, "{op} at {offset}");
        }
    }
}
