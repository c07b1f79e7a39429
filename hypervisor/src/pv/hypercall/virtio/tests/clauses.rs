//! What `docs/virtio.md` says, clause by clause: every error of its tables, by a call that gets it.

use std::io;

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::event::{
    EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_BIND_VCPU, EVTCHNOP_RESET, EVTCHNOP_UNMASK, EVTCHNSTAT_CLOSED,
    EvtchnBindInterdomain, EvtchnBindVcpu, EvtchnReset, EvtchnUnmask,
};

use super::*;
use crate::backend::net::mac::Mac;
use crate::backend::net::peer::Peer;
use crate::testing::virtio::Numbers;
use crate::virtio::net::Net;
use crate::virtio::{Activation, Info, Workers};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn net() -> Box<dyn Device> {
    Box::new(Net::new(Box::new(Peer::default()), Mac(MAC)))
}

/// An argument that can be read and not written.
fn read_only<T: zerocopy::IntoBytes + zerocopy::Immutable>(m: &mut Machine, argument: &T) -> u64 {
    let back = m.t.entry(LISTS, crate::testing::pv::RW);
    m.t.map(LISTS, back).unwrap();
    m.t.write_at(va(LISTS), argument).unwrap();
    let read_only = m.t.entry(LISTS, RO);
    m.t.map(LISTS, read_only).unwrap();
    va(LISTS)
}

fn call(m: &mut Machine, op: u32, argument: u64) -> Result<u64, Errno> {
    m.t.call(nr::PARAVANE_VIRTIO_OP, [op.into(), argument])
}

#[test]
fn arguments_that_cannot_be_read_or_answered() {
    let mut m = machine_with(vec![net()]);
    for op in VIRTIOP_LIST..=VIRTIOP_STATUS {
        for nowhere in [NOWHERE, 0, u64::MAX, u64::MAX - 7, 0xffff_8000_0000_0000] {
            assert_eq!(call(&mut m, op, nowhere), Err(Errno::EFAULT), "{op} at {nowhere:#x}");
        }
    }
    let list = VirtioList { count: 1, kinds: NOWHERE, ..Default::default() };
    assert_eq!(m.virtio(VIRTIOP_LIST, list), Err(Errno::EFAULT), "no room for the types");
    let list = VirtioList { count: 1, kinds: u64::MAX, ..Default::default() };
    assert_eq!(m.virtio(VIRTIOP_LIST, list), Err(Errno::EFAULT));
    for op in [VIRTIOP_LIST, VIRTIOP_DESCRIBE, VIRTIOP_STATUS, VIRTIOP_CONFIG_READ, VIRTIOP_CONFIG_WRITE] {
        let at = read_only(&mut m, &VirtioDescribe::default());
        assert_eq!(call(&mut m, op, at), Err(Errno::EFAULT), "{op}");
    }
    for op in [VIRTIOP_CONFIG_READ, VIRTIOP_CONFIG_WRITE] {
        let argument = VirtioConfig { len: 6, buffer: NOWHERE, ..Default::default() };
        assert_eq!(m.virtio(op, argument), Err(Errno::EFAULT), "{op}");
    }
    assert_eq!(call(&mut m, VIRTIOP_STATUS + 1, NOWHERE), Err(Errno::ENOSYS));
    assert_eq!(call(&mut m, u32::MAX, NOWHERE), Err(Errno::ENOSYS));
}

#[test]
fn a_configuration_space_is_read_and_written_within_its_bounds() {
    let mut m = machine_with(vec![net()]);
    let len = m.entry(0).config_len;
    let at = |offset, len| VirtioConfig { offset, len, buffer: va(LISTS), ..Default::default() };
    let read = m.virtio(VIRTIOP_CONFIG_READ, at(0, 6)).unwrap();
    assert_eq!((read.generation, m.t.read_at::<[u8; 6]>(va(LISTS))), (m.entry(0).generation, Ok(MAC)));
    assert!(read.generation.is_multiple_of(2));
    for (offset, bytes) in [(0, len), (len, 0), (len - 1, 1)] {
        assert_eq!(m.virtio(VIRTIOP_CONFIG_READ, at(offset, bytes)).map(drop), Ok(()), "{bytes} at {offset}");
    }
    for op in [VIRTIOP_CONFIG_READ, VIRTIOP_CONFIG_WRITE] {
        for (offset, bytes) in [(0, len + 1), (len, 1), (len + 1, 0), (u32::MAX, 1), (1, u32::MAX)] {
            assert_eq!(m.virtio(op, at(offset, bytes)), Err(Errno::EINVAL), "{op}: {bytes} at {offset}");
        }
    }
    m.t.write_at(va(LISTS), &[0xff_u8; 6]).unwrap();
    m.virtio(VIRTIOP_CONFIG_WRITE, at(0, 6)).unwrap();
    m.virtio(VIRTIOP_CONFIG_READ, at(0, 6)).unwrap();
    assert_eq!(m.t.read_at::<[u8; 6]>(va(LISTS)), Ok(MAC), "not for a driver to change");
}

