//! Several vCPUs with one set of tables, their caches modelled: what a CPU has cached it may use until it is flushed.
//!
//! [`Several`] makes the steps of all of them in any order that a test wants; `threads` has them run at once.

mod interleaved;
mod threads;
mod xsa;

use std::collections::BTreeMap;

use super::properties::Act;
use super::*;
use crate::engine::Coherence;
use crate::mmu::log::Position;

/// The limit of an operation that stops as often as it can: four tables.
const SMALLEST: u32 = 4 * 512;

impl World {
    /// A world with `count` vCPUs, all with the boot tables as their kernel's.
    fn with_vcpus(count: usize) -> Self {
        let mut w = Self::new();
        w.share_among(count);
        w
    }

    fn share_among(&mut self, count: usize) {
        let root = self.tables.kernel_root();
        for number in 1..count {
            let tables = self.direct.attach(&self.memory, &mut self.log, root).unwrap();
            let space = VcpuSpace::new(root, &self.log);
            self.others.push(Vcpu { number, space, tables });
        }
        self.direct.expect_several_vcpus(&mut self.log).unwrap();
        self.cpu = Cpu::default();
    }

    /// Whose turn it is: the number that none of the others has.
    fn turn(&self) -> usize {
        (0..=self.others.len())
            .find(|number| self.others.iter().all(|other| other.number != *number))
            .unwrap()
    }

    /// It is `number`'s turn.
    fn turn_to(&mut self, number: usize) {
        let now = self.turn();
        let Some(other) = self.others.iter_mut().find(|other| other.number == number) else { return };
        std::mem::swap(&mut self.space, &mut other.space);
        std::mem::swap(&mut self.tables, &mut other.tables);
        other.number = now;
    }

    /// Applies the log for the one whose turn it is; whether it must drop what it has cached, and whether it would be
    /// wrong not to.
    fn catch_up(&mut self, policy: Coherence) -> bool {
        let pending = self.space.pending(&self.log);
        let news = pending.stale || !pending.writes.is_empty() || !pending.reused.is_empty();
        let flush = match policy {
            // What it is asked for beyond that is for the sake of entries of its own, of which it has none.
            Coherence::OwnEntry => news,
            Coherence::EveryCpu => {
                news || pending.flush != Flush::None || self.space.position() < self.log.position()
            }
        };
        self.space.caught_up(&self.log);
        if policy == Coherence::OwnEntry {
            self.log.applied_for_everyone();
        }
        flush
    }
}

/// A CPU of [`Several`].
#[derive(Default)]
struct CpuState {
    /// In the guest.
    inside: bool,
    /// What it has cached, of one root: where each CPU must be flushed.
    cached: Cpu,
    root: Option<Mfn>,
    /// An operation that is to be issued again, and how often it was issued.
    unfinished: Option<(Act, u32)>,
}

/// Several vCPUs, one step of one of them at a time.
struct Several {
    w: World,
    policy: Coherence,
    cpus: Vec<CpuState>,
    /// What is cached of each root by the machine, for every CPU that uses that root: where one flushes for all.
    cached: BTreeMap<u64, Cpu>,
    /// How often an operation had to wait until the others were current, and a CPU was kicked out for that.
    waits: u32,
    kicks: u32,
}

impl Several {
    fn new(policy: Coherence, vcpus: usize) -> Self {
        Self {
            w: World::with_vcpus(vcpus),
            policy,
            cpus: (0..vcpus).map(|_| CpuState::default()).collect(),
            cached: BTreeMap::new(),
            waits: 0,
            kicks: 0,
        }
    }

    /// The CPU runs the guest, if it did not before.
    fn enter(&mut self, number: usize) {
        if self.cpus[number].inside {
            return;
        }
        self.w.turn_to(number);
        if self.w.catch_up(self.policy) {
            match self.policy {
                Coherence::OwnEntry => self.cached.clear(),
                Coherence::EveryCpu => self.cpus[number].cached = Cpu::default(),
            }
        }
        self.cpus[number].inside = true;
        self.check();
    }

