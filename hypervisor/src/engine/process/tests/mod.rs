//! The engine's contract, run on this engine.

mod attacks;
mod lanes;
mod lifecycle;
mod low_pages;

use super::*;
use crate::engine::Machine;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::Backing;
use crate::machine::memory::MachineMemory;
use crate::testing::engine::{World, contract};
use crate::testing::skip::skip;

pub(super) fn world() -> Option<World> {
    world_of(1)
}

/// A world with so many virtual CPUs, of which it has the first.
pub(super) fn world_of(vcpus: u32) -> Option<World> {
    world_by(|memory, layout| ProcessMachine::with_lowest(memory, layout, Lowest::ASSUMED, vcpus))
}

/// The same of a machine that `make` makes.
fn world_by(
    make: impl FnOnce(&MachineMemory, &HypervisorLayout) -> Result<ProcessMachine, ProcessEngineError>,
) -> Option<World> {
    if let Err(missing) = probe() {
        skip("process", missing);
        return None;
    }
    let make = |memory: &MachineMemory, layout: &HypervisorLayout| {
        make(memory, layout).map(|e| Box::new(e) as Box<dyn Machine>)
    };
    Some(World::new(Backing::Memfd, make).unwrap())
}

contract!(world);

/// The monitor answers CPUID where the host can make it trap.
#[test]
fn cpuid_traps_where_it_can() {
    let Some(mut w) = world() else { return };
    if !crate::host::host_cpuid::can_trap() {
        return skip("cpuid-faulting", "CPUID cannot be made to trap on this host");
    }
    w.regs.rax = 0;
    assert_eq!(w.exec(&crate::testing::engine::code!("cpuid", "cli")), crate::testing::engine::gp(0));
    assert_eq!((w.regs.rip, w.regs.rax), (crate::testing::engine::CODE_VA, 0));
}

#[test]
#[ignore = "a measurement: run it alone, in release"]
fn measure() {
    let Some(mut w) = world() else { return };
    crate::testing::engine::measure::print(&mut w);
    let (mut made, mut dropped) = (f64::MAX, f64::MAX);
    for _ in 0..30 {
        let start = std::time::Instant::now();
        let engine = ProcessMachine::new(&w.memory, &w.layout).unwrap();
        made = made.min(start.elapsed().as_nanos() as f64);
        let start = std::time::Instant::now();
        drop(engine);
        dropped = dropped.min(start.elapsed().as_nanos() as f64);
    }
    println!("engine made: best {:.0} us; dropped: best {:.0} us", made / 1000.0, dropped / 1000.0);
}
