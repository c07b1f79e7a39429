//! What an engine does with several virtual CPUs, each on a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::engine::Coherence;
use crate::mmu::log::TableLog;

/// A virtual CPU beside the world's, which runs what the world has loaded, without end.
struct Beside<'a> {
    memory: &'a MachineMemory,
    log: &'a Mutex<TableLog>,
    over: &'a AtomicBool,
}

impl Beside<'_> {
    fn lock(&self) -> MutexGuard<'_, TableLog> {
        self.log.lock().unwrap()
    }

    /// Runs until it is over; what it does about page faults is to try again. How many there were.
    fn run(&self, mut cpu: Box<dyn Cpu>, mut regs: Regs, root: Mfn) -> u64 {
        cpu.settle_here().unwrap();
        let mut space = VcpuSpace::new(root, &self.lock());
        let mut faults = 0;
        while !self.over.load(Ordering::Acquire) {
            {
                let mut log = self.lock();
                cpu.catch_up(&mut space, &log, self.memory).unwrap();
                log.applied_for_everyone();
            }
            match cpu.enter(&mut regs, &space, self.memory) {
                Exit::Kick => {}
                Exit::Fault(Fault { vector: 14, address: DATA_VA, .. }) => faults += 1,
                exit => panic!("{exit:?} at {:#x}", regs.rip),
            }
        }
        faults
    }
}

/// What is done to the entry of the page that the other virtual CPU stores to.
const CHANGES: [fn(u64, u64) -> u64; 3] = [|_, _| 0, |old, _| old & !pte::RW, |_, other| other];

/// One virtual CPU stores to a page without end. Once the other one has caught up with a change of its entry, not one
/// store more comes to the old frame: where the catching up of any of them is that of all.
pub(crate) fn no_late_store(w: &mut World, rounds: u64) {
    assert_eq!(w.engine.info().coherence, Coherence::OwnEntry);
    let other = w.engine.cpu(1).unwrap();
    let kicker = other.kicker();
    let entry = w.entry(DATA_VA, 1);
    let (own, elsewhere) = (w.get(DATA_VA), pte::make(w.frame().0, DATA));
    let counter = w.mfn_of(DATA_VA).maddr();
    w.load(&code!("mov eax, 0x500000", "4: inc qword ptr [rax]", "jmp 4b"));
    let (regs, root) = (w.regs, w.space.root());
    w.log.share();
    let (log, over) = (Mutex::new(std::mem::take(&mut w.log)), AtomicBool::new(false));
    let World { memory, cpu, space, .. } = w;
    let beside = Beside { memory, log: &log, over: &over };
    let count = || memory.load_u64(counter).unwrap();
    let mut change = |new| {
        let mut log = beside.lock();
        let old = memory.load_u64(entry).unwrap();
        memory.store_u64(entry, new).unwrap();
        log.wrote(PteWrite { entry, old, new, level: 1 });
        cpu.catch_up(space, &log, memory).unwrap();
        log.applied_for_everyone();
    };
    let late = std::thread::scope(|scope| {
        let thread = scope.spawn(|| beside.run(other, regs, root));
        let mut late = 0;
        for round in 0..rounds {
            let before = count();
            while count() == before && !thread.is_finished() {
                std::hint::spin_loop();
            }
            for (number, new) in CHANGES.iter().enumerate() {
                if round % CHANGES.len() as u64 == number as u64 {
                    change(new(own, elsewhere));
                }
            }
            let at_once = count();
            for _ in 0..2000 {
                std::hint::spin_loop();
            }
            late += u64::from(count() != at_once);
            change(own);
        }
        over.store(true, Ordering::Release);
        kicker.kick();
        assert!(thread.join().unwrap() > 0, "it did find the page gone");
        late
    });
    assert_eq!(late, 0);
}
