//! The transport and the pool, against a host that is played.

use std::boxed::Box;
use std::string::ToString;
use std::sync::Mutex;
use std::vec::Vec;

use paravane_abi::Errno;
use paravane_abi::event::EvtchnSend;
use paravane_abi::hypercall::{EVENT_CHANNEL_OP, PARAVANE_VIRTIO_OP, SCHED_OP};
use paravane_abi::virtio::*;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::common::Feature;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};
use virtio_drivers::{Hal, PAGE_SIZE};

use super::*;
use crate::event::Port;
use crate::hypercall::Hypercalls;
use crate::memory::{Memory, Tables};
use crate::shared::SHARED;

const PAGES: usize = 16;
const FIRST: u64 = 3;

/// What a host was asked, and how it answers.
#[derive(Default)]
struct Played {
    asked: Vec<&'static str>,
    activated: Option<(VirtioActivate, Vec<VirtioQueue>, Vec<VirtioRegion>)>,
    kicked: Vec<u32>,
    refuse: Option<Errno>,
    busy: u32,
    written: Vec<(u32, Vec<u8>)>,
}

/// Several of them are one host.
#[derive(Clone, Copy)]
struct Host(&'static Mutex<Played>);

impl Host {
    fn new() -> Self {
        Self(Box::leak(Box::default()))
    }

    fn look<R>(&self, f: impl FnOnce(&mut Played) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

impl Hypercalls for Host {
    unsafe fn call(&mut self, number: u64, args: [u64; 6]) -> i64 {
        let mut host = self.0.lock().unwrap();
        match (number, args[0] as u32) {
            (PARAVANE_VIRTIO_OP, VIRTIOP_ACTIVATE) => {
                host.asked.push("activate");
                if let Some(errno) = host.refuse {
                    return errno.as_result();
                }
                // SAFETY: the caller's structures.
                let (op, queues, regions) = unsafe {
                    let op = &mut *(args[1] as *mut VirtioActivate);
                    let queues = std::slice::from_raw_parts_mut(
                        op.queues as *mut VirtioQueue,
                        op.queue_count as usize,
                    );
                    let regions = std::slice::from_raw_parts(
                        op.regions as *const VirtioRegion,
                        op.region_count as usize,
                    );
                    (op, queues, regions)
                };
                op.config_port = 200;
                queues.iter_mut().zip(201..).for_each(|(queue, port)| queue.port = port);
                host.activated = Some((*op, queues.to_vec(), regions.to_vec()));
            }
            (PARAVANE_VIRTIO_OP, VIRTIOP_RESET) => {
                host.asked.push("reset");
                if host.busy > 0 {
                    host.busy -= 1;
                    return Errno::EAGAIN.as_result();
                }
            }
            (PARAVANE_VIRTIO_OP, VIRTIOP_CONFIG_WRITE) => {
                host.asked.push("config-write");
                // SAFETY: the caller's structure and buffer.
                let (op, bytes) = unsafe {
                    let op = *(args[1] as *const VirtioConfig);
                    (op, std::slice::from_raw_parts(op.buffer as *const u8, op.len as usize))
                };
                host.written.push((op.offset, bytes.to_vec()));
            }
            (EVENT_CHANNEL_OP, _) => {
                host.asked.push("send");
                // SAFETY: the caller's structure.
                host.kicked.push(unsafe { *(args[1] as *const EvtchnSend) }.port);
            }
            (SCHED_OP, _) => host.asked.push("poll"),
            other => panic!("an unexpected call: {other:?}"),
        }
        0
    }
}

/// A pool at pseudo-physical frame `FIRST`, whose machine frames have a gap after the fifth page, and the memory that
/// says so.
fn pool_and_memory() -> (&'static Pool, Memory) {
    #[repr(C, align(4096))]
    struct Pages([u8; PAGES * PAGE_SIZE]);
    let pages: &'static mut Pages = Box::leak(Box::new(Pages([0xee; PAGES * PAGE_SIZE])));
    let pool: &'static Pool = Box::leak(Box::default());
    // SAFETY: leaked, and not used otherwise.
    unsafe { pool.give(pages.0.as_mut_ptr(), FIRST * 4096, PAGES) }.unwrap();
    let p2m: &'static [u64] = Box::leak(
        (0..FIRST + PAGES as u64).map(|pfn| if pfn < FIRST + 5 { 1000 + pfn } else { 5000 + pfn }).collect(),
    );
    let tables = Tables {
        virt_base: 0,
        window: core::ptr::null_mut(),
        p2m: p2m.as_ptr(),
        frames: p2m.len() as u64,
        m2p: core::ptr::null(),
        machine_frames: 0,
    };
    // SAFETY: the list is that long, and nothing else is used.
    (pool, unsafe { Memory::new(tables) })
}

/// Puts a table with one device of this type into the shared page. Tests that do take turns.
fn device(kind: u32, features: u64) -> (impl Drop, Device) {
    let turn = crate::testing::fresh_shared_page();
    let mut table =
        VirtioTable { magic: VIRTIO_TABLE_MAGIC, version: VIRTIO_OP_VERSION, count: 1, ..Default::default() };
    table.devices[0] =
        VirtioEntry { kind, queues: 2, queue_size: 64, features, config_len: 24, ..Default::default() };
    table.devices[0].config[..8].copy_from_slice(&2048u64.to_le_bytes());
    // SAFETY: it is this test's turn; no other test accesses the table.
    unsafe { SHARED.virtio_table().write(table) };
    let device = devices().next().unwrap();
    (turn, device)
}

fn change(f: impl FnOnce(&mut VirtioTable)) {
    // SAFETY: as above.
    f(unsafe { &mut *SHARED.virtio_table() });
}

const ALL: u64 = Feature::VERSION_1.bits() | Feature::RING_EVENT_IDX.bits();

#[test]
fn a_table_that_is_not_ours_lists_nothing() {
    let (_turn, device) = device(4, ALL);
    assert_eq!((device.id(), device.kind(), devices().count()), (0, 4, 1));
    change(|table| table.version = VIRTIO_OP_VERSION + 1);
    assert_eq!(devices().count(), 0, "another version");
    change(|table| (table.magic, table.version) = (0, VIRTIO_OP_VERSION));
    assert_eq!(devices().count(), 0, "no table, as on Xen");
    change(|table| (table.magic, table.count) = (VIRTIO_TABLE_MAGIC, u16::MAX));
    assert_eq!(devices().count(), 1, "what is empty, and what is past the end, is no device");
}

#[test]
fn a_configuration_is_read_within_its_bounds_and_in_one_piece() {
    let (_turn, device) = device(2, ALL);
    let mut bytes = [0; 8];
    assert!(device.read_config(0, &mut bytes) && u64::from_le_bytes(bytes) == 2048);
    assert!(!device.read_config(17, &mut bytes) && !device.read_config(usize::MAX, &mut bytes));
    change(|table| table.devices[0].config_len = u32::MAX);
    assert!(device.read_config(64, &mut bytes) && !device.read_config(65, &mut bytes));
}

#[test]
fn setting_up_and_starting_is_one_hypercall() {
    let (_turn, device) = device(2, ALL);
    let (pool, memory) = pool_and_memory();
    let host = Host::new();
    let mut transport = PvTransport::with(host, device, memory, pool, |_| ()).unwrap();
    let features = transport.begin_init(Feature::VERSION_1 | Feature::RING_EVENT_IDX | Feature::SR_IOV);
    assert_eq!(features.bits(), ALL);
    assert_eq!((transport.max_queue_size(1), transport.max_queue_size(2)), (64, 0));
    assert_eq!(transport.read_config_space::<u64>(0).unwrap(), 2048);
    assert!(transport.read_config_space::<u64>(20).is_err());
    let base = pool.address();
    transport.queue_set(1, 8, base, base + 128, base + 4096);
    assert!(transport.queue_used(1) && !transport.queue_used(0) && !transport.queue_used(99));
    assert!(host.look(|host| host.asked.is_empty()), "nothing so far needed the host");
    transport.finish_init();
    host.look(|host| {
        assert_eq!(host.asked, ["activate"]);
        let (op, queues, regions) = host.activated.take().unwrap();
        assert_eq!((op.device, op.kind, op.features, op.queue_count), (0, 2, ALL, 2));
        assert_eq!((queues[0].size, queues[1].size, queues[1].device), (0, 8, base + 4096));
        let region = |address, mfn, frames| VirtioRegion { address, mfn, frames };
        assert_eq!(regions, [region(FIRST * 4096, 1003, 5), region((FIRST + 5) * 4096, 5008, 11)]);
    });
    assert!(transport.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
    change(|table| table.devices[0].generation += 2);
    assert!(transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT));
    assert!(transport.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT);
    change(|table| table.devices[0].status = DeviceStatus::DEVICE_NEEDS_RESET.bits());
    assert!(transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT));
    assert_eq!(transport.get_status(), DeviceStatus::DEVICE_NEEDS_RESET);
    transport.write_config_space(8, 7u32).unwrap();
    host.look(|host| assert_eq!(host.written, [(8, 7u32.to_le_bytes().to_vec())]));
}

#[test]
fn only_kicks_that_the_device_wants_are_sent() {
    let (_turn, device) = device(2, ALL);
    let (pool, memory) = pool_and_memory();
    let host = Host::new();
    let mut transport = PvTransport::with(host, device, memory, pool, |_| ()).unwrap();
    transport.begin_init(Feature::VERSION_1 | Feature::RING_EVENT_IDX);
    let rings = pool.allocate(2).unwrap();
    let base = pool.address_of(core::ptr::NonNull::slice_from_raw_parts(rings, 1)).unwrap();
    transport.queue_set(0, 8, base, base + 128, base + 4096);
    transport.finish_init();
    // SAFETY: the pool's pages, which are ours; the available index, and the used ring's `avail_event`.
    let (available, event) =
        unsafe { (rings.add(128 + 2).cast::<u16>(), rings.add(4096 + 4 + 8 * 8).cast::<u16>()) };
    // SAFETY: as above.
    let publish = |index: u16| unsafe { available.write_volatile(index) };
    transport.notify(0);
    assert_eq!(host.look(|host| host.kicked.len()), 0, "nothing is available");
    publish(1);
    transport.notify(0);
    assert_eq!(host.look(|host| host.kicked.clone()), [201]);
    publish(3);
    transport.notify(0);
    assert_eq!(host.look(|host| host.kicked.len()), 1, "the device is awake: it asked at 0");
    // SAFETY: as above.
    unsafe { event.write_volatile(3) };
    publish(9);
    transport.notify(0);
    transport.notify(0);
    assert_eq!(host.look(|host| host.kicked.len()), 2);
    transport.notify(1);
    transport.notify(u16::MAX);
    assert_eq!(host.look(|host| host.kicked.len()), 2, "queues that are not set up");
}

#[test]
fn a_refused_start_is_seen_in_the_status() {
    let (_turn, device) = device(2, ALL);
    let (pool, memory) = pool_and_memory();
    let host = Host::new();
    host.look(|host| host.refuse = Some(Errno::EBUSY));
    let mut transport = PvTransport::with(host, device, memory, pool, |_| ()).unwrap();
    transport.begin_init(Feature::VERSION_1);
    transport.finish_init();
    assert_eq!(transport.get_status(), DeviceStatus::FAILED);
    drop(transport);
    assert_eq!(host.look(|host| host.asked.clone()), ["activate"], "there is nothing to reset");
}

#[test]
fn a_device_that_is_dropped_is_waited_for() {
    let (_turn, device) = device(2, ALL);
    let (pool, memory) = pool_and_memory();
    let host = Host::new();
    host.look(|host| host.busy = 2);
    let mut transport = PvTransport::with(host, device, memory, pool, |_| ()).unwrap();
    transport.begin_init(Feature::VERSION_1);
    transport.finish_init();
    transport.queue_unset(0);
    transport.queue_unset(1);
    drop(transport);
    assert_eq!(host.look(|host| host.asked.clone()), ["activate", "reset", "poll", "reset", "poll", "reset"]);
    assert!(!crate::event::is_pending(Port(200)));
    let all = pool.allocate(PAGES).unwrap();
    // SAFETY: just allocated.
    unsafe { pool.free(all, PAGES) };
    assert!(pool.allocate(PAGES).is_some(), "its memory is ours again");
}

#[test]
fn a_device_that_does_not_stop_keeps_its_memory() {
    let (_turn, device) = device(2, ALL);
    let (pool, memory) = pool_and_memory();
    let host = Host::new();
    host.look(|host| host.busy = u32::MAX);
    let mut transport = PvTransport::with(host, device, memory, pool, |_| ()).unwrap();
    transport.begin_init(Feature::VERSION_1);
    transport.finish_init();
    drop(transport);
    assert!(host.look(|host| host.asked.len()) < 1000, "the wait has an end");
    let page = pool.allocate(1).unwrap();
    // SAFETY: just allocated.
    unsafe { pool.free(page, 1) };
    assert_ne!(pool.allocate(1), Some(page));
}

#[test]
fn a_pool_takes_only_bytes_of_the_direct_map() {
    #[repr(align(4096))]
    struct Pages([u8; 4 * PAGE_SIZE]);
    let bytes = |len: usize| {
        let all = &mut Box::leak(Box::new(Pages([0; 4 * PAGE_SIZE]))).0;
        // SAFETY: initialised bytes are as good as any, and nobody reads them as such again.
        unsafe { core::slice::from_raw_parts_mut(all.as_mut_ptr().cast(), len) }
    };
    // A domain whose direct map begins a page before `at`, and has so many frames.
    let domain = |at: &[core::mem::MaybeUninit<u8>], frames| {
        let virt_base = at.as_ptr().addr() as u64 - PAGE_SIZE as u64;
        let none = core::ptr::null();
        let tables = Tables {
            virt_base,
            window: core::ptr::null_mut(),
            p2m: none,
            frames,
            m2p: none,
            machine_frames: 0,
        };
        // SAFETY: only addresses are computed.
        unsafe { Memory::new(tables) }
    };
    let pool = Pool::new();
    let (a, b, c) = (bytes(4 * PAGE_SIZE), bytes(100), bytes(4 * PAGE_SIZE));
    let (small, whole) = (domain(a, 4), domain(c, 5));
    assert_eq!(pool.give_bytes(small, a), Err(PoolError::BadRange), "its last page is outside");
    assert_eq!(pool.give_bytes(domain(b, 5), b), Err(PoolError::BadRange), "less than a page");
    assert_eq!(pool.give_bytes(whole, c), Ok(()));
    assert_eq!((pool.pages(), pool.address()), (4, 4096));
}

#[test]
fn a_pool_gives_what_it_has_and_takes_it_back() {
    let (pool, _) = pool_and_memory();
    // SAFETY: refused before anything is done with it.
    assert_eq!(unsafe { pool.give(core::ptr::null_mut(), 4096, 1) }, Err(PoolError::GivenAlready));
    let empty = Pool::new();
    for (address, pages) in [(0, 1), (4096, 0), (100, 1), (u64::MAX - 4095, 2)] {
        // SAFETY: as above.
        let given = unsafe { empty.give(core::ptr::without_provenance_mut(4096), address, pages) };
        assert_eq!(given, Err(PoolError::BadRange), "{address:#x} {pages}");
    }
    assert!(pool.allocate(PAGES + 1).is_none() && pool.allocate(0).is_none() && empty.allocate(1).is_none());
    let (a, b) = (pool.allocate(5).unwrap(), pool.allocate(11).unwrap());
    assert!(pool.allocate(1).is_none());
    // SAFETY: pages that were allocated.
    let zeroed =
        unsafe { std::slice::from_raw_parts(b.as_ptr(), 11 * PAGE_SIZE) }.iter().all(|byte| *byte == 0);
    assert!(zeroed);
    // SAFETY: as above; not used any more.
    unsafe { pool.free(a, 5) };
    assert_eq!(pool.allocate(5), Some(a));
    let slice = |len| core::ptr::NonNull::slice_from_raw_parts(b, len);
    let address = (FIRST + 5) * 4096;
    assert_eq!(pool.address_of(slice(11 * PAGE_SIZE)), Some(address));
    assert_eq!(pool.address_of(slice(11 * PAGE_SIZE + 1)), None);
    assert_eq!((pool.at(address, 1), pool.at(address, 12 * PAGE_SIZE), pool.at(0, 1)), (Some(b), None, None));
}

/// A device that reads one block, played at the level of its rings by the test; over the one static pool.
#[test]
fn a_driver_of_virtio_drivers_reads_through_a_copy() {
    let (_turn, device) = device(2, ALL | 1 << 9);
    #[repr(C, align(4096))]
    struct Pages([u8; PAGES * PAGE_SIZE]);
    let pages: &'static mut Pages = Box::leak(Box::new(Pages([0; PAGES * PAGE_SIZE])));
    // SAFETY: leaked, and not used otherwise; this is the only test with the static pool.
    unsafe { POOL.give(pages.0.as_mut_ptr(), FIRST * 4096, PAGES) }.unwrap();
    let (_, memory) = pool_and_memory();
    let host = Host::new();
    let transport = PvTransport::with(host, device, memory, &POOL, |_| ()).unwrap();
    let mut blk = VirtIOBlk::<PoolHal, _>::new(transport).unwrap();
    assert_eq!((blk.capacity(), host.look(|host| host.asked.len())), (2048, 1));
    let queue = host.look(|host| host.activated.as_ref().unwrap().1[0]);
    let (mut request, mut response) = Default::default();
    let mut block = [0; 512];
    // SAFETY: none of them is touched before the request is complete.
    let token = unsafe { blk.read_blocks_nb(5, &mut request, &mut block, &mut response) }.unwrap();
    // The device's part: fill the second buffer, write the status, publish.
    let at = |address, len| POOL.at(address, len).unwrap().as_ptr();
    // SAFETY: descriptors and buffers in the pool, as the driver set them up.
    unsafe {
        let descriptor = |index: usize| at(queue.descriptors + 16 * index as u64, 16).cast::<u64>();
        let (data, status) = (descriptor(1).read(), descriptor(2).read());
        at(data, 512).write_bytes(0x5a, 512);
        at(status, 1).write(0);
        at(queue.device + 4, 8).cast::<[u32; 2]>().write([u32::from(token), 513]);
        at(queue.device + 2, 2).cast::<u16>().write_volatile(1);
    }
    assert_eq!(blk.peek_used(), Some(token));
    // SAFETY: the same buffers.
    unsafe { blk.complete_read_blocks(token, &request, &mut block, &mut response) }.unwrap();
    assert_eq!(block, [0x5a; 512]);
    drop(blk);
    assert_eq!(host.look(|host| host.asked.clone()), ["activate", "send", "reset"]);
    let (address, start) = PoolHal::dma_alloc(PAGES, virtio_drivers::BufferDirection::Both);
    assert_eq!((address, POOL.at(address, 1)), (FIRST * 4096, Some(start)), "every page came back");
    assert_eq!(PoolHal::dma_alloc(1, virtio_drivers::BufferDirection::Both).0, 0);
    assert!(Unsuitable::Kind(77).to_string().contains("77"));
}
