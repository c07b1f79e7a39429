//! Hostile vCPUs that run at once, each on a thread of its own: what they share is the domain's lock, machine memory
//! and the words of [`Seen`], as in a run.
//!
//! In the guest a thread walks the tables without a lock, as a processor does, and caches the pages and the tables that
//! it finds. It stores through what it has cached, and walks on from cached tables, without a look at what has become
//! of them. If a frame changed its type too early, a table gets an entry that nobody has validated, which the audit
//! finds: it is made now and then under the lock, and at the end.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use paravane_abi::mmu::*;

use super::super::super::entry::target;
use super::*;
use crate::monitor::seen::Seen;

const VCPUS: usize = 3;
/// Hypercalls of each.
const ROUNDS: u32 = 10_000;
/// Operations of a hypercall, at most.
const BATCH: u64 = 4;
/// So many frames change their types all the time; the boot tables stay.
const HOT: u64 = 8;
/// What a CPU does in the guest between two hypercalls, at most.
const STEPS: u64 = 12;
/// So many hypercalls are made for one audit.
const PER_AUDIT: u32 = 16;

/// What is cached of one root.
#[derive(Default)]
struct Cached {
    writable: Vec<Mfn>,
    l1_tables: Vec<Mfn>,
}

struct Machine {
    policy: Coherence,
    /// The domain, and its lock.
    world: Mutex<World>,
    memory: Arc<MachineMemory>,
    guest_base: u64,
    seen: Seen,
    kicked: [AtomicBool; VCPUS],
    /// Where one flushes for all: the machine's caches by root. Who uses them holds the lock for it, as a page fault of
    /// a process holds that of its mappings.
    cached: RwLock<BTreeMap<Mfn, Cached>>,
    waits: AtomicU32,
    kicks: AtomicU32,
    stores: AtomicU32,
}

/// A thread's own part.
struct Thread<'a> {
    machine: &'a Machine,
    number: usize,
    random: u64,
    root: Mfn,
    own: Cached,
    unfinished: Option<Act>,
}

impl Machine {
    fn new(policy: Coherence) -> Self {
        let mut world = World::with_vcpus(VCPUS);
        world.direct.work.limit = SMALLEST;
        Self {
            policy,
            memory: Arc::clone(&world.memory),
            guest_base: world.layout.hypervisor_frames(),
            world: Mutex::new(world),
            seen: Seen::new(VCPUS),
            kicked: Default::default(),
            cached: RwLock::default(),
            waits: AtomicU32::new(0),
            kicks: AtomicU32::new(0),
            stores: AtomicU32::new(0),
        }
    }
}

