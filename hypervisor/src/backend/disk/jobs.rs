//! The interface for work on a disk that goes on while its device does other things.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use super::buffers::Buffers;

/// What to do to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    Flush,
    Discard,
    /// `unmap`: the host may free the range's storage.
    Zero {
        unmap: bool,
    },
}

/// Work for an image: `len` bytes at byte `offset`, from or to guest memory.
#[derive(Debug)]
pub(crate) struct Job {
    pub op: Op,
    pub offset: u64,
    pub len: u64,
    /// For changes: the data must be on stable storage before the job ends.
    pub sync: bool,
    pub buffers: Buffers,
}

/// A job that has ended.
pub(crate) struct Done {
    pub token: u16,
    pub result: io::Result<()>,
    /// The job's buffers, to be reused.
    pub buffers: Buffers,
}

/// Does jobs, many at a time. Used by one thread.
///
/// Buffers are guest memory, whose mapping the caller must keep until this is dropped; dropping waits for all jobs.
pub(crate) trait Jobs {
    /// Takes a job. [`Jobs::ended`] reports its end with `token`; one job at a time may have a token.
    fn begin(&mut self, token: u16, job: Job) -> io::Result<()>;
    /// Submits what was begun, and appends the jobs that have ended to `done`. With `sleep`, waits until a job has
    /// ended or one of `wake` is readable; negative descriptors are ignored.
    fn ended(&mut self, sleep: bool, wake: [RawFd; 2], done: &mut Vec<Done>) -> io::Result<()>;
    /// Whether a job has ended that [`Jobs::ended`] has not reported. Cheap, meant for busy polling.
    fn has_ended(&mut self) -> bool;
}