    /// The root that the CPU runs on; loading another one flushes what was cached of the last.
    fn load(&mut self, number: usize, user: bool) -> Mfn {
        self.w.turn_to(number);
        let kernel = self.w.tables.kernel_root();
        let root = if user { self.w.tables.user_root().unwrap_or(kernel) } else { kernel };
        let cpu = &mut self.cpus[number];
        if cpu.root != Some(root) {
            (cpu.root, cpu.cached) = (Some(root), Cpu::default());
        }
        root
    }

    /// The guest runs, and has all cached that it can reach; user mode, or the kernel's.
    fn run(&mut self, number: usize, user: bool) {
        self.enter(number);
        let root = self.load(number, user);
        let cached = self.cached.entry(root.0).or_default();
        let cached = if self.policy == Coherence::OwnEntry { cached } else { &mut self.cpus[number].cached };
        self.w.reach(root, 4, true, cached);
        self.check();
    }

    /// The guest stores to a frame that a CPU can write, as far as it has cached: the `choice`th of them.
    fn store(&mut self, number: usize, choice: usize, slot: u64, value: u64) {
        self.enter(number);
        let root = self.load(number, false);
        let cached = match self.policy {
            Coherence::OwnEntry => self.cached.entry(root.0).or_default(),
            Coherence::EveryCpu => &mut self.cpus[number].cached,
        };
        let writable: Vec<u64> = cached.writable.iter().copied().collect();
        if let Some(mfn) = writable.get(choice % writable.len().max(1)) {
            let value = self.w.absolute_entry(value);
            self.w.memory.store_u64(Maddr(Mfn(*mfn).maddr().0 + slot * 8), value).unwrap();
        }
        self.w.audit();
    }

    /// One issue of a hypercall: of `act`, or of the one that the CPU has not finished.
    fn issue(&mut self, number: usize, act: &Act) -> Result<(), Stop> {
        // A hypercall is the kernel's.
        self.load(number, false);
        self.cpus[number].inside = false;
        let (act, issued) = self.cpus[number].unfinished.take().unwrap_or_else(|| (act.clone(), 0));
        let result = self.w.act(&act);
        self.after(number);
        if result == Err(Stop::Restart) {
            self.cpus[number].unfinished = Some((act, issued + 1));
            // It is issued again by the guest.
            self.enter(number);
        }
        self.w.audit();
        self.check();
        result
    }

    /// What the host does after an exit has been handled: it sees to it that what is wanted is known.
    fn after(&mut self, number: usize) {
        let Some(wanted) = self.w.log.take_wanted() else { return };
        self.waits += 1;
        match self.policy {
            Coherence::OwnEntry => self.enter(number),
            Coherence::EveryCpu => {
                self.kick_those_behind(number, wanted);
                self.w.log.everyone_knows(wanted);
            }
        }
    }

    fn kick_those_behind(&mut self, number: usize, wanted: Position) {
        for other in (0..self.cpus.len()).filter(|other| *other != number) {
            self.w.turn_to(other);
            if self.cpus[other].inside && self.w.space.position() < wanted {
                self.cpus[other].inside = false;
                self.kicks += 1;
            }
        }
        self.w.turn_to(number);
    }

    /// No CPU in the guest can use a frame as something that it is not.
    fn check(&mut self) {
        for number in (0..self.cpus.len()).filter(|number| self.cpus[*number].inside).collect::<Vec<_>>() {
            if self.policy == Coherence::EveryCpu {
                self.w.audit_cpu(&self.cpus[number].cached);
                continue;
            }
            self.w.turn_to(number);
            let roots = [Some(self.w.tables.kernel_root()), self.w.tables.user_root()];
            for cached in roots.iter().flatten().filter_map(|root| self.cached.get(&root.0)) {
                self.w.audit_cpu(cached);
            }
        }
    }
}
