//! Several virtual CPUs: that each is as good as one alone, that they run at once, and what they may do to each other.

mod apart;
mod hazards;

use std::sync::Mutex;

use super::{world_of, *};
use crate::engine::{Cpu, Exit};
use crate::machine::memory::{Maddr, Mfn};
use crate::mmu::log::{PteWrite, TableLog};
use crate::mmu::space::VcpuSpace;
use crate::testing::engine::{DATA_VA, STACK_TOP};
use crate::x86::registers::Regs;
use crate::x86::walk::{Access, MachineTables, walk_for};

/// The contract holds for a virtual CPU that is not the first.
fn second() -> Option<World> {
    let mut w = world_of(3)?;
    w.cpu = w.engine.cpu(1).unwrap();
    w.cpu.settle_here().unwrap();
    Some(w)
}

contract!(second);

/// What the virtual CPUs of a domain share: its lock, and what it guards here.
struct Domain {
    memory: MachineMemory,
    log: Mutex<TableLog>,
}

impl Domain {
    /// Writes an entry as the MMU code does; whoever did so has to catch up before it is known.
    fn write(&self, entry: Maddr, new: u64) {
        let mut log = self.log.lock().unwrap();
        let old = self.memory.load_u64(entry).unwrap();
        self.memory.store_u64(entry, new).unwrap();
        log.wrote(PteWrite { entry, old, new, level: 1 });
    }
    /// Where a word of an address space is.
    fn at(&self, root: Mfn, va: u64) -> Maddr {
        let access = Access { write: false, user: true, fetch: false };
        let found = walk_for(&self.memory, &MachineTables, root.maddr().0, va, access);
        found.ok().and_then(|t| t.maddr).unwrap()
    }
    fn peek(&self, at: Maddr) -> u64 {
        self.memory.load_u64(at).unwrap()
    }
    fn poke(&self, at: Maddr, value: u64) {
        self.memory.store_u64(at, value).unwrap();
    }
}

/// A virtual CPU with what belongs to it.
struct Vcpu {
    cpu: Box<dyn Cpu>,
    space: VcpuSpace,
    regs: Regs,
}

impl Vcpu {
    /// What a runner does under the lock.
    fn catch_up(&mut self, d: &Domain) {
        let mut log = d.log.lock().unwrap();
        self.cpu.catch_up(&mut self.space, &log, &d.memory).unwrap();
        log.applied_for_everyone();
    }
    /// Enters once.
    fn enter(&mut self, d: &Domain) -> Exit {
        self.catch_up(d);
        self.cpu.enter(&mut self.regs, &self.space, &d.memory)
    }
    /// Enters until there is something other than a kick.
    fn run(&mut self, d: &Domain) -> Exit {
        loop {
            let exit = self.enter(d);
            if exit != Exit::Kick {
                return exit;
            }
        }
    }
    fn goes_on_at(&mut self, rip: u64) {
        self.regs = Regs { rip, rsp: STACK_TOP, rflags: 0x202, ..Regs::default() };
    }
    fn is_in(&mut self, root: Mfn, user: bool) {
        self.space.set_root(root);
        self.space.set_user_mode(user);
    }
}

/// A domain with as many virtual CPUs, all in one address space and about to execute `code`. The first is for the
/// calling thread.
fn domain(vcpus: u32, code: &[u8]) -> Option<(Domain, Vec<Vcpu>)> {
    let mut w = world_of(vcpus)?;
    w.load(code);
    Some(split(w, vcpus))
}

/// The same of a world in which more was prepared.
fn split(mut w: World, vcpus: u32) -> (Domain, Vec<Vcpu>) {
    let others: Vec<_> = (1..vcpus).map(|id| w.engine.cpu(id).unwrap()).collect();
    let World { memory, cpu, space, mut log, regs, .. } = w;
    log.share();
    let of = |cpu| Vcpu { cpu, space: VcpuSpace::new(space.root(), &log), regs };
    let all = std::iter::once(cpu).chain(others).map(of).collect();
    (Domain { memory, log: Mutex::new(log) }, all)
}

/// Runs each of the others on a thread of its own while the first is used here.
fn with_others<R>(
    mut all: Vec<Vcpu>,
    other: impl Fn(&mut Vcpu, usize) + Sync,
    first: impl FnOnce(&mut Vcpu) -> R,
) -> (R, Vec<Vcpu>) {
    let mut boot = all.remove(0);
    let (mut others, result) = std::thread::scope(|scope| {
        let other = &other;
        let start = |(number, mut vcpu): (usize, Vcpu)| {
            scope.spawn(move || {
                vcpu.cpu.settle_here().unwrap();
                other(&mut vcpu, number);
                vcpu
            })
        };
        let threads: Vec<_> = (1..).zip(all).map(start).collect();
        let result = first(&mut boot);
        (threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>(), result)
    });
    others.insert(0, boot);
    (result, others)
}