/// A device that cannot be had, or whose worker holds a request until it is let go.
#[derive(Clone, Default)]
struct Stubborn {
    fails: bool,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

/// Lets a stubborn device go before its machine does, or a test that fails would wait for ever.
struct LetGo(Stubborn);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl Stubborn {
    fn let_go(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }
}

impl Device for Stubborn {
    fn info(&self) -> Info {
        Info { kind: RNG, features: 0, queues: 1, queue_size: 64 }
    }
    fn activate(&mut self, _: Activation, workers: &mut Workers) -> io::Result<()> {
        if self.fails {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let gate = self.gate.clone();
        workers.spawn("stubborn", move |stop| {
            crate::host::poll::wait(&[stop.fd()]).unwrap();
            drop(gate.1.wait_while(gate.0.lock().unwrap(), |open| !*open).unwrap());
            Ok(())
        })
    }
}

#[test]
fn a_reset_waits_for_what_is_in_work_and_changes_nothing_until_then() {
    let device = Stubborn::default();
    let mut m = machine_with(vec![Box::new(device.clone())]);
    let _in_any_case = LetGo(device.clone());
    let request = m.request();
    let (active, queue) = m.activate(request).unwrap();
    for _ in 0..3 {
        assert_eq!(m.virtio(VIRTIOP_RESET, VirtioDevice { device: 0 }), Err(Errno::EAGAIN));
        assert_eq!(m.entry(0).status, 0xf);
        assert_eq!(m.activate(request).map(drop), Err(Errno::EBUSY));
        assert!(m.t.events.send(queue.port).is_ok() && m.t.events.send(active.config_port).is_ok());
        assert!(m.t.mmu.frame(crate::machine::memory::Mfn(m.t.mfn(BUFFER))).unwrap().refs() > 1);
    }
    assert!(!m.pending(active.config_port));
    device.let_go();
    m.wait_until(|t| t.upcall().is_pending(&t.memory, active.config_port).unwrap());
    assert_eq!(m.virtio(VIRTIOP_RESET, VirtioDevice { device: 0 }).map(drop), Ok(()), "as it was announced");
    assert!(m.is_clean() && m.entry(0).status == 0);
    assert!(!m.pending(active.config_port) && !m.pending(queue.port), "a closed port is not pending");
    assert_eq!(m.virtio(VIRTIOP_RESET, VirtioDevice { device: 0 }).map(drop), Ok(()), "nothing to do");
    assert_eq!(m.activate(request).map(drop), Ok(()));
}

#[test]
fn a_host_without_means_is_enomem_and_leaves_nothing() {
    let mut m = machine_with(vec![Box::new(Stubborn { fails: true, ..Stubborn::default() })]);
    for _ in 0..3 {
        let request = m.request();
        assert_eq!(m.activate(request).map(drop), Err(Errno::ENOMEM));
        assert!(m.is_clean() && m.entry(0).status == 0);
    }
}

#[test]
fn a_domain_ends_while_requests_are_in_work() {
    let device = Stubborn::default();
    let mut m = machine_with(vec![Box::new(device.clone())]);
    m.activated();
    assert_eq!(m.virtio(VIRTIOP_RESET, VirtioDevice { device: 0 }), Err(Errno::EAGAIN));
    device.let_go();
    let memory = Arc::downgrade(&m.t.memory);
    drop(m);
    assert_eq!(memory.strong_count(), 0, "no worker keeps the memory");
}

#[test]
fn queues_that_are_not_used() {
    let mut m = machine();
    let (a, q, r) = m.request();
    let (active, queue) = m.activate((a, VirtioQueue { size: 0, descriptors: u64::MAX, ..q }, r)).unwrap();
    assert_eq!((active.status, queue.port), (0xf, 0));
    m.reset();
    let none = VirtioActivate { queue_count: 0, queues: NOWHERE, ..a };
    assert_eq!(m.activate((none, q, r)).map(drop), Ok(()), "and none at all");
    m.reset();
    assert!(m.is_clean());
}

#[test]
fn activations_that_the_table_of_errors_has() {
    let mut m = machine();
    let shared = m.t.upcall().shared_info.mfn().0;
    let m2p = m.t.facts.m2p.start;
    let gdt = BUFFER + 4;
    let entry = m.t.entry(gdt, RO);
    m.t.map(gdt, entry).unwrap();
    m.t.set_gdt(&[gdt], 16);
    let gdt = m.t.mfn(gdt);
    type Spoil = dyn Fn(&mut VirtioActivate, &mut VirtioQueue, &mut [VirtioRegion; 2]);
    let cases: &[(Errno, &str, &Spoil)] = &[
        (Errno::EPERM, "shared info", &move |_, _, r| r[1].mfn = shared),
        (Errno::EPERM, "the machine-to-physical table", &move |_, _, r| r[1].mfn = m2p),
        (Errno::EPERM, "a descriptor table", &move |_, _, r| r[1].mfn = gdt),
        (Errno::EINVAL, "no frame", &|_, _, r| (r[0].frames, r[1].frames) = (0, 0)),
        (Errno::EINVAL, "an available ring at 0", &|_, q, r| {
            r[0].address = 0;
            (q.descriptors, q.driver, q.device) = (0x400, 0, 0x800);
        }),
        (Errno::EINVAL, "a misaligned available ring", &|_, q, _| q.driver += 1),
        (Errno::EINVAL, "a misaligned used ring", &|_, q, _| q.device += 2),
        (Errno::EINVAL, "descriptors to the end of addresses", &|_, q, _| q.descriptors = u64::MAX - 15),
        (Errno::EINVAL, "a used ring over the region's end", &|_, q, _| q.device = AT + 0x1ffc),
        (Errno::EINVAL, "the last page of addresses", &|_, _, r| r[1].address = 0xffff_ffff_ffff_f000),
        (Errno::EINVAL, "regions that overlap by a page", &|_, _, r| {
            (r[0].frames, r[1].address) = (2, AT + 0x1000);
        }),
        (Errno::EINVAL, "more queues than there are", &|a, _, _| a.queue_count = u32::MAX),
        (Errno::E2BIG, "more regions than can be", &|a, _, _| a.region_count = u32::MAX),
        (Errno::EPERM, "frames past all numbers", &|_, _, r| (r[1].mfn, r[1].frames) = (u64::MAX, 2)),
        (Errno::EOPNOTSUPP, "all features", &|a, _, _| a.features = u64::MAX),
        (Errno::EFAULT, "regions that cannot be read", &|a, _, _| a.regions = NOWHERE),
        (Errno::EFAULT, "queues at the end of addresses", &|a, _, _| a.queues = u64::MAX - 7),
    ];
    for (errno, what, spoil) in cases {
        let (mut a, mut q, mut r) = m.request();
        spoil(&mut a, &mut q, &mut r);
        assert_eq!(m.activate((a, q, r)).map(drop), Err(*errno), "{what}");
        assert!(m.is_clean() && m.entry(0).status == 0, "{what}");
    }
    // An argument that cannot be answered: by then all was right.
    let (mut a, q, r) = m.request();
    m.t.write_at(va(BUFFER + 5), &q).unwrap();
    m.t.write_at(va(BUFFER + 5) + 0x100, &r).unwrap();
    (a.queues, a.regions) = (va(BUFFER + 5), va(BUFFER + 5) + 0x100);
    let at = read_only(&mut m, &a);
    assert_eq!(call(&mut m, VIRTIOP_ACTIVATE, at), Err(Errno::EFAULT));
    assert!(m.is_clean() && m.entry(0).status == 0);
}

/// Rings over one another harm nobody but their driver.
#[test]
fn rings_that_share_their_memory_are_the_drivers_affair() {
    let mut m = machine();
    let (a, q, r) = m.request();
    let all = VirtioQueue { size: 64, descriptors: AT, driver: AT, device: AT, ..q };
    let (_, queue) = m.activate((a, all, r)).unwrap();
    m.t.poke(RING, 0, 1 << 16);
    m.send(queue.port);
    m.reset();
    assert!(m.is_clean());
}

#[test]
fn a_devices_ports_are_ordinary_but_for_their_end() {
    let mut m = machine();
    let (active, queue) = m.activated();
    for port in [queue.port, active.config_port] {
        let event = |m: &mut Machine, op: u32, port: u32| {
            m.t.op(nr::EVENT_CHANNEL_OP, op, EvtchnUnmask { port }).map(|r| r.0)
        };
        assert_eq!(event(&mut m, EVTCHNOP_CLOSE, port), Err(Errno::EINVAL));
        assert_eq!(event(&mut m, EVTCHNOP_UNMASK, port), Ok(0));
        let bind = |m: &mut Machine, vcpu| {
            m.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_VCPU, EvtchnBindVcpu { port, vcpu }).map(|r| r.0)
        };
        assert_eq!((bind(&mut m, 0), bind(&mut m, 1)), (Ok(0), Err(Errno::ENOENT)));
        let connect =
            EvtchnBindInterdomain { remote_dom: DOMID_SELF, remote_port: port, ..Default::default() };
        let connected = m.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_BIND_INTERDOMAIN, connect).map(drop);
        assert_eq!(connected, Err(Errno::EINVAL));
    }
    m.send(active.config_port);
    assert!(!m.pending(active.config_port), "the device has no use for it");
    let reset = EvtchnReset { dom: DOMID_SELF };
    m.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_RESET, reset).unwrap();
    assert!(m.t.events.send(queue.port).is_ok() && m.t.events.send(active.config_port).is_ok());
    m.reset();
    for port in [queue.port, active.config_port] {
        let status = EvtchnStatus { dom: DOMID_SELF, port, ..Default::default() };
        let status = m.t.op(nr::EVENT_CHANNEL_OP, EVTCHNOP_STATUS, status).unwrap().1;
        assert_eq!(status.status, EVTCHNSTAT_CLOSED);
    }
}

