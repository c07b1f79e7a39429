//! The loop: executes operations in runs, and between them looks at interrupts, calls from outside, and what the last
//! run left to do.

use iced_x86::Instruction;

use super::cache::Cache;
use super::core::{Core, Trouble};
use super::general::Flow;
use super::lower::lower;
use super::op::{Leave, RUN};
use super::outside::Machine;
use crate::exec::deliver::{Origin, Undelivered};
use crate::exec::privileged::Completion;
use crate::exec::virtual_cpu::VirtualCpu;
use crate::machine::memory::PAGE_SIZE;
use crate::x86::decode::{Dialect, instruction_at};
use crate::x86::exception::{Exception, vector};
use crate::x86::registers::Regs;
use crate::x86::rflags::{RF, TF};

/// Why the guest cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure<F> {
    /// An exception could not be delivered, nor the double fault.
    TripleFault { vector: u8 },
    /// HLT with interrupts off.
    HaltedForEver,
    /// An instruction that the machine has and the interpreter has not.
    Unknown(Instruction),
    /// For a reason of the machine's own.
    Machine(F),
}

/// Why the interpreter returned to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left<E, F> {
    /// It was called back.
    Called,
    /// The guest waits for an interrupt.
    Halted,
    /// An output to a port requested something.
    Event(E),
    /// It cannot go on. RIP is at the instruction.
    Failed(Failure<F>),
}

/// How much was executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub instructions: u64,
    /// Those of them that are privileged or sensitive.
    pub privileged: u64,
    pub decoded: u64,
}

/// A processor that is interpreted.
pub(crate) struct Interpreter<X: Machine> {
    core: Core<X>,
    cache: Cache<X>,
    /// Decoded instructions are kept.
    keeps: bool,
    /// A device interrupts, as far as is known.
    interrupts: bool,
    /// Devices are to be asked again.
    asks: bool,
    counts: Counts,
}

type Ended<X> = Left<<X as Machine>::Event, <X as Machine>::Failure>;

impl<X: Machine> Interpreter<X> {
    /// A processor with these registers. `keeps` says whether decoded instructions are kept.
    pub fn new(
        regs: &Regs,
        cpu: VirtualCpu,
        machine: X,
        words: crate::machine::words::Words,
        keeps: bool,
    ) -> Self {
        let frames = if keeps { words.memory().frames() } else { 0 };
        let reach = super::reach::Reach::new(machine, words, super::code_map::CodeMap::new(frames));
        let core = Core::new(regs, cpu, reach);
        Self { core, cache: Cache::new(), keeps, interrupts: false, asks: true, counts: Counts::default() }
    }

    /// The machine around it.
    pub fn machine(&mut self) -> &mut X {
        &mut self.core.reach.machine
    }

    /// The machine around it.
    pub fn machine_ref(&self) -> &X {
        &self.core.reach.machine
    }

    /// The privileged state.
    pub fn cpu(&self) -> &VirtualCpu {
        &self.core.cpu
    }

    /// The registers.
    pub fn regs(&self) -> Regs {
        self.core.regs()
    }

    /// What was executed since the last call.
    pub fn take_counts(&mut self) -> Counts {
        let decoded = std::mem::take(&mut self.cache.decoded);
        Counts { decoded, ..std::mem::take(&mut self.counts) }
    }

    /// Executes instructions until something concerns the caller, or `called` says so: it is asked once in a run.
    pub fn run(&mut self, mut called: impl FnMut() -> bool) -> Ended<X> {
        self.asks = true;
        loop {
            if let Some(left) = self.attend() {
                return left;
            }
            if called() {
                return Left::Called;
            }
            if let Err(left) = self.burst() {
                return left;
            }
        }
    }

    /// Executes one instruction, whatever interrupts: in its specialised form, if it has one, or in its general one.
    #[cfg(test)]
    pub(super) fn step(&mut self, specialised: bool) -> Result<(), Ended<X>> {
        self.attend_to_code();
        if specialised {
            return self.single();
        }
        match self.fetch() {
            Ok(insn) => self.general(&insn).map(drop),
            Err(exception) => self.fault(exception),
        }
    }

    /// The processor itself.
    #[cfg(test)]
    pub(super) fn core(&mut self) -> &mut Core<X> {
        &mut self.core
    }

