//! `paravane_virtio_op`: virtio devices by hypercall and event channel. Specified in `docs/virtio.md`.
//!
//! What the devices are is `crate::virtio`'s; what a domain holds for them is `domain::devices`'. Here the
//! guest's arguments are checked, and it is told. Activation, by far the longest, is a file of its own.

mod activate;
#[cfg(test)]
mod tests;

use paravane_abi::errno::Errno;
use paravane_abi::virtio::*;

use super::{HypercallResult, done, low32, spend};
use crate::pv::devices::PvDevice;
use crate::pv::domain::{DOMID, PvDomain};
use crate::virtio::MAX_CONFIG;

/// paravane_virtio_op(operation, argument).
pub fn virtio_op(d: &mut PvDomain, args: [u64; 6]) -> HypercallResult {
    let [operation, argument, ..] = args;
    match low32(operation) {
        VIRTIOP_LIST => list(d, argument),
        VIRTIOP_DESCRIBE => {
            let mut op: VirtioDescribe = d.read_guest_obj(argument)?;
            op.entry = device(d, op.device)?.entry();
            d.write_guest_obj(argument, &op)?;
            done(0)
        }
        VIRTIOP_ACTIVATE => activate::activate(d, args),
        VIRTIOP_CONFIG_READ => config_read(d, argument),
        VIRTIOP_CONFIG_WRITE => config_write(d, argument),
        VIRTIOP_RESET => {
            let op: VirtioDevice = d.read_guest_obj(argument)?;
            reset(d, op.device)
        }
        VIRTIOP_STATUS => {
            let mut op: VirtioStatus = d.read_guest_obj(argument)?;
            let entry = device(d, op.device)?.entry();
            (op.status, op.generation) = (entry.status, entry.generation);
            d.write_guest_obj(argument, &op)?;
            done(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn device(d: &PvDomain, id: u32) -> Result<&PvDevice, Errno> {
    d.virtio.get(id).ok_or(Errno::ENODEV)
}

fn list(d: &mut PvDomain, argument: u64) -> HypercallResult {
    let mut op: VirtioList = d.read_guest_obj(argument)?;
    let room = usize::try_from(op.count).unwrap_or(usize::MAX);
    for (offset, device) in (0u64..).step_by(4).zip(d.virtio.iter().take(room)) {
        let to = op.kinds.checked_add(offset).ok_or(Errno::EFAULT)?;
        d.write_guest_obj(to, &device.slot.info().kind)?;
    }
    op.version = u32::from(VIRTIO_OP_VERSION);
    op.count = u32::try_from(d.virtio.len()).map_err(|_| Errno::EINVAL)?;
    d.write_guest_obj(argument, &op)?;
    done(0)
}

fn config_read(d: &mut PvDomain, argument: u64) -> HypercallResult {
    let mut op: VirtioConfig = d.read_guest_obj(argument)?;
    let device = device(d, op.device)?;
    let (config, generation) = device.config();
    op.generation = generation;
    let (from, len) = (op.offset as usize, op.len as usize);
    let end = from.checked_add(len).ok_or(Errno::EINVAL)?;
    d.write_guest(op.buffer, config.bytes().get(from..end).ok_or(Errno::EINVAL)?)?;
    d.write_guest_obj(argument, &op)?;
    done(0)
}

fn config_write(d: &mut PvDomain, argument: u64) -> HypercallResult {
    let mut op: VirtioConfig = d.read_guest_obj(argument)?;
    device(d, op.device)?;
    let mut bytes = [0; MAX_CONFIG];
    let part = bytes.get_mut(..op.len as usize).ok_or(Errno::EINVAL)?;
    d.read_guest(op.buffer, part)?;
    let device = d.virtio.get_mut(op.device).ok_or(Errno::ENODEV)?;
    if !device.slot.write_config(op.offset as usize, part) {
        return Err(Errno::EINVAL);
    }
    op.generation = device.entry().generation;
    d.write_guest_obj(argument, &op)?;
    done(0)
}

/// Stops a device, or goes on stopping it.
fn reset(d: &mut PvDomain, id: u32) -> HypercallResult {
    if device(d, id)?.slot.is_active() {
        // Threads end: enough for one entry.
        spend(d, u64::MAX);
    }
    let device = d.virtio.get_mut(id).ok_or(Errno::ENODEV)?;
    if !device.slot.reset() {
        return Err(Errno::EAGAIN);
    }
    give_back(d, id);
    done(0)
}

/// Takes back from a device that does no work what its activation gave it.
fn give_back(d: &mut PvDomain, id: u32) {
    let Some(device) = d.virtio.get_mut(id) else { return };
    for (first, count) in std::mem::take(&mut device.held) {
        d.mmu.put_writable_run(first, count);
    }
    let mut ports = [0; VIRTIO_MAX_QUEUES + 1];
    ports.iter_mut().zip(device.ports.all()).for_each(|(slot, port)| *slot = port);
    device.ports.set(&[], 0);
    for port in ports.into_iter().filter(|&port| port != 0) {
        close(d, port);
    }
    publish(d, id);
}

fn close(d: &mut PvDomain, port: u32) {
    // A port that the table names is bound, and has a bit.
    let _ = d.events.close(port, DOMID);
    let _ = d.upcall.forget(&d.memory, port);
}

fn publish(d: &mut PvDomain, id: u32) {
    if let Err(e) = d.virtio.publish(&d.memory, id) {
        d.kill(e);
    }
}

/// Publishes what devices have changed, then says so to the guest.
pub fn service(d: &mut PvDomain) {
    if !d.virtio.has_news() {
        return;
    }
    let mut from = 0;
    while let Some(id) = d.virtio.next_news(from) {
        publish(d, id);
        let port = d.virtio.get(id).map_or(0, |device| device.ports.config());
        if port != 0
            && let Err(e) = d.upcall.raise(&d.memory, port)
        {
            d.kill(e);
        }
        from = id.saturating_add(1);
    }
}