/// A kick by a queue's port is for that queue, and so is its interrupt.
#[test]
fn each_of_many_queues_has_a_port_of_its_own() {
    let mut m = machine_with(vec![Box::new(Numbers)]);
    let (activate, _, regions) = m.request();
    let activate =
        VirtioActivate { queue_count: VIRTIO_MAX_QUEUES as u32, regions: va(LISTS) + 0x400, ..activate };
    m.t.write_at(activate.regions, &regions).unwrap();
    let queue = |n: u64| activate.queues + n * 32;
    for n in 0..VIRTIO_MAX_QUEUES as u64 {
        let base = AT + n * 0x100;
        let (driver, device) = (base + 0x40, base + 0x80);
        let ring = VirtioQueue { size: 2, descriptors: base, driver, device, ..Default::default() };
        m.t.write_at(queue(n), &ring).unwrap();
    }
    let activated = m.virtio(VIRTIOP_ACTIVATE, activate).unwrap();
    let port = |m: &Machine, n| m.t.read_at::<VirtioQueue>(queue(n)).unwrap().port;
    let ports: Vec<u32> = (0..VIRTIO_MAX_QUEUES as u64).map(|n| port(&m, n)).collect();
    for n in (0..VIRTIO_MAX_QUEUES as u64).rev() {
        let port = ports[n as usize];
        assert!(port != activated.config_port && !m.pending(port), "of no other queue");
        let word = n * 0x100 / 8;
        m.t.poke(RING, word, AT + 0x1000 + n * 8);
        m.t.poke(RING, word + 1, 8 | 2 << 32);
        m.t.poke(RING, word + 0x40 / 8, 1 << 16);
        m.send(port);
        m.wait_until(|t| t.upcall().is_pending(&t.memory, port).unwrap());
        assert_eq!(m.t.peek(RING, word + 0x80 / 8) >> 16 & 0xffff, 1, "queue {n}");
        assert_eq!(m.t.peek(BUFFER, n) & 0xff, n + 1);
    }
    m.reset();
    assert!(m.is_clean() && ports.iter().all(|&port| m.t.events.send(port).is_err()));
}
