//! The driver's side of a device, for tests without a guest: memory, rings and a transport.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::backend::console::unix::Socket;
use crate::compare::Needs;
use crate::host::poll::wait;
use crate::machine::device_memory::DeviceMemory;
use crate::virtio::console::Console;
use crate::virtio::entropy::Entropy;
use crate::virtio::vsock::Vsock;
use crate::virtio::{Activation, Broken, Device, Info, Interrupt, MAX_QUEUES, QueueSetup, Slot, Workers};

/// Bytes of the driver's memory, which begins at device address 0.
pub const MEMORY: u64 = 1 << 20;
/// Start of the memory for a test's buffers; rings are below.
pub const BUFFERS: u64 = 0x8_0000;
/// VIRTIO_F_VERSION_1, which every driver accepts.
pub const MODERN: u64 = 1 << VIRTIO_F_VERSION_1;

/// How many cases a property test tries: `PROPTEST_CASES`, for long runs; by default `usual`.
pub fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// One device of each kind, without programs at the other end.
pub fn one_of_each() -> Vec<Box<dyn Device>> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Entropy)];
    devices.extend(Needs::Network.provide().unwrap());
    // A host without space for a disk image still tests the other devices.
    devices.extend(Needs::Disk.provide().unwrap_or_default());
    let (_, other) = UnixStream::pair().unwrap();
    devices.push(Box::new(Console::new(Box::new(Socket::connected(other).unwrap())).unwrap()));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("paravane-each-{}-{number}", std::process::id()));
    devices.push(Box::new(Vsock::new(9, &path).unwrap()));
    // No test connects to it by its name.
    let _ = std::fs::remove_file(path);
    devices
}

/// A device with the maximum number of queues. Each answers with one byte: its number plus one.
pub struct Numbers;

impl Device for Numbers {
    fn info(&self) -> Info {
        Info { kind: VIRTIO_ID_RNG, features: 0, queues: MAX_QUEUES as u16, queue_size: 4 }
    }
    fn activate(&mut self, mut activation: Activation, workers: &mut Workers) -> io::Result<()> {
        let mut queues = (0..MAX_QUEUES).filter_map(|index| activation.queue(index));
        queues.try_for_each(|mut queue| {
            workers.spawn("number", move |stop| {
                while !stop.is_asked() {
                    while let Some(chain) = queue.take()? {
                        queue.memory().scatter(chain.writable(), 0, &[queue.index() as u8 + 1]);
                        queue.give_back(chain.head(), 1)?;
                    }
                    queue.notify()?;
                    if !queue.ask_for_kicks()? {
                        wait(&[stop.fd(), queue.kick_fd()]).map_err(|_| Broken::Bug)?;
                        queue.take_kick();
                    }
                }
                Ok(())
            })
        })
    }
}

/// Counts interrupts, and waits for them.
#[derive(Default)]
pub struct Interrupts {
    /// Interrupts of queues.
    pub queues: AtomicUsize,
    /// Interrupts for configuration and status.
    pub configs: AtomicUsize,
    any: Mutex<usize>,
    came: Condvar,
}

impl Interrupt for Interrupts {
    fn queue(&self, _: u16) {
        self.note(&self.queues);
    }
    fn config(&self) {
        self.note(&self.configs);
    }
}

impl Interrupts {
    fn note(&self, counter: &AtomicUsize) {
        let mut count = self.any.lock().unwrap();
        counter.fetch_add(1, Ordering::SeqCst);
        *count += 1;
        self.came.notify_all();
    }
    /// Waits until `done` returns true; calls it after every interrupt.
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) {
        loop {
            let seen = *self.any.lock().unwrap();
            // Not under the lock, because a worker that ends must be able to interrupt.
            if done() {
                return;
            }
            drop(self.came.wait_while(self.any.lock().unwrap(), |count| *count == seen).unwrap());
        }
    }
}

/// A driver's view of one split ring.
pub struct Ring {
    memory: DeviceMemory,
    /// Its addresses.
    pub setup: QueueSetup,
    available: u16,
    used: u16,
}

