//! The address spaces of a machine: the processes that have them, what is to be done to these before the guest runs,
//! and whose they are.
//!
//! All virtual CPUs share them, behind one lock ([`Shared`]). A virtual CPU *holds* the address space that it was in
//! last, also while it is outside: its vector state is there. What is held by another is never given to another root,
//! since whoever runs there can read and write all rooms of the process.
//!
//! Where there is one virtual CPU, its mapper carries a batch out on the way into the guest. With several, one of them
//! may run in an address space while another changes it: batches are carried out before the lock is let go, so that
//! mappings come and go in the order in which the page tables were read. What may not be done here: entering the guest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::area::Lane;
use super::births::Births;
use super::child::{Child, SpawnError};
use super::fpu;
use super::mirror::{Batch, Mirror};
use super::script::Terms;
use super::spoilt::{self, Remnants};
use super::stub::Place;
use crate::machine::memory::Mfn;
use crate::mmu::log::{Cursor, Since, TableLog, Unread};
use crate::mmu::space::{Flush, Pending, VcpuSpace};

/// How many address spaces are kept as processes. A guest that uses more still runs: the one that was not
/// used for longest gives its process up.
pub(super) const MAX_SPACES: usize = 16;

/// One guest process and the page-table root that it mirrors.
#[derive(Debug)]
pub(super) struct Space {
    pub child: Arc<Child>,
    /// The L4 frame whose translations it holds; `None` while it is free for another.
    pub root: Option<Mfn>,
    /// Calls for a mapper.
    pub batch: Batch,
    /// Mappings that it has, or will have after the batch.
    pub runs: u32,
    /// When a virtual CPU last came to it, or left it.
    pub last_used: u64,
    /// The lanes whose virtual CPUs hold it.
    pub held: u64,
    /// Changes when it becomes another's: what a virtual CPU knew of its own lane in it is void then.
    pub generation: u64,
    /// What a lane's room holds for one that has not been in it in this generation.
    pub found: Remnants,
    /// Its rooms hold what is of an address space that is gone, and of those who hold it.
    pub is_left: bool,
}

impl Space {
    pub fn new(child: Child, generation: u64) -> Self {
        Self {
            child: Arc::new(child),
            root: None,
            batch: Batch::default(),
            runs: 0,
            last_used: 0,
            held: 0,
            generation,
            found: Remnants::None,
            is_left: false,
        }
    }
    /// Whether a virtual CPU other than a lane's holds it.
    fn is_others(&self, lane: Lane) -> bool {
        self.held & !lane.bit() != 0
    }
}

/// What the virtual CPUs of a machine have in common.
#[derive(Debug)]
pub(super) struct Shared {
    spaces: Mutex<Spaces>,
    /// How often an address space was taken from its root, or got another process.
    upheavals: AtomicU64,
    pub terms: Terms,
    pub fpu_size: u64,
    pub accepted: fpu::Accepted,
}

impl Shared {
    pub fn new(spaces: Spaces, terms: Terms, fpu_size: u64, accepted: fpu::Accepted) -> Self {
        Self { spaces: Mutex::new(spaces), upheavals: AtomicU64::new(0), terms, fpu_size, accepted }
    }
    /// Takes the lock. It is held for a few system calls at a time, none of which waits for the guest; and, where a
    /// root gets its first process or a spoilt one is replaced, until Linux has made that process and ended the old
    /// one.
    pub fn lock(&self) -> MutexGuard<'_, Spaces> {
        // Whoever panicked with it has ended its guest; the others end their processes.
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Changes whenever what a virtual CPU knows of the address space that it holds may not be true any more.
    pub fn upheavals(&self) -> u64 {
        self.upheavals.load(Ordering::Acquire)
    }
    /// Notes such a change, under the lock.
    pub fn note_upheaval(&self) {
        self.upheavals.fetch_add(1, Ordering::Release);
    }
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct Spaces {
    pub all: Vec<Space>,
    pub mirror: Mirror,
    births: Births,
    /// The log was applied up to here, by whichever virtual CPU.
    applied: Option<Cursor>,
    clock: u64,
    generations: u64,
    limit: usize,
}

impl Spaces {
    /// With one process, so that it is known whether they can be had.
    pub fn new(births: Births, mirror: Mirror, lanes: u8) -> Result<Self, SpawnError> {
        // One for each virtual CPU to hold, and one that can be given to another root.
        let limit = MAX_SPACES.max(usize::from(lanes) + 1);
        let mut all = Vec::with_capacity(limit);
        all.push(Space::new(births.make()?, 0));
        Ok(Self { all, mirror, births, applied: None, clock: 0, generations: 0, limit })
    }

    pub fn new_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    /// The address space of `root`, which `lane` holds from now on in place of the one at `from`.
    pub fn hold(&mut self, index: usize, from: Option<usize>, lane: Lane) {
        self.clock += 1;
        for at in [from, Some(index)].into_iter().flatten() {
            if let Some(space) = self.all.get_mut(at) {
                space.held &= !lane.bit();
                space.last_used = self.clock;
            }
        }
        if let Some(space) = self.all.get_mut(index) {
            space.last_used = self.clock + 1;
            space.held |= lane.bit();
        }
        self.clock += 1;
    }

    /// A process for a root that has none: a free one, or a new one.
    pub fn free(&mut self, lane: Lane) -> Option<usize> {
        self.all.iter().position(|s| s.root.is_none() && !s.is_others(lane)).or_else(|| self.spawn())
    }

