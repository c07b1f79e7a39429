//! VIRTIOP_ACTIVATE: a device from nothing to work, in one call.
//!
//! Everything is checked, then everything is taken (frames, event channels), then the reply is written, and only
//! then the device starts; what fails on the way gives back all that was taken.
//!
//! Not interrupted between frames: as many as there may be are held in a fraction of what one entry may take, and
//! a call that the guest could change in the middle would have to remember what it holds. So nothing may be
//! done here for each frame but what [`hold`] does for a run of them.

use paravane_abi::errno::Errno;
use paravane_abi::event::EvtchnPort;
use paravane_abi::virtio::*;

use super::{HypercallResult, close, done, publish};
use crate::machine::device_memory::{DeviceMemory, MemoryError, Region};
use crate::machine::memory::{Mfn, PAGE_SIZE};
use crate::mmu::direct::Stop;
use crate::pv::event::{Binding, HostService};
use crate::pv::guest_pointer::GuestSlice;
use crate::pv::hypercall::{Call, Outcome, PER_OPERATION};
use crate::virtio::{ActivateError, Queue, QueueSetup, Slot};

/// What the guest asks for.
struct Request {
    id: u32,
    features: u64,
    queues: Vec<VirtioQueue>,
    regions: Vec<Region>,
}

/// Runs of frames that are held: the first of each, and how many.
#[derive(Default)]
struct Held(Vec<(Mfn, u64)>);

/// Why frames are not held.
enum Refused {
    Errno(Errno),
    Restart,
}

/// Activates a device.
pub(super) fn activate(call: &mut Call<'_>) -> HypercallResult {
    let [_, argument, ..] = call.args;
    let mut op: VirtioActivate = call.guest().read(argument.pointer())?;
    let request = Request::read(call, &op)?;
    call.spend(request.effort());
    let held = match hold(call, &request.regions) {
        Ok(held) => held,
        Err(Refused::Errno(errno)) => return Err(errno),
        Err(Refused::Restart) => return Ok(Outcome::Again(call.raw())),
    };
    let mut ports = Vec::with_capacity(request.queues.len() + 1);
    let started = start(call, &request, &mut ports, |call, ports, config_port| {
        op.config_port = config_port;
        // Told before it starts, so that nothing can fail after.
        op.status = Slot::ACTIVE;
        let mut queues = request.queues.clone();
        queues.iter_mut().zip(ports).for_each(|(queue, port)| queue.port = *port);
        let places = GuestSlice::new(op.queues, op.queue_count.into());
        for (n, queue) in (0..).zip(&queues) {
            call.guest().write(places.at(n)?, queue)?;
        }
        call.guest().write(argument.pointer(), &op)
    });
    match started {
        Ok(()) => {
            if let Some(device) = call.domain.virtio.get_mut(request.id) {
                device.held = held.0;
            }
            publish(&mut call.context(), request.id);
            done(0)
        }
        Err(errno) => {
            ports.into_iter().filter(|&port| port != 0).for_each(|port| close(call, port));
            let_go(call, held);
            Err(errno)
        }
    }
}

impl Request {
    /// Reads and checks what can be checked without taking anything.
    fn read(call: &Call<'_>, op: &VirtioActivate) -> Result<Self, Errno> {
        let device = super::device(call, op.device)?;
        let info = device.slot.info();
        if info.kind != op.kind {
            return Err(Errno::ENODEV);
        }
        if device.slot.is_active() {
            return Err(Errno::EBUSY);
        }
        if !device.slot.accepts(op.features) {
            return Err(Errno::EOPNOTSUPP);
        }
        if op.queue_count > u32::from(info.queues) {
            return Err(Errno::EINVAL);
        }
        if op.region_count as usize > VIRTIO_MAX_REGIONS {
            return Err(Errno::E2BIG);
        }
        let queues: Vec<VirtioQueue> = read_list(call, GuestSlice::new(op.queues, op.queue_count.into()))?;
        let regions: Vec<VirtioRegion> =
            read_list(call, GuestSlice::new(op.regions, op.region_count.into()))?;
        let regions =
            regions.iter().map(|r| Region { address: r.address, first: Mfn(r.mfn), frames: r.frames });
        let request = Self { id: op.device, features: op.features, queues, regions: regions.collect() };
        request.check_regions()?;
        Ok(request)
    }

