//! Jobs on a raw file, done by io_uring: no thread and no copy between the file and the guest's memory.
//!
//! Nothing here waits for the file. What the file system cannot do is done by writes of zeroes, a piece at a time;
//! what O_DIRECT does not take goes through one of a few aligned buffers, a piece at a time too.

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

/// What marks the end of waiting for a descriptor; below are tokens of jobs.
const WAKE: u64 = 1 << 32;
/// Jobs at a time that go through buffers of ours, where the guest's do not fit.
const BOUNCES: usize = 8;

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
    /// Aligned buffers that no job has.
    bounces: Vec<Aligned>,
    /// Jobs that wait for one.
    waiting: VecDeque<u16>,
    /// What the jobs' buffers are in.
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
            // SAFETY: what the entry names lives until its completion: descriptors as long as the image, buffers
            // in `self.jobs`, which is emptied by completions only (see `Drop`), the guest's memory as long as
            // `self.memory`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Hands over what is to be done next of a job, unless it must wait for a buffer of ours.
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

    /// Takes a job out: its buffers.
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

    /// The next completion: of what, and the kernel's answer.
    fn completion(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Submits, waits for `want` completions, and takes all that there are.
    fn turn(&mut self, want: usize, done: &mut Vec<Done>) -> io::Result<()> {
        if let Err(error) = self.ring.submit_and_wait(want) {
            // Interrupted, short of memory for a moment, or the kernel wants its completions taken first: all are
            // worth another turn.
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

    /// The next step of a job, or its end.
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
    /// The kernel must be done with the guest's memory and our buffers before they go.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.count > 0 && self.turn(1, &mut done).is_ok() {}
        if self.count > 0 {
            // It cannot be asked any more: what it may still write to must then stay for ever.
            std::mem::forget((std::mem::take(&mut self.jobs), self.memory.clone()));
        }
    }
}
