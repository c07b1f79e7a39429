//! The loop of one queue of a disk.

use std::os::fd::RawFd;

use super::request;
use super::request::{Request, Status};
use super::shared::Shared;
use crate::backend::disk::Buffers;
use crate::backend::disk::jobs::{Done, Job, Jobs, Op};
use crate::host::busy_poll::BusyPoll;
use crate::virtio::{Broken, Chain, Queue, Stop};

/// Bytes that are submitted together. Data in the host's page cache is copied on submission; the driver can use one
/// batch while the next is copied.
const AT_ONCE: u64 = 256 << 10;

/// A request that is under way.
struct Running {
    chain: Chain,
    /// Bytes that it writes to its buffers if it succeeds.
    reads: u32,
}

/// Serves a queue until it is asked to stop.
pub(super) fn run(queue: Queue, stop: &Stop, disk: &Shared) -> Result<(), Broken> {
    // Dropped after `jobs`, which may still work on this memory when the queue is gone.
    let memory = queue.memory().clone();
    let mut jobs = disk.disk.jobs(queue.size(), &memory).map_err(|_| Broken::Host)?;
    Worker::new(queue, disk, &mut *jobs).serve(stop)
}

struct Worker<'a> {
    queue: Queue,
    disk: &'a Shared,
    jobs: &'a mut dyn Jobs,
    running: Vec<Option<Running>>,
    /// Unused indices of `running`.
    free: Vec<u16>,
    done: Vec<Done>,
    /// Allocations for buffers, from jobs that have ended.
    spare: Vec<Buffers>,
}

impl<'a> Worker<'a> {
    fn new(queue: Queue, disk: &'a Shared, jobs: &'a mut dyn Jobs) -> Self {
        let size = queue.size();
        let running = (0..size).map(|_| None).collect();
        let free = (0..size).rev().collect();
        Self { queue, disk, jobs, running, free, done: Vec::new(), spare: Vec::new() }
    }

    fn serve(mut self, stop: &Stop) -> Result<(), Broken> {
        let mut habit = BusyPoll::default();
        let mut offence = Ok(());
        loop {
            let mut listens = offence.is_ok() && !stop.is_asked();
            let mut more = false;
            if listens {
                self.queue.refuse_kicks()?;
                (offence, more) =
                    self.take_some().map_or_else(|broken| (Err(broken), false), |more| (Ok(()), more));
                listens = offence.is_ok();
            }
            if !listens && self.running.len() == self.free.len() {
                // All requests under way are complete.
                self.queue.notify()?;
                return offence;
            }
            if self.turn(false, [-1; 2])? || more {
                continue;
            }
            // Once it should stop, only the ends of jobs matter.
            let (queue, jobs) = (&self.queue, &mut *self.jobs);
            if habit.look(|| listens && (queue.has_next() || stop.is_asked()) || jobs.has_ended()) {
                continue;
            }
            // Kicks are enabled before the last check of the queue, so that no request is missed. poll(2) and io_uring
            // ignore negative descriptors.
            if !(listens && self.queue.ask_for_kicks()?) {
                let wake = if listens { [stop.fd(), self.queue.kick_fd()] } else { [-1; 2] };
                self.turn(true, wake)?;
                self.queue.take_kick();
            }
            habit.slept();
        }
    }

    /// Gives back requests whose jobs have ended; returns whether there were any.
    fn turn(&mut self, sleep: bool, wake: [RawFd; 2]) -> Result<bool, Broken> {
        self.jobs.ended(sleep, wake, &mut self.done).map_err(|_| Broken::Bug)?;
        let any = !self.done.is_empty();
        self.give_back_done()?;
        Ok(any)
    }

    /// Begins available requests, up to [`AT_ONCE`] bytes; returns whether there may be more. Takes at most as many
    /// as the ring has entries, because a driver could add requests that complete at once for ever.
    fn take_some(&mut self) -> Result<bool, Broken> {
        let (mut bytes, mut more) = (0u64, true);
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.take()? else {
                more = false;
                break;
            };
            let mut spare = self.spare.pop().unwrap_or_default();
            match request::read(self.queue.memory(), &chain, self.disk, &mut spare)? {
                Request::Done(status, data) => {
                    self.spare.push(spare);
                    self.finish(&chain, status, data)?;
                }
                Request::Job(job) => {
                    bytes = bytes.saturating_add(job.len);
                    self.begin(chain, job)?;
                }
            }
            if bytes >= AT_ONCE {
                break;
            }
        }
        self.queue.notify()?;
        Ok(more)
    }

    fn begin(&mut self, chain: Chain, job: Job) -> Result<(), Broken> {
        let reads = if job.op == Op::Read { u32::try_from(job.len).unwrap_or(u32::MAX) } else { 0 };
        if job.len == 0 && job.op != Op::Flush {
            return self.finish(&chain, Status::Ok, 0);
        }
        // There is a free token: a queue has no more requests under way than entries.
        let token = self.free.pop().ok_or(Broken::Bug)?;
        if self.jobs.begin(token, job).is_err() {
            self.free.push(token);
            return self.finish(&chain, Status::IoError, 0);
        }
        let slot = self.running.get_mut(usize::from(token)).ok_or(Broken::Bug)?;
        *slot = Some(Running { chain, reads });
        Ok(())
    }

    fn give_back_done(&mut self) -> Result<(), Broken> {
        let mut done = std::mem::take(&mut self.done);
        for Done { token, result, buffers } in done.drain(..) {
            self.spare.push(buffers);
            let slot = self.running.get_mut(usize::from(token)).and_then(Option::take);
            let Running { chain, reads } = slot.ok_or(Broken::Bug)?;
            self.free.push(token);
            match result {
                Ok(()) => self.finish(&chain, Status::Ok, reads)?,
                Err(_) => self.finish(&chain, Status::IoError, 0)?,
            }
        }
        self.done = done;
        self.queue.notify()
    }

    fn finish(&mut self, chain: &Chain, status: Status, data: u32) -> Result<(), Broken> {
        let written = request::answer(self.queue.memory(), chain, status, data);
        self.queue.give_back(chain.head(), written)
    }
}
