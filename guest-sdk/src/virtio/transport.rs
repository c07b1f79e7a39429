//! The paravirtual transport: collects what a driver sets up, and puts it into effect by one hypercall.

use core::fmt;

use paravane_abi::Errno;
use paravane_abi::event::{EVTCHNOP_SEND, EvtchnSend};
use paravane_abi::hypercall::{EVENT_CHANNEL_OP, PARAVANE_VIRTIO_OP, SCHED_OP};
use paravane_abi::sched::{SCHEDOP_POLL, SchedPoll};
use paravane_abi::virtio::{
    VIRTIO_MAX_QUEUES, VIRTIO_MAX_REGIONS, VIRTIOP_ACTIVATE, VIRTIOP_CONFIG_WRITE, VIRTIOP_RESET,
    VirtioActivate, VirtioConfig, VirtioDevice, VirtioQueue, VirtioRegion,
};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::pool::{POOL, Pool};
use super::rings::Rings;
use super::table::Device;
use crate::event::{self, Handler, Port};
use crate::hypercall::{Hypercalls, Hypervisor};
use crate::memory::{Memory, Pfn};
use crate::time;

const QUEUES: usize = VIRTIO_MAX_QUEUES;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
/// How often, and how long each time, to wait for a device that is stopping.
const RESET_TRIES: u32 = 100;
const RESET_WAIT_NS: u64 = 100_000_000;

/// Why a device cannot be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsuitable {
    /// `virtio-drivers` knows no device of this type.
    Kind(u32),
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "no virtio device of type {kind} is known"),
        }
    }
}

/// A transport that can delay interrupts.
pub trait Interrupts: Transport {
    /// Requests an interrupt once `more` buffers of a queue are used beyond the `taken` that the driver has taken
    /// back since the queue was set up (modulo 2^16). False if they are used already: then no interrupt will come.
    fn interrupt_after(&self, queue: u16, more: u16, taken: u16) -> bool;
}

/// A device of the table, for the drivers of `virtio-drivers`.
///
/// The device can access the pages of the pool only. Its interrupts are events: the handler is called with the
/// queue's port, or with the configuration port after a change of the configuration.
///
/// A driver does not report that its device could not be started; [`Device::status`] is 0 then, and the log has the
/// reason. Dropping the transport, or unsetting a queue of an active device, resets it.
pub struct PvTransport<C: Hypercalls = Hypervisor> {
    calls: C,
    device: Device,
    kind: DeviceType,
    memory: Memory,
    pool: &'static Pool,
    handler: Handler,
    /// The status that the driver set; for an active device the table's status counts.
    status: DeviceStatus,
    features: u64,
    queues: [VirtioQueue; QUEUES],
    rings: [Option<Rings>; QUEUES],
    config_port: Port,
    active: bool,
    seen_generation: u32,
}

impl PvTransport {
    /// A transport for `device` over [`POOL`], with a handler of its events.
    ///
    /// # Errors
    /// When `virtio-drivers` does not know the type of the device.
    pub fn new(device: Device, memory: Memory, handler: Handler) -> core::result::Result<Self, Unsuitable> {
        Self::with(Hypervisor, device, memory, &POOL, handler)
    }
}

impl<C: Hypercalls> PvTransport<C> {
    /// As [`PvTransport::new`], with a given hypervisor and pool.
    ///
    /// # Errors
    /// As for [`PvTransport::new`].
    pub fn with(
        calls: C,
        device: Device,
        memory: Memory,
        pool: &'static Pool,
        handler: Handler,
    ) -> core::result::Result<Self, Unsuitable> {
        let kind = DeviceType::try_from(device.kind()).map_err(|_| Unsuitable::Kind(device.kind()))?;
        Ok(Self {
            calls,
            device,
            kind,
            memory,
            pool,
            handler,
            status: DeviceStatus::empty(),
            features: 0,
            queues: [VirtioQueue::default(); QUEUES],
            rings: [None; QUEUES],
            config_port: Port(0),
            active: false,
            seen_generation: device.generation(),
        })
    }

