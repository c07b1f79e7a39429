//! Jobs on a raw file, done by io_uring: no thread and no copy between the file and the guest's memory.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::image::{PUNCH, RawImage, ZERO, advance, for_call, is_unsupported};
use super::request::{Job, Op};
use super::worker::Jobs;

/// What marks the end of waiting for a descriptor; below are tokens of jobs.
const WAKE: u64 = 1 << 32;

/// A ring of the host's kernel.
pub(super) struct Uring {
    ring: IoUring,
    image: Arc<RawImage>,
    /// The jobs under way, by token. Their buffers must stay where they are until the kernel is done.
    jobs: Vec<Option<Transfer>>,
    /// How many of them there are.
    count: usize,
    /// Which descriptors the kernel watches already.
    armed: [bool; 2],
}

/// A job, and how far it is.
struct Transfer {
    job: Job,
    /// Buffers before this one are done.
    first: usize,
}

impl Uring {
    /// A ring for `size` jobs at a time.
    ///
    /// # Errors
    /// When the host has no io_uring, or forbids it.
    pub fn new(image: &Arc<RawImage>, size: u16) -> io::Result<Self> {
        let ring = IoUring::new((u32::from(size) + 2).next_power_of_two())?;
        let jobs = (0..size).map(|_| None).collect();
        Ok(Self { ring, image: Arc::clone(image), jobs, count: 0, armed: [false; 2] })
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry names lives until its completion: descriptors as long as the image, buffers
            // in `self.jobs`, which is emptied by completions only (see `Drop`), the guest's memory as long as the
            // queue whose worker owns this ring.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Hands over what is left to do of a job.
    fn submit(&mut self, token: u16) -> io::Result<()> {
        let fd = types::Fd(self.image.fd());
        let Some(Some(transfer)) = self.jobs.get(usize::from(token)) else { return Ok(()) };
        let Job { op, offset, len, .. } = transfer.job;
        let (buffers, count) = for_call(transfer.job.buffers.get(transfer.first..).unwrap_or_default());
        let count = count.unsigned_abs();
        let entry = match op {
            Op::Read => opcode::Readv::new(fd, buffers, count).offset(offset).build(),
            Op::Write { sync } => {
                let flags = if sync { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, buffers, count).offset(offset).rw_flags(flags).build()
            }
            Op::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Op::Discard => opcode::Fallocate::new(fd, len).offset(offset).mode(PUNCH).build(),
            Op::Zero { unmap } => {
                let mode = if unmap { PUNCH } else { ZERO };
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
            }
        };
        self.push(&entry.user_data(token.into()))
    }

    /// What the kernel's answer to a job means: its end, or `None` when there is more to do.
    fn answered(&mut self, token: u16, answer: i32) -> Option<io::Result<()>> {
        let Some(Some(Transfer { job, first })) = self.jobs.get_mut(usize::from(token)) else { return None };
        let done = match usize::try_from(answer) {
            Ok(done) => done,
            Err(_) => {
                let error = io::Error::from_raw_os_error(answer.wrapping_neg());
                return match job.op {
                    _ if error.kind() == io::ErrorKind::Interrupted => None,
                    Op::Discard if is_unsupported(&error) => Some(Ok(())),
                    Op::Zero { .. } if is_unsupported(&error) => {
                        Some(self.image.zero_by_writing(job.offset, job.len))
                    }
                    _ => Some(Err(error)),
                };
            }
        };
        if !matches!(job.op, Op::Read | Op::Write { .. }) {
            return Some(Ok(()));
        }
        if done == 0 {
            // The file ends before the disk does: somebody has cut it short.
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let left = advance(job.buffers.get_mut(*first..).unwrap_or_default(), done).len();
        *first = job.buffers.len().saturating_sub(left);
        (job.offset, job.len) = (job.offset.saturating_add(done as u64), job.len.saturating_sub(done as u64));
        (left == 0).then_some(Ok(()))
    }

    fn watch(&mut self, wake: [RawFd; 2]) -> io::Result<()> {
        for ((n, fd), armed) in [0u64, 1].into_iter().zip(wake).zip(self.armed) {
            if !armed && fd >= 0 {
                let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
                self.push(&poll.user_data(WAKE + n))?;
                if let Some(armed) = self.armed.get_mut(usize::from(n != 0)) {
                    *armed = true;
                }
            }
        }
        Ok(())
    }

    /// The next completion: of what, and the kernel's answer.
    fn completion(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Submits, waits for `want` completions, and takes all that there are.
    fn turn(&mut self, want: usize, done: &mut Vec<(u16, io::Result<()>)>) -> io::Result<()> {
        if let Err(error) = self.ring.submit_and_wait(want) {
            // Interrupted, or the kernel wants its completions taken first: both are worth another turn.
            let passes = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR));
            if !passes {
                return Err(error);
            }
        }
        while let Some((data, answer)) = self.completion() {
            let Ok(token) = u16::try_from(data) else {
                if let Some(armed) = self.armed.get_mut(usize::from(data != WAKE)) {
                    *armed = false;
                }
                continue;
            };
            let ended = match self.answered(token, answer) {
                Some(result) => result,
                None => match self.submit(token) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            if let Some(slot) = self.jobs.get_mut(usize::from(token)) {
                *slot = None;
            }
            self.count = self.count.saturating_sub(1);
            done.push((token, ended));
        }
        Ok(())
    }
}

impl Jobs for Uring {
    fn begin(&mut self, token: u16, job: Job) -> io::Result<()> {
        let slot = self.jobs.get_mut(usize::from(token)).ok_or(io::ErrorKind::InvalidInput)?;
        *slot = Some(Transfer { job, first: 0 });
        self.submit(token)?;
        self.count += 1;
        Ok(())
    }

    fn ended(
        &mut self,
        sleep: bool,
        wake: [RawFd; 2],
        done: &mut Vec<(u16, io::Result<()>)>,
    ) -> io::Result<()> {
        if sleep {
            self.watch(wake)?;
        }
        self.turn(usize::from(sleep), done)
    }
}

impl Drop for Uring {
    /// The kernel must be done with the guest's memory and our buffers before they go.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.count > 0 && self.turn(1, &mut done).is_ok() {}
        if self.count > 0 {
            // It cannot be asked any more: what it may still write to must then stay for ever.
            std::mem::forget(std::mem::take(&mut self.jobs));
        }
    }
}
