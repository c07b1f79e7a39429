//! Pipes: bytes on their way from writers to readers.
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;

use super::abi::Errno;

/// Bytes that wait in a pipe at most.
pub const CAPACITY: usize = 16 << 10;
/// Bytes that have room in it from the start.
pub const ALWAYS: usize = 64;
/// Writes of up to this many bytes are not divided (POSIX's `PIPE_BUF`).
pub const ATOMIC: usize = 4096;

/// A pipe.
#[derive(Debug)]
pub struct Pipe {
    bytes: VecDeque<u8>,
    /// Open ends to read from.
    pub readers: u32,
    /// Open ends to write to.
    pub writers: u32,
}

/// What can be done with a pipe now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// That many bytes were moved; 0 is the end.
    Moved(usize),
    /// Nothing until the other side does something.
    Wait,
    /// Nobody will ever read.
    Broken,
    /// There is no memory for the bytes.
    NoMemory,
}

impl Pipe {
    /// A pipe with an end of each kind.
    ///
    /// # Errors
    /// When there is no memory for the few bytes that always have room.
    pub fn new() -> Result<Self, Errno> {
        let mut bytes = VecDeque::new();
        bytes.try_reserve_exact(ALWAYS).map_err(|_| Errno::NoMem)?;
        Ok(Self { bytes, readers: 1, writers: 1 })
    }

    /// Shows what is there first, which stays there.
    pub fn look(&self, into: &mut [u8]) -> Flow {
        let count = self.bytes.len().min(into.len());
        match count {
            0 if self.writers > 0 && !into.is_empty() => Flow::Wait,
            _ => {
                let (first, second) = self.bytes.as_slices();
                let cut = first.len().min(count);
                into[..cut].copy_from_slice(&first[..cut]);
                into[cut..count].copy_from_slice(&second[..count - cut]);
                Flow::Moved(count)
            }
        }
    }

    /// Takes that many of the bytes that were seen.
    pub fn take(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Whether so many more bytes need memory.
    pub fn grows(&self, count: usize) -> bool {
        self.bytes.capacity() - self.bytes.len() < count.min(CAPACITY - self.bytes.len())
    }

    /// Writes what there is room for: all of a short write, or nothing.
    pub fn write(&mut self, from: &[u8]) -> Flow {
        let room = CAPACITY - self.bytes.len();
        let count = match from.len() {
            _ if self.readers == 0 => return Flow::Broken,
            len if len <= ATOMIC && len > room => return Flow::Wait,
            _ if room == 0 => return Flow::Wait,
            len => len.min(room),
        };
        let (len, needed) = (self.bytes.len(), self.bytes.len() + count);
        if needed > self.bytes.capacity() {
            let capacity = needed.next_power_of_two().min(CAPACITY);
            if self.bytes.try_reserve_exact(capacity - len).is_err() {
                return Flow::NoMemory;
            }
        }
        self.bytes.extend(&from[..count]);
        Flow::Moved(count)
    }
}
