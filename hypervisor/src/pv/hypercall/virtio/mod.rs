//! `paravane_virtio_op`: virtio devices by hypercall and event channel. Specified in `docs/virtio.md`.
//!
//! `crate::virtio` has the devices, `pv::devices` what a domain holds for them. Here the guest's arguments are checked,
//! and results are written back to it. Activation, by far the longest, is a file of its own.

mod activate;
#[cfg(test)]
mod tests;

use paravane_abi::errno::Errno;
use paravane_abi::virtio::*;

use super::{Call, HypercallResult, done};
use crate::pv::context::PvContext;
use crate::pv::devices::PvDevice;
use crate::pv::domain::DOMID;
use crate::pv::guest_pointer::{GuestPtr, GuestSlice};
use crate::virtio::MAX_CONFIG;

/// paravane_virtio_op(operation, argument).
pub fn virtio_op(call: &mut Call<'_>) -> HypercallResult {
    let args = call.args;
    let [operation, argument, ..] = args;
    match operation.low32() {
        VIRTIOP_LIST => list(call, argument.pointer()),
        VIRTIOP_DESCRIBE => {
            let mut op: VirtioDescribe = call.guest().read(argument.pointer())?;
            op.entry = device(call, op.device)?.entry();
            call.guest().write(argument.pointer(), &op)?;
            done(0)
        }
        VIRTIOP_ACTIVATE => activate::activate(call),
        VIRTIOP_CONFIG_READ => config_read(call, argument.pointer()),
        VIRTIOP_CONFIG_WRITE => config_write(call, argument.pointer()),
        VIRTIOP_RESET => {
            let op: VirtioDevice = call.guest().read(argument.pointer())?;
            reset(call, op.device)
        }
        VIRTIOP_STATUS => {
            let mut op: VirtioStatus = call.guest().read(argument.pointer())?;
            let entry = device(call, op.device)?.entry();
            (op.status, op.generation) = (entry.status, entry.generation);
            call.guest().write(argument.pointer(), &op)?;
            done(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn device<'a>(call: &'a Call<'_>, id: u32) -> Result<&'a PvDevice, Errno> {
    call.domain.virtio.get(id).ok_or(Errno::ENODEV)
}

fn list(call: &mut Call<'_>, argument: GuestPtr<VirtioList>) -> HypercallResult {
    let mut op = call.guest().read(argument)?;
    let room = usize::try_from(op.count).unwrap_or(usize::MAX);
    let kinds = GuestSlice::<u32>::new(op.kinds, op.count.into());
    for (n, device) in (0..).zip(call.domain.virtio.iter().take(room)) {
        call.guest().write(kinds.at(n)?, &device.slot.info().kind)?;
    }
    op.version = u32::from(VIRTIO_OP_VERSION);
    op.count = u32::try_from(call.domain.virtio.len()).map_err(|_| Errno::EINVAL)?;
    call.guest().write(argument, &op)?;
    done(0)
}

fn config_read(call: &mut Call<'_>, argument: GuestPtr<VirtioConfig>) -> HypercallResult {
    let mut op = call.guest().read(argument)?;
    let device = device(call, op.device)?;
    let (config, generation) = device.config();
    op.generation = generation;
    let (from, len) = (op.offset as usize, op.len as usize);
    let end = from.checked_add(len).ok_or(Errno::EINVAL)?;
    call.guest()
        .write_slice(GuestPtr::new(op.buffer), config.bytes().get(from..end).ok_or(Errno::EINVAL)?)?;
    call.guest().write(argument, &op)?;
    done(0)
}

fn config_write(call: &mut Call<'_>, argument: GuestPtr<VirtioConfig>) -> HypercallResult {
    let mut op = call.guest().read(argument)?;
    device(call, op.device)?;
    let mut bytes = [0; MAX_CONFIG];
    let part = bytes.get_mut(..op.len as usize).ok_or(Errno::EINVAL)?;
    call.guest().read_slice(GuestPtr::new(op.buffer), part)?;
    let device = call.domain.virtio.get_mut(op.device).ok_or(Errno::ENODEV)?;
    if !device.slot.write_config(op.offset as usize, part) {
        return Err(Errno::EINVAL);
    }
    op.generation = device.entry().generation;
    call.guest().write(argument, &op)?;
    done(0)
}

/// Stops a device, or continues to stop it.
fn reset(call: &mut Call<'_>, id: u32) -> HypercallResult {
    if device(call, id)?.slot.is_active() {
        // Threads end: enough for one entry.
        call.spend(u64::MAX);
    }
    let device = call.domain.virtio.get_mut(id).ok_or(Errno::ENODEV)?;
    if !device.slot.reset() {
        return Err(Errno::EAGAIN);
    }
    give_back(call, id);
    done(0)
}

/// Takes back from a device that does no work what its activation gave it.
fn give_back(call: &mut Call<'_>, id: u32) {
    let Some(device) = call.domain.virtio.get_mut(id) else { return };
    for (first, count) in std::mem::take(&mut device.held) {
        call.domain.mmu.put_writable_run(first, count);
    }
    let mut ports = [0; VIRTIO_MAX_QUEUES + 1];
    ports.iter_mut().zip(device.ports.all()).for_each(|(slot, port)| *slot = port);
    device.ports.set(&[], 0);
    for port in ports.into_iter().filter(|&port| port != 0) {
        close(call, port);
    }
    publish(&mut call.context(), id);
}

fn close(call: &mut Call<'_>, port: u32) {
    // A port that the table names is bound, and has a bit.
    let _ = call.domain.events.close(port, DOMID);
    let _ = call.domain.bells.forget(port);
}

fn publish(cx: &mut PvContext<'_>, id: u32) {
    if let Err(e) = cx.domain.virtio.publish(&cx.domain.memory, id) {
        cx.kill(e);
    }
}

/// Publishes what devices have changed, then says so to the guest.
pub fn service(cx: &mut PvContext<'_>) {
    if !cx.domain.virtio.has_news() {
        return;
    }
    let mut from = 0;
    while let Some(id) = cx.domain.virtio.next_news(from) {
        publish(cx, id);
        let port = cx.domain.virtio.get(id).map_or(0, |device| device.ports.config());
        if port != 0
            && let Err(e) = cx.raise(port)
        {
            cx.kill(e);
        }
        from = id.saturating_add(1);
    }
}