    /// Makes the one call, and sets the handlers of the ports.
    fn activate(&mut self) -> core::result::Result<(), Errno> {
        let mut regions = [VirtioRegion::default(); VIRTIO_MAX_REGIONS];
        let region_count = regions_of(self.pool, &self.memory, &mut regions)?;
        let used = self.queues.iter().rposition(|queue| queue.size != 0).map_or(0, |last| last + 1);
        let mut op = VirtioActivate {
            device: self.device.id(),
            kind: self.device.kind(),
            features: self.features,
            queues: self.queues.as_mut_ptr().addr() as u64,
            regions: regions.as_ptr().addr() as u64,
            queue_count: used as u32,
            region_count: region_count as u32,
            ..VirtioActivate::default()
        };
        // SAFETY: the structure of this operation, with as many queues and regions as it says. The device gets the
        // pool's pages, which only devices use, by the promise of `Pool::give`.
        unsafe { call(&mut self.calls, PARAVANE_VIRTIO_OP, VIRTIOP_ACTIVATE, &mut op) }?;
        self.active = true;
        self.config_port = Port(op.config_port);
        // SAFETY: references to initialised structures that the hypervisor has written to.
        self.queues.iter_mut().for_each(|q| *q = unsafe { (&raw const *q).read_volatile() });
        for port in self.ports() {
            event::handle(port, self.handler);
        }
        let event_idx = self.features & EVENT_IDX != 0;
        for (rings, queue) in self.rings.iter_mut().zip(&self.queues).filter(|(_, queue)| queue.size != 0) {
            *rings = Rings::new(self.pool, queue.size, queue.driver, queue.device, event_idx);
        }
        Ok(())
    }

    /// The ports of an active device.
    fn ports(&self) -> impl Iterator<Item = Port> + use<C> {
        let queues = self.queues;
        let config = self.config_port;
        queues.into_iter().filter(|queue| queue.size != 0).map(|queue| Port(queue.port)).chain([config])
    }

    /// Stops the device and waits until it has stopped. If it does not stop, its memory is never reused.
    fn reset(&mut self) {
        if self.active {
            let ports = self.ports();
            ports.for_each(event::mask);
            if let Err(errno) = self.stop() {
                self.pool.keep_all();
                log::error!(
                    "virtio device {} does not stop ({errno}): it keeps its memory",
                    self.device.id()
                );
            }
            for port in self.ports() {
                event::take(port);
            }
        }
        self.active = false;
        self.status = DeviceStatus::empty();
        self.queues = [VirtioQueue::default(); QUEUES];
        self.rings = [None; QUEUES];
    }

