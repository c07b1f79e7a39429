//! Jobs on a raw file, done by io_uring: without threads, and without a copy between the file and guest memory.
//!
//! Nothing here waits for the file. If the file system cannot make ranges zeroes, zeroes are written, part by part.
//! Buffers that O_DIRECT rejects are copied through one of a few aligned buffers, part by part as well.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::buffers::{Aligned, Buffers};
use super::jobs::{Done, Job, Jobs};
use super::raw::RawImage;
use super::transfer::Transfer;
use crate::machine::device_memory::DeviceMemory;

/// User data of completions for watched descriptors. Smaller values are tokens of jobs.
const WAKE: u64 = 1 << 32;
/// Jobs at a time that go through aligned buffers.
const BOUNCES: usize = 8;

/// An io_uring instance.
pub(super) struct Uring {
    ring: IoUring,
    image: Arc<RawImage>,
    /// The jobs under way, by token. Their buffers must not move until the kernel is done.
    jobs: Vec<Option<Transfer>>,
    /// How many of them there are.
    count: usize,
    /// Which of the two descriptors the kernel watches.
    armed: [bool; 2],
    /// Aligned buffers not in use.
    bounces: Vec<Aligned>,
    /// Jobs that wait for one.
    waiting: VecDeque<u16>,
    /// The memory of the jobs' buffers.
    memory: DeviceMemory,
}

impl Uring {
    /// A ring for `size` jobs at a time, whose buffers are in `memory`.
    ///
    /// # Errors
    /// When the host has no io_uring, or forbids it.
    pub fn new(image: &Arc<RawImage>, size: u16, memory: &DeviceMemory) -> io::Result<Self> {
        let ring = IoUring::new((u32::from(size) + 2).next_power_of_two())?;
        let jobs = (0..size).map(|_| None).collect();
        let bounces = image.alignment().map_or_else(Vec::new, |a| (0..BOUNCES).map(|_| a.piece()).collect());
        let (image, memory) = (Arc::clone(image), memory.clone());
        let waiting = VecDeque::with_capacity(usize::from(if bounces.is_empty() { 0 } else { size }));
        Ok(Self { ring, image, jobs, count: 0, armed: [false; 2], bounces, waiting, memory })
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: everything that the entry refers to lives until its completion: descriptors as long as the image;
            // buffers in `self.jobs`, from which only completions remove them (see `Drop`); guest memory as long as
            // `self.memory`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Submits a job's next step, unless it has to wait for an aligned buffer.
    fn submit(&mut self, token: u16) -> io::Result<()> {
        let Some(Some(transfer)) = self.jobs.get_mut(usize::from(token)) else { return Ok(()) };
        if transfer.wants_bounce() {
            let Some(bounce) = self.bounces.pop() else {
                self.waiting.push_back(token);
                return Ok(());
            };
            transfer.bounce = Some(bounce);
        }
        let entry = transfer.entry(types::Fd(self.image.fd()));
        self.push(&entry.user_data(token.into()))
    }

    /// Removes a job; returns its buffers.
    fn remove(&mut self, token: u16) -> Buffers {
        let Some(transfer) = self.jobs.get_mut(usize::from(token)).and_then(Option::take) else {
            return Buffers::default();
        };
        self.count = self.count.saturating_sub(1);
        self.bounces.extend(transfer.bounce);
        transfer.job.buffers
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

    /// The next completion: its user data and its result.
    fn completion(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Submits, waits for `want` completions, and handles all that have arrived.
    fn turn(&mut self, want: usize, done: &mut Vec<Done>) -> io::Result<()> {
        if let Err(error) = self.ring.submit_and_wait(want) {
            // Interrupted, temporarily out of memory, or the completion queue is full: worth another try.
            let passes = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR));
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
            let Some(Some(transfer)) = self.jobs.get_mut(usize::from(token)) else { continue };
            let ended = transfer.answered(answer, &self.image);
            self.go_on(token, ended, done);
        }
        while !self.bounces.is_empty()
            && let Some(token) = self.waiting.pop_front()
        {
            self.go_on(token, None, done);
        }
        Ok(())
    }

    /// Submits the next step of a job, or reports its end.
    fn go_on(&mut self, token: u16, ended: Option<io::Result<()>>, done: &mut Vec<Done>) {
        let result = match ended.map_or_else(|| self.submit(token).err().map(Err), Some) {
            Some(result) => result,
            None => return,
        };
        done.push(Done { token, result, buffers: self.remove(token) });
    }
}

impl Jobs for Uring {
    fn begin(&mut self, token: u16, job: Job) -> io::Result<()> {
        let slot = self.jobs.get_mut(usize::from(token)).ok_or(io::ErrorKind::InvalidInput)?;
        *slot = Some(Transfer::new(job, self.image.alignment()));
        self.count += 1;
        self.submit(token).inspect_err(|_| drop(self.remove(token)))
    }

    fn ended(&mut self, sleep: bool, wake: [RawFd; 2], done: &mut Vec<Done>) -> io::Result<()> {
        if sleep {
            self.watch(wake)?;
        }
        self.turn(usize::from(sleep), done)
    }

    fn has_ended(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }
}

impl Drop for Uring {
    /// The kernel must be done with guest memory and aligned buffers before they are freed.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.count > 0 && self.turn(1, &mut done).is_ok() {}
        if self.count > 0 {
            // The ring has failed: memory that the kernel may still write to is never freed.
            std::mem::forget((std::mem::take(&mut self.jobs), self.memory.clone()));
        }
    }
}