    /// Between two runs.
    fn attend(&mut self) -> Option<Ended<X>> {
        self.attend_to_code();
        if self.core.reach.machine.is_due() || std::mem::take(&mut self.asks) {
            self.interrupts = self.core.reach.machine.interrupts();
        }
        if self.interrupts && self.core.cpu.interrupts && self.core.cpu.shadowed_rip != Some(self.core.rip) {
            let vector = self.core.reach.machine.acknowledge();
            self.asks = true;
            return self.deliver(Exception::plain(vector), Origin::External).err();
        }
        if self.core.cpu.halted { Some(Left::Halted) } else { None }
    }

    /// Drops what was decoded and then stored to.
    fn attend_to_code(&mut self) {
        if std::mem::take(&mut self.core.reach.attention) {
            self.asks = true;
            while let Some(chunk) = self.core.reach.code.take_written() {
                self.cache.drop_code(&mut self.core, chunk);
            }
        }
    }

    /// Executes a run, or one instruction where every single one matters.
    fn burst(&mut self) -> Result<(), Ended<X>> {
        let alone = self.core.rflags & (TF | RF) != 0 || self.core.cpu.shadowed_rip.is_some();
        if alone || !self.keeps { self.single() } else { self.many(RUN) }
    }

    /// Executes one instruction, with what single-stepping and the interrupt shadow want.
    fn single(&mut self) -> Result<(), Ended<X>> {
        let (stepping, shadowed) = (self.core.rflags & TF != 0, self.core.cpu.shadowed_rip);
        let resumed = self.core.rflags & RF != 0;
        let masked = !self.core.cpu.interrupts;
        let before = self.counts.instructions;
        if self.keeps {
            self.many(1)?
        } else {
            self.uncached()?
        }
        if self.core.cpu.shadowed_rip == shadowed {
            self.core.cpu.shadowed_rip = None;
        }
        if resumed {
            self.core.rflags &= !RF;
        }
        // An instruction that raised an exception, or was INT n, is not counted: it makes no trap of its own.
        let completed = self.counts.instructions != before;
        // The shadow of a load of SS holds back traps as well; that of STI does not (SDM vol. 3, 7.8.3).
        let shadows = self.core.cpu.shadowed_rip.is_some() && self.core.cpu.shadowed_rip != shadowed;
        let loads_ss = shadows && !(masked && self.core.cpu.interrupts);
        if stepping && completed && !loads_ss {
            self.core.with_executor(|executor| executor.note_single_step());
            self.deliver(Exception::plain(vector::DEBUG), Origin::Exception)?;
        }
        Ok(())
    }