    fn stop(&mut self) -> core::result::Result<(), Errno> {
        for _ in 0..RESET_TRIES {
            let mut op = VirtioDevice { device: self.device.id() };
            // SAFETY: the structure of this operation; a driver that resets its device does not wait for it.
            match unsafe { call(&mut self.calls, PARAVANE_VIRTIO_OP, VIRTIOP_RESET, &mut op) } {
                Err(Errno::EAGAIN) => self.await_config_port()?,
                answer => return answer.map(drop),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Waits for an event of the configuration port, which is masked, for a limited time.
    fn await_config_port(&mut self) -> core::result::Result<(), Errno> {
        let port = self.config_port;
        let mut op = SchedPoll {
            ports: (&raw const port).addr() as u64,
            nr_ports: 1,
            timeout: time::now().saturating_add(RESET_WAIT_NS),
            ..SchedPoll::default()
        };
        // SAFETY: the structure of this operation, with one port.
        unsafe { call(&mut self.calls, SCHED_OP, SCHEDOP_POLL, &mut op) }?;
        event::take(port);
        Ok(())
    }
}

/// Makes a hypercall of the form `(operation, address of a structure)`.
///
/// # Safety
/// `argument` is the structure that the operation takes, and as for [`Hypercalls::call`].
unsafe fn call<T>(
    calls: &mut impl Hypercalls,
    number: u64,
    op: u32,
    argument: &mut T,
) -> core::result::Result<u64, Errno> {
    let argument = (&raw mut *argument).addr() as u64;
    // SAFETY: the caller's promise.
    Errno::from_result(unsafe { calls.call(number, [u64::from(op), argument, 0, 0, 0, 0]) })
}

/// Writes the pool's frames as runs of machine frames; returns how many runs.
fn regions_of(
    pool: &Pool,
    memory: &Memory,
    regions: &mut [VirtioRegion; VIRTIO_MAX_REGIONS],
) -> core::result::Result<usize, Errno> {
    const PAGE: u64 = virtio_drivers::PAGE_SIZE as u64;
    let mut count = 0;
    for address in (0..pool.pages() as u64).map(|page| pool.address() + page * PAGE) {
        let mfn = memory.mfn(Pfn(address / PAGE)).ok_or(Errno::EINVAL)?.0;
        match regions[..count].last_mut() {
            Some(region) if region.mfn + region.frames == mfn => region.frames += 1,
            _ => {
                *regions.get_mut(count).ok_or(Errno::E2BIG)? = VirtioRegion { address, mfn, frames: 1 };
                count += 1;
            }
        }
    }
    Ok(count)
}

impl<C: Hypercalls> Interrupts for PvTransport<C> {
    fn interrupt_after(&self, queue: u16, more: u16, taken: u16) -> bool {
        let rings = self.rings.get(usize::from(queue)).and_then(Option::as_ref);
        rings.is_none_or(|rings| rings.interrupt_after(more, taken))
    }
}

impl<C: Hypercalls> Transport for PvTransport<C> {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.device.features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.features = features;
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        if queue < self.device.queues() { u32::from(self.device.queue_size()) } else { 0 }
    }

    fn notify(&mut self, queue: u16) {
        let index = usize::from(queue);
        if !self.rings.get_mut(index).and_then(Option::as_mut).is_some_and(Rings::wants_kick) {
            return;
        }
        let mut op = EvtchnSend { port: self.queues[index].port };
        // SAFETY: the structure of this operation. It does not fail: the port is the device's.
        let _ = unsafe { call(&mut self.calls, EVENT_CHANNEL_OP, EVTCHNOP_SEND, &mut op) };
    }

    fn get_status(&self) -> DeviceStatus {
        if self.active { DeviceStatus::from_bits_retain(self.device.status()) } else { self.status }
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            return self.reset();
        }
        self.status = status;
        if status.contains(DeviceStatus::DRIVER_OK)
            && !self.active
            && let Err(errno) = self.activate()
        {
            self.status = DeviceStatus::FAILED;
            log::error!("virtio device {} cannot be started: {errno}", self.device.id());
        }
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        let (Some(slot), Ok(size)) = (self.queues.get_mut(usize::from(queue)), u16::try_from(size)) else {
            return;
        };
        *slot = VirtioQueue { size, descriptors, driver, device, ..VirtioQueue::default() };
    }

    /// A single queue of an active device cannot be stopped: the whole device is reset.
    fn queue_unset(&mut self, queue: u16) {
        if self.active {
            self.reset();
        } else if let Some(slot) = self.queues.get_mut(usize::from(queue)) {
            *slot = VirtioQueue::default();
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.queues.get(usize::from(queue)).is_some_and(|slot| slot.size != 0)
    }

    /// There is nothing to acknowledge; a driver detects a queue's interrupt by looking at the queue.
    fn ack_interrupt(&mut self) -> InterruptStatus {
        const NEEDS_RESET: u32 = DeviceStatus::DEVICE_NEEDS_RESET.bits();
        let generation = self.device.generation();
        let changed = core::mem::replace(&mut self.seen_generation, generation) != generation
            || self.active && self.device.status() & NEEDS_RESET != 0;
        let config =
            if changed { InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT } else { InterruptStatus::empty() };
        InterruptStatus::QUEUE_INTERRUPT | config
    }

    fn read_config_generation(&self) -> u32 {
        self.device.generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        if self.device.copy_config(offset, value.as_mut_bytes()) {
            Ok(value)
        } else {
            Err(Error::ConfigSpaceTooSmall)
        }
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        let bytes = value.as_bytes();
        let mut op = VirtioConfig {
            device: self.device.id(),
            offset: u32::try_from(offset).map_err(|_| Error::ConfigSpaceTooSmall)?,
            len: u32::try_from(bytes.len()).map_err(|_| Error::ConfigSpaceTooSmall)?,
            buffer: bytes.as_ptr().addr() as u64,
            ..VirtioConfig::default()
        };
        // SAFETY: the structure of this operation, with a buffer that the call reads.
        match unsafe { call(&mut self.calls, PARAVANE_VIRTIO_OP, VIRTIOP_CONFIG_WRITE, &mut op) } {
            Ok(_) => Ok(()),
            Err(Errno::EINVAL) => Err(Error::ConfigSpaceTooSmall),
            Err(_) => Err(Error::IoError),
        }
    }
}

impl<C: Hypercalls> Drop for PvTransport<C> {
    fn drop(&mut self) {
        self.reset();
    }
}
