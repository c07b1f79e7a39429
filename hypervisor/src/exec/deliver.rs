//! Delivering exceptions and interrupts through the guest's IDT (SDM vol. 3, 6.14).

use paravane_abi::addr::is_canonical;

use super::executor::{Executor, Rights};
use super::outside::{Attempt, Incomplete, Surroundings};
use crate::x86::debug::DR6_SINGLE_STEP;
use crate::x86::descriptor::{Gate, error_of, is_null, tss};
use crate::x86::exception::selector_error::{EXTERNAL, IDT, INDEX_SHIFT};
use crate::x86::exception::{Exception, vector};
use crate::x86::rflags;

/// The source of an event, which decides privilege checks, error codes and double faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An exception of the running code.
    Exception,
    /// An interrupt from a device.
    External,
    /// INT n, INT3 or INTO. `next_rip` is the return address in the frame: after the instruction.
    Software { next_rip: u64 },
}

/// Why an event did not reach a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undelivered<F> {
    /// The double fault could not be delivered either. `vector` is that of the last exception in the chain.
    TripleFault { vector: u8 },
    /// The machine cannot go on.
    Machine(F),
}

impl<M: Surroundings> Executor<'_, M> {
    /// Delivers an exception that the running code raised.
    fn raise(&mut self, exception: Exception) -> Result<(), Undelivered<M::Failure>> {
        self.deliver(exception, Origin::Exception)
    }

    /// Delivers an event. A fault during the delivery is delivered in its place, as a double fault where the two make
    /// one.
    pub fn deliver(&mut self, event: Exception, origin: Origin) -> Result<(), Undelivered<M::Failure>> {
        let (mut event, mut origin) = (event, origin);
        // The longest chain is benign, contributory, page fault, double fault (SDM vol. 3, table 6-5).
        for _ in 0..5 {
            let second = match self.try_deliver(event, origin) {
                Ok(()) => return Ok(()),
                Err(Incomplete::Machine(failure)) => return Err(Undelivered::Machine(failure)),
                Err(Incomplete::Exception(second)) => second,
            };
            if second.vector == vector::PAGE {
                self.cpu.cr2 = second.address;
            }
            let first_is_fault = origin == Origin::Exception;
            if first_is_fault && event.vector == vector::DOUBLE_FAULT {
                break;
            }
            event = if first_is_fault && second.doubles(event) { Exception::double_fault() } else { second };
            origin = Origin::Exception;
        }
        Err(Undelivered::TripleFault { vector: event.vector })
    }

    /// Sets RIP to `next`, and raises #DB if single-stepping is on.
    pub fn advance(&mut self, next: u64) -> Result<(), Undelivered<M::Failure>> {
        self.regs.rip = next;
        self.regs.rflags &= !rflags::RF;
        if self.regs.rflags & rflags::TF == 0 {
            return Ok(());
        }
        self.note_single_step();
        self.raise(Exception::plain(vector::DEBUG))
    }

    /// Records in DR6 that a #DB comes from a single step.
    pub fn note_single_step(&mut self) {
        let [.., dr6, _] = &mut self.cpu.debug;
        *dr6 |= DR6_SINGLE_STEP;
    }

    fn try_deliver(&mut self, event: Exception, origin: Origin) -> Attempt<(), M> {
        if event.vector == vector::PAGE && origin == Origin::Exception {
            self.cpu.cr2 = event.address;
        }
        let external = if matches!(origin, Origin::Software { .. }) { 0 } else { EXTERNAL };
        let gate = self.gate(event.vector, origin, external)?;
        let to_user = self.target_is_user(gate.selector, external)?;
        let stack = self.handler_stack(&gate, to_user, external)?;
        if !is_canonical(gate.handler) {
            return Err(Exception::protection(external).into());
        }
        let rip = if let Origin::Software { next_rip } = origin { next_rip } else { self.regs.rip };
        let rsp = self.push_frame(stack & !15, rip, event.error)?;

        self.regs.rsp = rsp;
        self.regs.rip = gate.handler;
        if self.cpu.user && !to_user {
            self.cpu.selectors.ss = 0;
        }
        self.cpu.selectors.cs = gate.selector & !3 | if to_user { 3 } else { 0 };
        self.regs.rflags &= !(rflags::TF | rflags::RF | rflags::NT | rflags::AC);
        if gate.kind == Gate::INTERRUPT {
            self.cpu.interrupts = false;
        }
        (self.cpu.shadowed_rip, self.cpu.halted) = (None, false);
        self.set_user(to_user)
    }

    fn gate(&mut self, vector: u8, origin: Origin, external: u32) -> Attempt<Gate, M> {
        let error = u32::from(vector) << INDEX_SHIFT | IDT | external;
        let offset = u64::from(vector) * Gate::SIZE;
        if offset + Gate::SIZE - 1 > u64::from(self.cpu.idt.limit) {
            return Err(Exception::protection(error).into());
        }
        let at = self.cpu.idt.base.wrapping_add(offset);
        let low = self.read_value(at, 8, Rights::System)?;
        let high = self.read_value(at.wrapping_add(8), 8, Rights::System)?;
        let gate = Gate::from_words(low, high);
        let software = matches!(origin, Origin::Software { .. });
        if !matches!(gate.kind, Gate::INTERRUPT | Gate::TRAP) || (software && gate.dpl < self.cpu.cpl()) {
            return Err(Exception::protection(error).into());
        }
        if gate.present { Ok(gate) } else { Err(Exception::not_present(error).into()) }
    }

    /// Checks the handler's code segment; returns whether the handler runs at CPL 3.
    fn target_is_user(&mut self, selector: u16, external: u32) -> Attempt<bool, M> {
        if is_null(selector) {
            return Err(Exception::protection(external).into());
        }
        let error = error_of(selector) | external;
        let d = self.descriptor(selector).map_err(|stop| match stop {
            Incomplete::Exception(e) if e.vector == vector::PROTECTION => Exception::protection(error).into(),
            other => other,
        })?;
        let level = if d.is_conforming() { self.cpu.cpl() } else { d.dpl() };
        if !d.is_code() || !d.is_64_bit() || level > self.cpu.cpl() || !matches!(level, 0 | 3) {
            return Err(Exception::protection(error).into());
        }
        if !d.is_present() {
            return Err(Exception::not_present(error).into());
        }
        Ok(level == 3)
    }

    /// The stack pointer to push the frame at: of the gate's IST entry, of the kernel (RSP0), or the current one.
    fn handler_stack(&mut self, gate: &Gate, to_user: bool, external: u32) -> Attempt<u64, M> {
        let offset = match gate.stack {
            0 if self.cpu.user && !to_user => tss::RSP0,
            0 => return Ok(self.regs.rsp),
            n => tss::IST1 + 8 * (u64::from(n) - 1),
        };
        let task = self.cpu.task;
        if is_null(task.selector) || offset + 7 > u64::from(task.limit) {
            return Err(Exception::invalid_tss(error_of(task.selector) | external).into());
        }
        self.read_value(task.base.wrapping_add(offset), 8, Rights::System)
    }

    /// Pushes SS, RSP, RFLAGS, CS, RIP and the error code below `top`; returns the new stack pointer.
    fn push_frame(&mut self, top: u64, rip: u64, error: Option<u32>) -> Attempt<u64, M> {
        let words = [
            u64::from(error.unwrap_or(0)),
            rip,
            self.cpu.selectors.cs.into(),
            self.cpu.flags(self.regs),
            self.regs.rsp,
            self.cpu.selectors.ss.into(),
        ];
        let mut bytes = [0u8; 48];
        for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        let frame = if error.is_some() { &bytes[..] } else { &bytes[8..] };
        let rsp = top.wrapping_sub(frame.len() as u64);
        self.write(rsp, frame, Rights::System).map_err(Incomplete::on_stack)?;
        Ok(rsp)
    }
}
