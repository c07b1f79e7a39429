//! The entropy driver (virtio 1.2, section 5.4): one queue, whose buffers come back filled with random bytes.

use paravane_guest::virtio::drivers::device::common::Feature;
use paravane_guest::virtio::drivers::transport::{DeviceType, Transport};

use super::critical_section::without_interrupts;
use super::discovery::find;
use super::error::DeviceError;
use super::queue::Queue;
use super::slots::Slots;
use super::status::check_started;
use crate::kernel::Kernel;

const QUEUE: u16 = 0;
/// Bytes asked for at once.
const CHUNK: usize = 256;

/// Fills `bytes` from the entropy device, which is set up first and reset afterwards.
///
/// # Errors
/// When there is no device, or it fails.
pub fn fill(kernel: &mut Kernel, bytes: &mut [u8]) -> Result<(), DeviceError> {
    let mut transport = find(kernel, DeviceType::EntropySource)?;
    without_interrupts(|| {
        let mut chunk = Slots::new(1, CHUNK)?;
        let features = transport.begin_init(Feature::VERSION_1 | Feature::RING_EVENT_IDX);
        let mut queue = Queue::<8>::new(&mut transport, QUEUE, features.contains(Feature::RING_EVENT_IDX))?;
        transport.finish_init();
        let filled = check_started(&transport).and_then(|()| {
            bytes.chunks_mut(CHUNK).try_for_each(|part| {
                let mut missing = part.len();
                while missing != 0 {
                    let buffer = chunk.get_mut(0);
                    // SAFETY: nothing else uses the buffer until it is taken.
                    unsafe { queue.put(0, &[], &mut [&mut buffer[..missing]]) }?;
                    queue.kick(&mut transport);
                    queue.wait(&mut transport, 1)?;
                    queue.peek()?;
                    // SAFETY: the same buffer.
                    let count = unsafe { queue.take(&[], &mut [&mut buffer[..missing]]) }? as usize;
                    // A device may return fewer bytes than requested, but neither none nor more.
                    if !(1..=missing).contains(&count) {
                        return Err(DeviceError::Failed(paravane_guest::virtio::drivers::Error::IoError));
                    }
                    let start = part.len() - missing;
                    part[start..start + count].copy_from_slice(&buffer[..count]);
                    missing -= count;
                }
                Ok(())
            })
        });
        // Stops the device before its memory is freed.
        transport.queue_unset(QUEUE);
        filled
    })
}

/// Gives the device a buffer that it may only read, which breaks the device's rules; then resets it.
///
/// # Errors
/// [`DeviceError::NeedsReset`] if the device behaves as it should.
pub fn misuse(kernel: &mut Kernel) -> Result<(), DeviceError> {
    let mut transport = find(kernel, DeviceType::EntropySource)?;
    without_interrupts(|| {
        let chunk = Slots::new(1, CHUNK)?;
        let features = transport.begin_init(Feature::VERSION_1 | Feature::RING_EVENT_IDX);
        let mut queue = Queue::<8>::new(&mut transport, QUEUE, features.contains(Feature::RING_EVENT_IDX))?;
        transport.finish_init();
        let outcome = check_started(&transport).and_then(|()| {
            // SAFETY: nothing else uses the buffer, and it outlives the reset below.
            unsafe { queue.put(0, &[chunk.get(0)], &mut []) }?;
            queue.kick(&mut transport);
            queue.wait(&mut transport, 1)
        });
        transport.queue_unset(QUEUE);
        outcome
    })
}
