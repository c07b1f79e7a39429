//! The engine of techniques that need none: the vCPU is the monitor's thread, and what runs the guest is the technique.
//!
//! What is left of an engine is what the layers above ask of one: the rate of the clock, and kicks. A kick is a flag
//! that the technique looks at between two of its runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use super::tsc;
use super::{Cpu, EngineInfo, Exit, Machine, NoCpu};
use crate::machine::kick::Kick;
use crate::machine::memory::MachineMemory;
use crate::machine::time::rdtsc;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::registers::Regs;

/// First linear address past the lower half.
const LOWER_HALF_END: u64 = 1 << 47;
/// Of so many questions for a kick, one looks at the time.
const LOOKS: u32 = 4;

/// A machine without a guest of its own.
#[derive(Debug)]
pub struct ThreadMachine {
    info: EngineInfo,
    given: bool,
}

impl ThreadMachine {
    /// A machine on this thread.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let start = tsc::Instant::now();
        let info = EngineInfo {
            name: "interpreter",
            transport: "none",
            detail: "the monitor's own thread".to_owned(),
            lower_half_end: LOWER_HALF_END,
            upper_half: true,
            native_selectors: true,
            tsc_khz: tsc::told_khz().unwrap_or_else(|| start.khz_since()),
            ..EngineInfo::default()
        };
        Self { info, given: false }
    }
}

impl Machine for ThreadMachine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn hypercall_stub(&self, _: u32) -> [u8; 32] {
        // UD2: no guest that makes hypercalls runs here.
        let mut stub = [0xcc; 32];
        (stub[0], stub[1]) = (0x0f, 0x0b);
        stub
    }

    fn reserved_l4_entries(&self) -> [u64; 16] {
        [0; 16]
    }

    fn cpu(&mut self, id: u32) -> Result<Box<dyn Cpu>, NoCpu> {
        if id != 0 {
            return Err(NoCpu::Absent { engine: self.info.name, id, vcpus: 1 });
        }
        if std::mem::replace(&mut self.given, true) {
            return Err(NoCpu::Taken(id));
        }
        let flag = Arc::new(Flag { khz: self.info.tsc_khz, ..Flag::default() });
        Ok(Box::new(ThreadCpu { flag, asked: 0 }))
    }
}

/// A kick, now or later.
#[derive(Debug, Default)]
struct Flag {
    kicked: AtomicBool,
    /// The time-stamp counter at which the time is up; 0 for never.
    at: AtomicU64,
    khz: u64,
}

impl Kick for Flag {
    fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
    }

    fn arm(&self, ns: u64) {
        let ticks = u128::from(ns) * u128::from(self.khz) / 1_000_000;
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        let at = if ns == 0 { 0 } else { rdtsc().saturating_add(ticks).max(1) };
        self.at.store(at, Ordering::Relaxed);
    }
}

/// The virtual CPU, as far as it is an engine's.
#[derive(Debug)]
struct ThreadCpu {
    flag: Arc<Flag>,
    asked: u32,
}

impl Cpu for ThreadCpu {
    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        _: &MachineMemory,
    ) -> Result<(), &'static str> {
        space.caught_up(log);
        Ok(())
    }

    fn enter(&mut self, _: &mut Regs, _: &VcpuSpace, _: &MachineMemory) -> Exit {
        Exit::Dead("this engine runs no guest; this is a bug in Paravane, please report it")
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.flag.clone()
    }

    fn take_kick(&mut self) -> bool {
        self.asked = self.asked.wrapping_add(1);
        if self.flag.kicked.load(Ordering::Relaxed) {
            return self.flag.kicked.swap(false, Ordering::AcqRel);
        }
        if !self.asked.is_multiple_of(LOOKS) {
            return false;
        }
        let at = self.flag.at.load(Ordering::Relaxed);
        let up = at != 0 && rdtsc() >= at;
        if up {
            self.flag.at.store(0, Ordering::Relaxed);
        }
        up
    }

    fn save(&mut self) -> Result<VectorState, BadState> {
        Err(BadState::Refused)
    }

    fn load(&mut self, _: &VectorState) -> Result<(), BadState> {
        Err(BadState::Refused)
    }

    fn debug(&mut self, _: &Breakpoints) -> Result<(), NoBreakpoints> {
        Err(NoBreakpoints::Absent("the interpreter"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kicks_within(cpu: &mut dyn Cpu, asks: u32) -> bool {
        (0..asks).any(|_| cpu.take_kick())
    }

    #[test]
    fn a_kick_is_taken_once() {
        let mut machine = ThreadMachine::new();
        let mut cpu = machine.cpu(0).unwrap();
        assert!(machine.cpu(0).is_err() && machine.cpu(1).is_err());
        assert!(!kicks_within(&mut *cpu, 2 * LOOKS));
        let kicker = cpu.kicker();
        kicker.kick();
        assert!(cpu.take_kick() && !cpu.take_kick());
        kicker.arm(1);
        while !cpu.take_kick() {}
        assert!(!kicks_within(&mut *cpu, 2 * LOOKS));
        kicker.arm(u64::MAX);
        assert!(!kicks_within(&mut *cpu, 2 * LOOKS));
        kicker.arm(1);
        kicker.arm(0);
        assert!(!kicks_within(&mut *cpu, 2 * LOOKS));
    }
}