    fn check_regions(&self) -> Result<(), Errno> {
        let total = self.regions.iter().try_fold(0u64, |sum, r| sum.checked_add(r.frames));
        if total.is_none_or(|frames| frames > VIRTIO_MAX_REGION_FRAMES) {
            return Err(Errno::E2BIG);
        }
        let placed = |r: &Region| {
            let bytes = r.frames.checked_mul(PAGE_SIZE)?;
            r.address.is_multiple_of(PAGE_SIZE).then(|| r.address.checked_add(bytes)).flatten()
        };
        if self.regions.iter().any(|r| placed(r).is_none()) {
            return Err(Errno::EINVAL);
        }
        // The same frame under two addresses harms nobody; one address for two frames means nothing.
        let mut sorted: Vec<&Region> = self.regions.iter().filter(|r| r.frames > 0).collect();
        sorted.sort_by_key(|r| r.address);
        let overlap = sorted.windows(2).any(|pair| match pair {
            [a, b] => placed(a).is_none_or(|end| end > b.address),
            _ => false,
        });
        if overlap { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Elementary operations for all that the guest decides the number of: at most a quarter of what one entry
    /// may perform.
    fn effort(&self) -> u64 {
        let frames: u64 = self.regions.iter().map(|r| r.frames).sum();
        (self.regions.len() + self.queues.len()) as u64 + frames / PER_OPERATION
    }

    fn setups(&self) -> Vec<QueueSetup> {
        let setup = |q: &VirtioQueue| QueueSetup {
            size: q.size,
            descriptors: q.descriptors,
            driver: q.driver,
            device: q.device,
        };
        self.queues.iter().map(setup).collect()
    }
}

/// Reads all elements.
fn read_list<T>(call: &Call<'_>, list: GuestSlice<T>) -> Result<Vec<T>, Errno>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    (0..list.count()).map(|n| call.guest().read(list.at(n)?)).collect()
}

/// Holds every frame of the regions as writable memory, or none.
fn hold(call: &mut Call<'_>, regions: &[Region]) -> Result<Held, Refused> {
    let mut held = Held::default();
    for &Region { first, frames, .. } in regions.iter().filter(|region| region.frames > 0) {
        let refused = match call.domain.mmu.get_writable_run(
            &call.domain.memory,
            &mut call.domain.log,
            first,
            frames,
        ) {
            Ok(()) => {
                held.0.push((first, frames));
                continue;
            }
            Err(Stop::Refused(_)) => Refused::Errno(Errno::EPERM),
            Err(Stop::Restart) => Refused::Restart,
        };
        let_go(call, held);
        return Err(refused);
    }
    Ok(held)
}

fn let_go(call: &mut Call<'_>, held: Held) {
    held.0.into_iter().for_each(|(first, frames)| call.domain.mmu.put_writable_run(first, frames));
}

/// Binds the ports, writes them to the guest, and starts the device. `ports` are those that were bound, also
/// where it fails: one for each queue, 0 for one that is not used, and last that of the configuration.
fn start(
    call: &mut Call<'_>,
    request: &Request,
    ports: &mut Vec<EvtchnPort>,
    tell: impl FnOnce(&mut Call<'_>, &[EvtchnPort], EvtchnPort) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let memory = DeviceMemory::new(&call.domain.memory, &request.regions).map_err(|e| match e {
        MemoryError::Layout => Errno::EINVAL,
        MemoryError::Frames(_) => Errno::EPERM,
    })?;
    let setups = request.setups();
    let max = super::device(call, request.id)?.slot.info().queue_size;
    if setups.iter().any(|s| s.size != 0 && !Queue::is_possible(s, max, &memory)) {
        return Err(Errno::EINVAL);
    }
    let device = u8::try_from(request.id).map_err(|_| Errno::ENODEV)?;
    for (queue, setup) in (0u8..).zip(&setups) {
        let service = HostService::Queue { device, queue };
        ports.push(if setup.size == 0 { 0 } else { call.domain.events.allocate(Binding::Host(service))? });
    }
    let config = call.domain.events.allocate(Binding::Host(HostService::Config { device }))?;
    let queue_ports = ports.clone();
    ports.push(config);
    tell(call, &queue_ports, config)?;
    // Threads begin: enough for one entry.
    call.spend(u64::MAX);
    let device = call.domain.virtio.get_mut(request.id).ok_or(Errno::ENODEV)?;
    device.ports.set(&queue_ports, config);
    device.slot.activate(&memory, request.features, &setups).map_err(|e| {
        device.ports.set(&[], 0);
        match e {
            ActivateError::Busy => Errno::EBUSY,
            ActivateError::Features => Errno::EOPNOTSUPP,
            ActivateError::Queue(_) => Errno::EINVAL,
            ActivateError::Host(_) => Errno::ENOMEM,
        }
    })
}
