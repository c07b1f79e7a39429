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

/// Whether [`prepare`] has run, and how many devices there may be.
static PREPARED: Single<Option<usize>> = Single::new(None);

/// Makes devices reachable and gives them the pool, once; how many there may be.
///
/// # Errors
/// When there is no memory for the pool.
pub fn prepare(kernel: &mut Kernel) -> Result<usize, DeviceError> {
    // SAFETY: one thread, and handlers know nothing of it.
    let prepared = unsafe { PREPARED.get() };
    if let Some(count) = *prepared {
        return Ok(count);
    }
    let count = Current::attach_devices(&mut kernel.memory, kernel.cmdline);
    if count != 0 {
        let first = kernel.memory.frames.allocate_run(POOL_PAGES).ok_or(DeviceError::OutOfMemory)?;
        let window = direct_map(first) as *mut u8;
        // SAFETY: a run of frames that was just allocated, and that the direct map maps.
        let given = unsafe { POOL.give(window, first.0 * PAGE_SIZE as u64, POOL_PAGES as usize) };
        given.map_err(|_| DeviceError::OutOfMemory)?;
    }
    *prepared = Some(count);
    Ok(count)
}

/// The first device of a kind.
///
/// # Errors
/// When there is none.
pub fn find(kernel: &mut Kernel, kind: DeviceType) -> Result<DeviceTransport, DeviceError> {
    let count = prepare(kernel)?;
    open(&kernel.memory, count, kind)
}

/// As [`find`], after [`prepare`] said how many devices there may be.
///
/// # Errors
/// As there.
pub fn open(memory: &Memory, count: usize, kind: DeviceType) -> Result<DeviceTransport, DeviceError> {
    let found = (0..count).find_map(|number| Current::device(memory, number, kind));
    found.ok_or(DeviceError::Absent)
}