impl Ring {
    /// An empty ring of `size` entries, the `n`th in this memory.
    pub fn new(memory: &DeviceMemory, n: u64, size: u16) -> Self {
        let base = n * 0x1_0000 + 0x1000;
        let setup = QueueSetup { size, descriptors: base, driver: base + 0x8000, device: base + 0xa000 };
        let ring = Self { memory: memory.clone(), setup, available: 0, used: 0 };
        memory.view().write_slice(&[0; 0xc000], GuestAddress(base)).unwrap();
        ring
    }
    fn write<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.view().write_obj(value, GuestAddress(at)).unwrap();
    }
    fn read<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.view().read_obj(GuestAddress(at)).unwrap()
    }
    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u32, next: u16) {
        let desc = Descriptor::new(address, len, flags as u16, next);
        self.write(self.setup.descriptors + u64::from(index) * 16, desc);
    }
    /// Puts a head into the available ring, without publishing it.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.setup.size);
        self.write(self.setup.driver + 4 + slot * 2, head);
        self.available = self.available.wrapping_add(1);
    }
    /// Sets the available index.
    pub fn publish_as(&self, index: u16) {
        self.memory.view().store(index, GuestAddress(self.setup.driver + 2), Ordering::Release).unwrap();
    }
    /// Publishes the chains that were offered.
    pub fn publish(&self) {
        self.publish_as(self.available);
    }
    /// Offers a chain of (address, length, for the device to write), from descriptor `head` on.
    pub fn chain(&mut self, head: u16, buffers: &[(u64, u32, bool)]) {
        for (n, &(address, len, write)) in (head..).zip(buffers) {
            let last = usize::from(n - head) + 1 == buffers.len();
            let flags = if write { VRING_DESC_F_WRITE } else { 0 } | if last { 0 } else { VRING_DESC_F_NEXT };
            self.describe(n, address, len, flags, n + 1);
        }
        self.offer(head);
        self.publish();
    }
    /// How many buffers were used in all, modulo 2^16.
    pub fn used_index(&self) -> u16 {
        self.memory.view().load(GuestAddress(self.setup.device + 2), Ordering::Acquire).unwrap()
    }
    /// The next used chain: its head, and how many bytes were written.
    pub fn next_used(&mut self) -> Option<(u32, u32)> {
        if self.used == self.used_index() {
            return None;
        }
        let at = self.setup.device + 4 + u64::from(self.used % self.setup.size) * 8;
        self.used = self.used.wrapping_add(1);
        // used_event: asks for an interrupt for the next used buffer.
        self.write(self.setup.driver + 4 + u64::from(self.setup.size) * 2, self.used);
        Some((self.read(at), self.read(at + 4)))
    }
}

/// A device and its driver.
pub struct Bench {
    /// The device.
    pub slot: Slot,
    /// Its memory.
    pub memory: DeviceMemory,
    /// Its interrupts.
    pub interrupts: Arc<Interrupts>,
}

impl Bench {
    /// An inactive device.
    pub fn new(device: impl Device + 'static) -> Self {
        Self::of(Box::new(device))
    }
    /// An inactive device of any kind.
    pub fn of(device: Box<dyn Device>) -> Self {
        let view = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let interrupts = Arc::new(Interrupts::default());
        let slot = Slot::new(device, interrupts.clone() as Arc<dyn Interrupt>);
        Self { slot, memory: DeviceMemory::standing_alone(view), interrupts }
    }
    /// Activates it with rings of `size` entries for its first `count` queues.
    pub fn start(&mut self, features: u64, count: u64, size: u16) -> Vec<Ring> {
        let rings: Vec<_> = (0..count).map(|n| Ring::new(&self.memory, n, size)).collect();
        let setups: Vec<_> = rings.iter().map(|ring| ring.setup).collect();
        self.slot.activate(&self.memory, features | MODERN, &setups).unwrap();
        rings
    }
    /// Kicks a queue and waits until `ring` has a used chain.
    pub fn run(&self, queue: u16, ring: &mut Ring) -> (u32, u32) {
        self.slot.kick(queue);
        let mut used = None;
        self.interrupts.wait_until(|| {
            used = used.or_else(|| ring.next_used());
            used.is_some()
        });
        used.unwrap()
    }
    /// Waits until the device stops because of a violation, which is returned.
    pub fn offence(&self) -> crate::virtio::Broken {
        self.interrupts.wait_until(|| self.slot.link().needs_reset());
        self.slot.link().last_offence().unwrap().what
    }
    /// Resets it, however long that takes.
    pub fn reset(&mut self) {
        let slot = &mut self.slot;
        self.interrupts.wait_until(|| slot.reset());
    }
    /// Writes into a buffer.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.view().write_slice(bytes, GuestAddress(at)).unwrap();
    }
    /// Reads from a buffer.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}
