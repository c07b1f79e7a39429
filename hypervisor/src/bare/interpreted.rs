//! A bare kernel's machine whose processor is interpreted: the guest's own page tables, and the same PC.
//!
//! There is no shadow: the interpreter walks the tables that the guest has made. What may not be done here: knowing how
//! instructions are executed.

use std::arch::x86_64::CpuidResult;
use std::sync::Arc;

use super::bus::{controls, exception_of};
use super::death::Death;
use super::machine::{BareBoot, StartError};
use super::outcome::{BareOutcome, killed, outcome_of};
use super::platform::{Platform, PlatformEvent};
use crate::exec::virtual_cpu::{VirtualCpu, hardware_flags};
use crate::host::host_cpuid;
use crate::interpreter::{self, Counts, Failure, Interpreter, Left, Machine, Place};
use crate::machine::end::DomainEnd;
use crate::machine::memory::{MachineMemory, Maddr};
use crate::machine::time::{Clock, rdtsc};
use crate::machine::words::Words;
use crate::mmu::guest::GuestTables;
use crate::virtio::Slot;
use crate::x86::decode;
use crate::x86::exception::Exception;
use crate::x86::guest_cpuid::{Dynamic, for_guest};
use crate::x86::registers::Regs;
use crate::x86::walk::Access;

/// Of so many questions whether the devices are due, one looks at the time.
const LOOKS: u32 = 4;

/// Everything around the processor.
struct Pc {
    platform: Platform,
    memory: Arc<MachineMemory>,
    tables: GuestTables,
    clock: Clock,
    /// When a device is to be asked again.
    deadline: Option<u64>,
    asked: u32,
}

/// Why the interpreter stopped, in the terms of bare machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was called.
    Called,
    /// As an exit with this outcome.
    Outcome(BareOutcome),
}

/// A bare kernel's machine, with its processor.
pub struct InterpretedMachine {
    interpreter: Interpreter<Pc>,
}

impl InterpretedMachine {
    /// A machine at the kernel's first instruction. `keeps` says whether decoded instructions are kept.
    ///
    /// # Errors
    /// When the loader's tables are not in the guest's memory.
    pub fn new(
        boot: &BareBoot,
        platform: Platform,
        memory: &Arc<MachineMemory>,
        clock: Clock,
        keeps: bool,
    ) -> Result<Self, StartError> {
        decode::prepare();
        let cpu = VirtualCpu::new(boot.cr3);
        let words = Words::new(memory).map_err(|_| StartError::Root(boot.cr3))?;
        let tables = GuestTables::default();
        let memory = Arc::clone(memory);
        let mut pc = Pc { platform, memory, tables, clock, deadline: None, asked: 0 };
        pc.activate(&cpu).map_err(|_| StartError::Root(boot.cr3))?;
        let regs = Regs {
            rip: boot.entry,
            rsp: boot.stack,
            rsi: boot.start_info,
            rflags: hardware_flags(0),
            ..Regs::default()
        };
        Ok(Self { interpreter: Interpreter::new(&regs, cpu, pc, words, keeps) })
    }

    /// Executes the guest until `called` says to return, or something concerns the monitor.
    pub fn run(&mut self, called: impl FnMut() -> bool) -> Stopped {
        Stopped::Outcome(match self.interpreter.run(called) {
            Left::Called => return Stopped::Called,
            Left::Halted => BareOutcome::Halted { until_ns: self.next_deadline() },
            Left::Event(event) => outcome_of(event),
            Left::Failed(failure) => BareOutcome::Ended(self.killed(failure)),
        })
    }

    fn killed(&self, failure: Failure<Death>) -> DomainEnd {
        let (regs, cpu) = (self.interpreter.regs(), self.interpreter.cpu());
        let rip = regs.rip;
        killed(match failure {
            Failure::TripleFault { vector } => {
                Death::TripleFault { vector, rip, cr2: cpu.cr2, rsp: regs.rsp, idt: cpu.idt.base }
            }
            Failure::HaltedForEver => Death::HaltedForEver { rip },
            Failure::Unknown(insn) => Death::NotInterpreted { rip, insn },
            Failure::Machine(death) => death,
        })
    }

    /// Whether the kernel waits in HLT, and nothing would wake it now.
    pub fn is_halted(&mut self) -> bool {
        let interrupts = self.interpreter.cpu().interrupts;
        let pc = self.interpreter.machine();
        let wakes = pc.interrupts() && interrupts;
        self.interpreter.cpu().halted && !wakes
    }

    /// When a device interrupts; `None` if none is going to by itself.
    pub fn next_deadline(&self) -> Option<u64> {
        self.interpreter.machine_ref().platform.next_deadline()
    }

    /// Its virtio devices, in order.
    pub fn slots(&self) -> Vec<&Slot> {
        self.interpreter.machine_ref().platform.slots()
    }

    /// The registers.
    pub fn regs(&self) -> Regs {
        self.interpreter.regs()
    }

    /// Instructions executed since the last call, the privileged ones among them, and instructions decoded.
    pub fn take_counts(&mut self) -> [u64; 3] {
        let Counts { instructions, privileged, decoded } = self.interpreter.take_counts();
        [instructions, privileged, decoded]
    }
}

impl Machine for Pc {
    type Failure = Death;
    type Event = PlatformEvent;

    fn translate(&mut self, va: u64, access: Access) -> Result<Place, Exception> {
        let found = self.tables.lookup(&self.memory, va, access).map_err(|fault| exception_of(fault, va))?;
        Ok(match found.maddr() {
            Some(at) => Place::Memory { at, level: found.level() },
            None => Place::Bus(found.physical()),
        })
    }

    fn activate(&mut self, cpu: &VirtualCpu) -> Result<(), Death> {
        if self.memory.pfn_to_mfn(Maddr(cpu.cr3).mfn().0).is_none() {
            return Err(Death::BadRoot(cpu.cr3));
        }
        self.tables = GuestTables { root: cpu.cr3, controls: controls(cpu) };
        Ok(())
    }

    fn bus_in(&mut self, address: u64, buf: &mut [u8]) {
        self.platform.memory_in(address, buf);
    }

    fn bus_out(&mut self, address: u64, bytes: &[u8]) {
        self.platform.memory_out(address, bytes);
    }

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.platform.port_in(port, size, self.clock.now())
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Option<PlatformEvent> {
        self.platform.port_out(port, size, value, self.clock.now())
    }

    fn interrupts(&mut self) -> bool {
        let pending = self.platform.poll(self.clock.now());
        self.deadline = self.platform.next_deadline();
        pending
    }

    fn acknowledge(&mut self) -> u8 {
        self.platform.acknowledge()
    }

    fn is_due(&mut self) -> bool {
        self.asked = self.asked.wrapping_add(1);
        self.asked.is_multiple_of(LOOKS) && self.deadline.is_some_and(|deadline| self.clock.now() >= deadline)
    }

    fn time_stamp(&self) -> u64 {
        rdtsc().wrapping_add(self.clock.tsc_offset())
    }

    fn cpuid(&self, function: u32, index: u32, osxsave: bool) -> CpuidResult {
        let dynamic = Dynamic { osxsave, xcr0: u64::MAX };
        let native = for_guest(function, index, dynamic, host_cpuid::xcr0(), host_cpuid::query);
        interpreter::shown(function, index, native)
    }

    fn foreign_writes(&self) -> u64 {
        self.memory.foreign_writes()
    }
}