    /// The one that was not used for longest, of those that nobody else holds.
    pub fn oldest(&self, lane: Lane) -> Option<usize> {
        let candidates = self.all.iter().enumerate().filter(|(_, s)| !s.is_others(lane));
        candidates.min_by_key(|(_, s)| (s.held != 0, s.last_used)).map(|(index, _)| index)
    }

    fn spawn(&mut self) -> Option<usize> {
        if self.all.len() >= self.limit {
            return None;
        }
        // Where the host has no room for another process, the guest shares those that exist.
        let child = self.births.make().ok()?;
        let generation = self.new_generation();
        self.all.push(Space::new(child, generation));
        Some(self.all.len() - 1)
    }

    /// Another process.
    pub fn birth(&self) -> Option<Child> {
        self.births.make().ok()
    }

    /// The set of those whose root was something else meanwhile: it is another address space now.
    pub fn reused(&self, pending: &Pending<'_>) -> u128 {
        if !pending.stale && pending.reused.is_empty() {
            return 0;
        }
        let is_reused = |root: Mfn| pending.stale || pending.reused.iter().any(|table| *table == root);
        // Fewer than 128: one for each virtual CPU and one more.
        let all = self.all.iter().zip(0u32..);
        all.filter(|(s, _)| s.root.is_some_and(is_reused)).fold(0, |set, (_, index)| set | 1 << index)
    }

    /// Takes a process from its root: what it has is of an address space that is gone, or another now. `kept` is where
    /// `lane`'s vector state is in its room, if it is there. The answer is whether that moved to
    /// [`room::FPU_IN`](super::area::room::FPU_IN).
    pub fn leave(&mut self, index: usize, lane: Lane, kept: Option<u64>, fpu_size: u64) -> bool {
        let Some(space) = self.all.get_mut(index) else { return false };
        if let Some(board) = space.child.batches() {
            // Calls that are not made yet were for that address space.
            board.clear_steps();
        }
        if space.is_others(lane) {
            // Nobody may come to it before they have left it, or say that their root is still the same.
            (space.root, space.is_left) = (None, true);
            self.mirror.drop_space(&mut self.all, index);
            return false;
        }
        self.clear(index, lane, kept, fpu_size)
    }

    /// Sees to it that nobody finds what was left in the rooms of a process.
    fn clear(&mut self, index: usize, lane: Lane, kept: Option<u64>, fpu_size: u64) -> bool {
        let generation = self.new_generation();
        let Some(space) = self.all.get_mut(index) else { return false };
        (space.generation, space.is_left) = (generation, false);
        if lane.is_alone() {
            // It is early enough when a user program runs there.
            space.found = Remnants::Others;
            return false;
        }
        for of in lane.everyone() {
            if let Some(area) = space.child.area(of) {
                spoilt::clear(area, kept.filter(|_| of == lane), fpu_size);
            }
        }
        space.found = Remnants::None;
        kept.is_some()
    }

    /// Gives a process to a root, after it was found [free](Self::free) or [left](Self::leave).
    pub fn give(&mut self, index: usize, root: Mfn, lane: Lane, kept: Option<u64>, fpu_size: u64) -> bool {
        let moved = self.all.get(index).is_some_and(|s| s.is_left) && self.clear(index, lane, kept, fpu_size);
        if let Some(space) = self.all.get_mut(index) {
            space.root = Some(root);
        }
        moved
    }

    /// What a virtual CPU must apply, of which others may have applied a part for it.
    pub fn pending<'a>(&self, space: &VcpuSpace, log: &'a TableLog) -> Pending<'a> {
        let Some(applied) = self.applied.filter(|applied| applied.position() > space.position()) else {
            return space.pending(log);
        };
        match log.since(&applied) {
            Unread::Stale => {
                Pending { stale: true, writes: Since::none(), reused: Since::none(), flush: Flush::All }
            }
            // There is nothing to flush but mappings.
            Unread::Changes { writes, reused, .. } => {
                Pending { stale: false, writes, reused, flush: Flush::None }
            }
        }
    }

    pub fn applied(&mut self, log: &TableLog) {
        self.applied = Some(log.end());
    }

    /// Has a lane's mappers carry out what is to be done where a virtual CPU may run; the rest waits until one comes.
    pub fn carry_out(&mut self, lane: Lane) {
        for index in 0..self.all.len() {
            let Some(space) = self.all.get(index).filter(|s| s.held != 0 && !s.batch.is_empty()) else {
                continue;
            };
            if space.batch.overflowed() {
                self.mirror.drop_space(&mut self.all, index);
            }
            let Some(space) = self.all.get_mut(index) else { continue };
            if let Some(board) = space.child.batches() {
                space.batch.finish(board, lane, Place::Errands);
            }
            // If it ended, so have its mappings. Whoever is in it finds out.
            space.child.carry_out(lane);
        }
    }

    /// Lets the guest of the only virtual CPU run, its mappings brought up to date first.
    pub fn resume(&mut self, index: usize, lane: Lane) -> bool {
        if self.all.get(index).is_some_and(|s| s.batch.overflowed()) {
            self.mirror.drop_space(&mut self.all, index);
        }
        let Some(space) = self.all.get_mut(index) else { return false };
        if let Some(board) = space.child.batches().filter(|_| !space.batch.is_empty()) {
            space.batch.finish(board, lane, Place::Answer);
            return space.child.resume_after_batch(lane);
        }
        space.child.resume(lane)
    }
}
