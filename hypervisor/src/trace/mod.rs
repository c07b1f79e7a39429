//! Every exit of a run, written to a file while the guest runs, and read again.
//!
//! * [`record`]: a [`Recorder`](record::Recorder) observes the loop of a vCPU. It fills fixed buffers; a thread of its
//!   own encodes them and writes the file ([`writer`]). When that thread cannot keep up, exits are left out of the
//!   file, and counted there.
//! * [`mod@format`]: the file, and the only place that knows how it is encoded.
//! * [`reader`]: the file again, one exit after the other, up to the end or to the first damage.
//! * [`filter`], [`summary`], [`timeline`], [`chrome`]: what is made of it. All of them take one exit at a time, so
//!   that a file may be larger than memory.
//!
//! Threads: a recorder belongs to its vCPU's thread. Nothing here is signal-safe.
//!
//! What may not be done here: allocating, encoding, logging or waiting on the vCPU's thread between two exits;
//! believing anything that a file says.

#![forbid(unsafe_code)]

pub mod chrome;
pub mod filter;
pub mod format;
pub mod places;
pub mod reader;
pub mod record;
mod ring;
pub mod summary;
pub mod timeline;
mod writer;

/// An exit as a trace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Which vCPU.
    pub vcpu: u32,
    /// When the guest was left: nanoseconds of system time.
    pub left: u64,
    /// Nanoseconds that the host worked on it.
    pub worked: u64,
    /// Nanoseconds for which the guest waited, before it was entered again.
    pub waited: u64,
    /// Where the guest was, see [`Runner::place`](crate::monitor::Runner::place).
    pub place: u64,
    /// Its cause: an index of [`Header::causes`](format::Header::causes).
    pub cause: u16,
    /// The value that the guest wrote to the mark port, if that is what the exit was.
    pub mark: Option<u8>,
}

/// What the vCPU's thread stores for each exit.
const _: () = assert!(size_of::<Exit>() == 40);

impl Exit {
    /// When the guest was entered again.
    pub fn entered(&self) -> u64 {
        self.left.saturating_add(self.worked).saturating_add(self.waited)
    }
}

#[cfg(test)]
mod tests;