    /// Executes up to `limit` operations from the cache.
    fn many(&mut self, limit: u32) -> Result<(), Ended<X>> {
        let mut left = limit;
        let mut linked = None;
        while left > 0 {
            let (chunk, at) = match self.cache.locate(&mut self.core) {
                Ok(found) => found,
                Err(exception) => return self.fault(exception),
            };
            if let Some((from, branch)) = linked.take()
                && from == chunk
                && let Some(chunk) = self.cache.chunks.get_mut(chunk as usize)
            {
                chunk.link(branch, at);
            }
            let Some(found) = self.cache.chunks.get(chunk as usize) else { return Ok(()) };
            let leave = self.core.next(&found.ops, at, left);
            self.counts.instructions += u64::from(left - self.core.left);
            left = self.core.left;
            let at = self.core.at;
            if leave == Leave::Goto {
                linked = Some((chunk, at));
            } else {
                let offset = found.ops.get(at).map_or(0, |op| op.offset);
                self.core.rip = self.core.page.wrapping_add(offset.into());
            }
            match leave {
                Leave::Goto if self.core.reach.attention => return Ok(()),
                Leave::Goto => {}
                Leave::Pause if left == 0 || self.core.reach.attention => return Ok(()),
                Leave::Pause => {}
                Leave::Raise => {
                    self.counts.instructions -= 1;
                    return self.fault(self.core.raised);
                }
                Leave::General => {
                    let Some(insn) = found.insns.get(at).copied() else { return Ok(()) };
                    self.counts.instructions -= 1;
                    if self.general(&insn)? {
                        return Ok(());
                    }
                }
                Leave::Crossing => {
                    self.uncached()?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Fetches, decodes and executes the instruction at RIP.
    fn uncached(&mut self) -> Result<(), Ended<X>> {
        let insn = match self.fetch() {
            Ok(insn) => insn,
            Err(exception) => return self.fault(exception),
        };
        self.cache.decoded += 1;
        let rip = self.core.rip;
        self.core.page = rip & !(PAGE_SIZE - 1);
        let op = lower::<X>(&insn, (rip % PAGE_SIZE) as usize);
        let leave = (op.run)(&mut self.core, &op, &[op], 0, 0);
        match leave {
            Leave::General => self.general(&insn).map(drop),
            Leave::Raise => {
                self.core.rip = rip;
                self.fault(self.core.raised)
            }
            _ => {
                self.counts.instructions += 1;
                if leave != Leave::Goto {
                    self.core.rip = insn.next_ip();
                }
                Ok(())
            }
        }
    }

    /// The instruction at RIP, from memory.
    fn fetch(&mut self) -> Result<Instruction, Exception> {
        let (rip, user) = (self.core.rip, self.core.cpu.user);
        let mut raised = None;
        let reach = &mut self.core.reach;
        let found = instruction_at(rip, Dialect::Intel, |va, buf| {
            let at = match reach.fetch_place(va, user) {
                Ok(at) => at,
                Err(exception) => {
                    raised = Some(exception);
                    return None;
                }
            };
            reach.words.memory().read(at, buf).ok()
        });
        // Without an instruction the fault of the page that is missing counts; without a fault there is no such
        // instruction.
        found.ok_or(raised.unwrap_or(Exception::undefined()))
    }

    /// Executes an instruction in its general form; whether the run is over.
    fn general(&mut self, insn: &Instruction) -> Result<bool, Ended<X>> {
        match self.core.general(insn) {
            Ok(flow) => self.conclude(insn, flow),
            Err(Trouble::Exception(exception)) => self.fault(exception).map(|()| true),
            Err(Trouble::Machine(failure)) => Err(Left::Failed(Failure::Machine(failure))),
            Err(Trouble::Unknown(insn)) => Err(Left::Failed(Failure::Unknown(insn))),
        }
    }

    fn conclude(&mut self, insn: &Instruction, flow: Flow<X::Event>) -> Result<bool, Ended<X>> {
        let completion = match flow {
            Flow::Next => {
                self.core.rip = insn.next_ip();
                self.counts.instructions += 1;
                return Ok(self.core.reach.attention);
            }
            Flow::Jump(target) => {
                self.core.rip = target;
                self.counts.instructions += 1;
                return Ok(self.core.reach.attention);
            }
            Flow::Again => {
                self.counts.instructions += 1;
                return Ok(true);
            }
            Flow::Privileged(completion) => completion,
        };
        self.counts.privileged += 1;
        match completion {
            Completion::Advance => self.core.rip = insn.next_ip(),
            Completion::Jumped | Completion::Again => {}
            Completion::Halt => {
                if !self.core.cpu.interrupts {
                    return Err(Left::Failed(Failure::HaltedForEver));
                }
                self.core.rip = insn.next_ip();
                self.core.cpu.halted = true;
                self.core.cpu.shadowed_rip = None;
                self.asks = true;
            }
            Completion::Event { event, ended } => {
                if ended {
                    self.core.rip = insn.next_ip();
                }
                self.counts.instructions += 1;
                return Err(Left::Event(event));
            }
            Completion::Interrupt(number) => {
                let next_rip = insn.next_ip();
                return self.deliver(Exception::plain(number), Origin::Software { next_rip }).map(|()| true);
            }
        }
        self.counts.instructions += 1;
        Ok(true)
    }

    /// Delivers a fault of the instruction at RIP.
    fn fault(&mut self, exception: Exception) -> Result<(), Ended<X>> {
        // In the frame of a fault, so that a breakpoint on the instruction is passed over (SDM vol. 3, 17.3.1.1).
        self.core.rflags |= RF;
        self.core.raised = exception;
        self.deliver(exception, Origin::Exception)
    }

    fn deliver(&mut self, event: Exception, origin: Origin) -> Result<(), Ended<X>> {
        let delivered = self.core.with_executor(|executor| executor.deliver(event, origin));
        delivered.map_err(|undelivered| {
            Left::Failed(match undelivered {
                Undelivered::TripleFault { vector } => Failure::TripleFault { vector },
                Undelivered::Machine(failure) => Failure::Machine(failure),
            })
        })
    }
}
