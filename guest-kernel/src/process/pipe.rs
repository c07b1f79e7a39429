//! Pipes: bytes on their way from writers to readers.
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;

/// Bytes that wait in a pipe at most.
pub const CAPACITY: usize = 16 << 10;
/// Writes of up to this many bytes are not divided (POSIX's `PIPE_BUF`).
pub const ATOMIC: usize = 4096;

/// A pipe.
#[derive(Debug, Default)]
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
    pub const fn new() -> Self {
        Self { bytes: VecDeque::new(), readers: 1, writers: 1 }
    }

    /// Reads what is there.
    pub fn read(&mut self, into: &mut [u8]) -> Flow {
        let count = self.bytes.len().min(into.len());
        match count {
            0 if self.writers > 0 && !into.is_empty() => Flow::Wait,
            _ => {
                let (first, second) = self.bytes.as_slices();
                let cut = first.len().min(count);
                into[..cut].copy_from_slice(&first[..cut]);
                into[cut..count].copy_from_slice(&second[..count - cut]);
                self.bytes.drain(..count);
                Flow::Moved(count)
            }
        }
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
        if self.bytes.try_reserve(count).is_err() {
            return Flow::NoMemory;
        }
        self.bytes.extend(&from[..count]);
        Flow::Moved(count)
    }
}
