//! The receive queue: empty buffers, each of which takes as much input as is available and fits.

use crate::backend::console::backend::Backend;
use crate::machine::device_memory::DeviceMemory;
use crate::virtio::{Broken, Chain, Queue};

/// The most buffers that one round fills.
const BATCH: usize = 64;
/// The most bytes of one read.
const CHUNK: usize = 4096;

/// The queue, and a buffer that waits for input.
pub(super) struct Receiver<'m> {
    pub(super) queue: Queue,
    memory: &'m DeviceMemory,
    empty: Option<Chain>,
}

impl<'m> Receiver<'m> {
    pub(super) fn new(queue: Queue, memory: &'m DeviceMemory) -> Self {
        Self { queue, memory, empty: None }
    }

    /// Whether the guest has a buffer for input.
    pub(super) fn has_room(&self) -> bool {
        self.empty.is_some()
    }

    /// Passes input to the guest, up to a limit. Returns whether there is more to do now.
    pub(super) fn round(&mut self, backend: &mut dyn Backend) -> Result<bool, Broken> {
        self.queue.refuse_kicks()?;
        let (mut more, mut chunk) = (true, [0; CHUNK]);
        for _ in 0..BATCH {
            let Some(chain) = self.empty.take().map_or_else(|| self.next(), |chain| Ok(Some(chain)))? else {
                more = self.queue.ask_for_kicks()?;
                break;
            };
            let room = usize::try_from(chain.writable_len()).unwrap_or(CHUNK).min(CHUNK);
            let count = backend.read(chunk.get_mut(..room).unwrap_or_default()).min(room);
            if count == 0 {
                (self.empty, more) = (Some(chain), false);
                break;
            }
            let typed = chunk.get(..count).unwrap_or_default();
            let written = self.memory.scatter(chain.writable(), 0, typed);
            self.queue.give_back(chain.head(), u32::try_from(written).map_err(|_| Broken::Bug)?)?;
        }
        self.queue.notify()?;
        Ok(more)
    }

    fn next(&mut self) -> Result<Option<Chain>, Broken> {
        let Some(chain) = self.queue.take()? else { return Ok(None) };
        if !chain.readable().is_empty() {
            return Err(Broken::Request("a console input buffer for the device to read"));
        }
        if chain.writable().is_empty() {
            return Err(Broken::Request("a console input buffer without room"));
        }
        Ok(Some(chain))
    }
}