impl<'a> Thread<'a> {
    fn new(machine: &'a Machine, number: usize) -> Self {
        Self {
            machine,
            number,
            random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1),
            root: Mfn(0),
            own: Cached::default(),
            unfinished: None,
        }
    }

    /// A number below `limit` (xorshift).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// The domain, for this vCPU.
    fn domain(&self) -> MutexGuard<'a, World> {
        let mut world = self.machine.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.turn_to(self.number);
        world
    }

    /// A hypercall that makes something else of a frame, or prepares for that.
    fn act(&mut self) -> Act {
        let (frame, other, slot) = (FREE + self.below(HOT), FREE + self.below(HOT), self.below(FRAMES));
        let flags = [RW, RO, TABLE][self.below(3) as usize];
        let update = |table, slot, value| Act::Update { table, slot, value, command: 0 };
        let ext = |cmd| Act::Ext { cmd, frame, from: other };
        match self.below(16) {
            0..3 => update(L1, frame, frame << 12 | RW),
            3..5 => update(L1, frame, frame << 12 | RO),
            5 => update(L1, frame, 0),
            6 => update(L2, 1 + other % 2, frame << 12 | TABLE),
            7 => update(L2, 1 + other % 2, 0),
            8 => update(frame, slot, other << 12 | flags),
            9 => ext(MMUEXT_PIN_L1_TABLE),
            10 => ext(MMUEXT_PIN_L2_TABLE),
            11 | 12 => ext(MMUEXT_UNPIN_TABLE),
            13 => ext(MMUEXT_CLEAR_PAGE),
            14 => Act::Gdt { frames: vec![frame], entries: 512 * (other % 2) as u32 },
            _ if slot % 2 == 0 => Act::Give { frame },
            _ => Act::Take { frame },
        }
    }

    fn hypercall(&mut self, audit: bool) {
        let acts: Vec<Act> = (0..=self.below(BATCH)).map(|_| self.act()).collect();
        let mut world = self.domain();
        for act in self.unfinished.take().into_iter().chain(acts) {
            if world.act(&act) == Err(Stop::Restart) {
                self.unfinished = Some(act);
                break;
            }
        }
        if audit {
            world.audit();
        }
        let Some(wanted) = world.log.take_wanted() else { return };
        self.machine.waits.fetch_add(1, Ordering::Relaxed);
        if self.machine.policy == Coherence::OwnEntry {
            // It is known when this vCPU has caught up, on its way into the guest.
            return;
        }
        self.machine.seen.demand(wanted);
        for behind in self.machine.seen.behind(wanted) {
            self.machine.kicks.fetch_add(1, Ordering::Relaxed);
            self.machine.kicked[behind].store(true, Ordering::SeqCst);
        }
        drop(world);
        self.machine.seen.wait_for(wanted);
        self.domain().log.everyone_knows(wanted);
    }

    fn enter(&mut self) {
        loop {
            let mut world = self.domain();
            let flush = world.catch_up(self.machine.policy);
            if flush && self.machine.policy == Coherence::OwnEntry {
                // Under the domain's lock: before anybody can rely on it.
                self.machine.cached.write().unwrap().clear();
            }
            let (root, position) = (world.tables.kernel_root(), world.space.position());
            drop(world);
            if flush || root != self.root {
                (self.root, self.own) = (root, Cached::default());
            }
            if self.machine.policy == Coherence::OwnEntry || self.machine.seen.enter(self.number, position) {
                return;
            }
        }
    }

    fn leave(&self) {
        self.machine.kicked[self.number].store(false, Ordering::SeqCst);
        if self.machine.policy == Coherence::EveryCpu {
            self.machine.seen.leave(self.number);
        }
    }

    /// One step in the guest.
    fn step(&mut self) {
        let (choice, slot, value) = (self.below(4), self.below(FRAMES), self.hostile());
        let (walk, nth) = ([0; 4].map(|_| self.below(FRAMES)), self.below(1 << 32) as usize);
        let machine = self.machine;
        let Self { root, own, .. } = self;
        let store = |cached: &Cached| {
            let frame = cached.writable.get(nth % cached.writable.len().max(1));
            if let Some(frame) = frame {
                machine.stores.fetch_add(1, Ordering::Relaxed);
                machine.memory.store_u64(Maddr(frame.maddr().0 + slot * 8), value).unwrap();
            }
        };
        match (machine.policy, choice) {
            (Coherence::OwnEntry, 0) => {
                if let Some(cached) = machine.cached.read().unwrap().get(root) {
                    store(cached);
                }
            }
            (Coherence::EveryCpu, 0) => store(own),
            (Coherence::OwnEntry, _) => {
                machine.fill(machine.cached.write().unwrap().entry(*root).or_default(), *root, walk, nth);
            }
            (Coherence::EveryCpu, _) => machine.fill(own, *root, walk, nth),
        }
    }

    /// What a guest would like to have in a table.
    fn hostile(&mut self) -> u64 {
        let flags = [RW, RO, TABLE, 0][self.below(4) as usize];
        pte::make(self.machine.guest_base + self.below(FRAMES), flags)
    }

    fn run(mut self) {
        for round in 0..ROUNDS {
            self.hypercall(round % PER_AUDIT == 0);
            self.enter();
            for _ in 0..self.below(STEPS) {
                if self.machine.kicked[self.number].load(Ordering::SeqCst) {
                    break;
                }
                self.step();
            }
            self.leave();
        }
    }
}

impl Machine {
    /// Walks from the root, or on from a table that is cached, and caches what it finds.
    fn fill(&self, cached: &mut Cached, root: Mfn, walk: [u64; 4], nth: usize) {
        let slot = |table: Mfn, slot: u64| {
            let entry = self.memory.load_u64(Maddr(table.maddr().0 + slot * 8)).unwrap();
            Some(entry).filter(|entry| pte::is_present(*entry))
        };
        // The tables that a guest makes are linked in the first slots.
        let from_root = || {
            let upper = [walk[0] % 2, walk[1] % 3, walk[2] % 3];
            upper.into_iter().try_fold(root, |table, index| Some(target(slot(table, index)?)))
        };
        let known = cached.l1_tables.get(nth % cached.l1_tables.len().max(1)).copied();
        let Some(l1) = known.filter(|_| nth.is_multiple_of(2)).or_else(from_root) else { return };
        if !cached.l1_tables.contains(&l1) {
            cached.l1_tables.push(l1);
        }
        let leaf = slot(l1, walk[3]).filter(|entry| entry & (pte::RW | pte::USER) == pte::RW | pte::USER);
        if let Some(page) = leaf.map(target).filter(|page| !cached.writable.contains(page)) {
            cached.writable.push(page);
        }
    }
}

#[test]
fn hostile_vcpus_at_once_break_nothing() {
    for policy in [Coherence::OwnEntry, Coherence::EveryCpu] {
        let machine = Machine::new(policy);
        std::thread::scope(|scope| {
            for number in 0..VCPUS {
                let machine = &machine;
                scope.spawn(move || Thread::new(machine, number).run());
            }
        });
        let world = machine.world.into_inner().unwrap();
        world.audit();
        let [waits, kicks, stores] =
            [&machine.waits, &machine.kicks, &machine.stores].map(|n| n.load(Ordering::Relaxed));
        println!("{policy:?}: {waits} waits, {kicks} kicks, {stores} stores");
        assert!(
            waits > 10 && stores > 100,
            "{policy:?}: {waits} waits, {stores} stores: too little for a test"
        );
    }
}
