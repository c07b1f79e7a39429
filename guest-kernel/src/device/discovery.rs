//! Finding devices, and the memory that they may see.

use paravane_guest::virtio::POOL;
use paravane_guest::virtio::drivers::PAGE_SIZE;
use paravane_guest::virtio::drivers::transport::DeviceType;

use super::error::DeviceError;
use crate::kernel::{Kernel, Memory};
use crate::machine::{Current, Machine};
use crate::memory::direct_map;
use crate::single::Single;

/// Pages of the memory that devices may see: 4 MiB, taken when the first device is asked for.
const POOL_PAGES: u64 = 1024;

/// How drivers reach their devices.
pub type DeviceTransport = <Current as Machine>::Transport;

/// How many devices there may be; `None` until [`prepare`] has run.
static PREPARED: Single<Option<usize>> = Single::new(None);

/// Makes devices reachable and gives them the pool, on the first call; returns how many devices there may be.
///
/// # Errors
/// When there is no memory for the pool.
pub fn prepare(kernel: &mut Kernel) -> Result<usize, DeviceError> {
    // SAFETY: there is one thread, and interrupt handlers do not use it.
    let prepared = unsafe { PREPARED.get() };
    if let Some(count) = *prepared {
        return Ok(count);
    }
    let count = Current::attach_devices(&mut kernel.memory, kernel.cmdline);
    if count != 0 {
        let first = kernel.memory.frames.allocate_run(POOL_PAGES).ok_or(DeviceError::OutOfMemory)?;
        let window = direct_map(first) as *mut u8;
        // SAFETY: the run of frames was just allocated, and the direct map maps it.
        let given = unsafe { POOL.give(window, first.0 * PAGE_SIZE as u64, POOL_PAGES as usize) };
        given.map_err(|_| DeviceError::OutOfMemory)?;
    }
    *prepared = Some(count);
    Ok(count)
}

/// The first device of a kind.
///
/// # Errors
/// When there is none, or no memory for the pool.
pub fn find(kernel: &mut Kernel, kind: DeviceType) -> Result<DeviceTransport, DeviceError> {
    let count = prepare(kernel)?;
    open(&kernel.memory, count, kind)
}

/// The first device of a kind, of the `count` that [`prepare`] returned.
///
/// # Errors
/// When there is none.
pub fn open(memory: &Memory, count: usize, kind: DeviceType) -> Result<DeviceTransport, DeviceError> {
    let found = (0..count).find_map(|number| Current::device(memory, number, kind));
    found.ok_or(DeviceError::Absent)
}
