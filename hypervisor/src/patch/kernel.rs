//! The guest's kernel, as patching sees it: its code through its own page tables, with what is replaced in it as it
//! was.

use std::ops::Range;

use iced_x86::Instruction;

use super::flow::{Flow, explore};
use crate::exec::virtual_cpu::VirtualCpu;
use crate::ledger::Ledger;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::log::TableLog;
use crate::mmu::shadow::{LookupError, Shadow};
use crate::mmu::space::VcpuSpace;
use crate::x86::decode::{Dialect, instruction_at};
use crate::x86::descriptor::Gate;
use crate::x86::exception::page_error;
use crate::x86::registers::Regs;
use crate::x86::walk::Access;

/// The guest, and what is around it.
pub(crate) struct Kernel<'a> {
    pub cpu: &'a mut VirtualCpu,
    pub shadow: &'a mut Shadow,
    pub regs: &'a mut Regs,
    pub memory: &'a MachineMemory,
    pub log: &'a mut TableLog,
    pub space: &'a mut VcpuSpace,
    pub ledger: &'a mut Ledger,
}

impl Kernel<'_> {
    /// The machine address of the kernel's code at `va`.
    pub fn code_at(&self, va: u64) -> Option<Maddr> {
        let access = Access { write: false, user: false, fetch: true };
        self.shadow.lookup(self.memory, va, access).ok()?.maddr()
    }

    /// The instruction at `va`, as the guest wrote it.
    pub fn instruction(&self, va: u64) -> Option<Instruction> {
        instruction_at(va, Dialect::Intel, |va, buf| {
            self.shadow.read(self.memory, self.code_at(va)?, buf).ok()
        })
    }
}

/// What direct control flow reaches in a function, as it is in memory.
pub(super) fn flow_of(k: &Kernel<'_>, function: &Range<u64>) -> Option<Flow> {
    let len =
        usize::try_from(function.end.checked_sub(function.start)?).ok().filter(|len| *len <= 1 << 20)?;
    let mut code = vec![0; len];
    let mut at = function.start;
    while at < function.end {
        let end = function.end.min((at | (PAGE_SIZE - 1)).saturating_add(1));
        let part = usize::try_from(at - function.start).ok()?..usize::try_from(end - function.start).ok()?;
        k.shadow.read(k.memory, k.code_at(at)?, code.get_mut(part)?).ok()?;
        at = end;
    }
    explore(&code, function.start)
}

/// Where the gates of the kernel's IDT lead: what is there is executed, sooner or later. In order.
pub(super) fn gate_targets(k: &Kernel<'_>) -> Vec<u64> {
    let gates = (u64::from(k.cpu.idt.limit) + 1) / Gate::SIZE;
    let word = |at: u64| {
        let mut bytes = [0; 8];
        let maddr = k.shadow.lookup(k.memory, at, Access::default()).ok()?.maddr()?;
        k.shadow.read(k.memory, maddr, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let target = |vector: u64| {
        let at = k.cpu.idt.base.checked_add(vector * Gate::SIZE).filter(|at| at % 8 == 0)?;
        let gate = Gate::from_words(word(at)?, word(at.checked_add(8)?)?);
        (gate.present && matches!(gate.kind, Gate::INTERRUPT | Gate::TRAP)).then_some(gate.handler)
    };
    let mut targets: Vec<u64> = (0..gates.min(256)).filter_map(target).collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// Whether a page of ours may lie at `va`: on the side of the address space where `site` is, and nothing is mapped.
pub(super) fn is_free(k: &Kernel<'_>, site: u64, va: u64) -> bool {
    const LOWEST: u64 = 0x1_0000;
    let same_half = (va ^ site) >> 47 == 0;
    let access = Access::default();
    let unmapped = || match k.shadow.lookup(k.memory, va, access) {
        Err(LookupError::PageFault(code)) => code & page_error::PRESENT == 0,
        _ => false,
    };
    va >= LOWEST && same_half && !paravane_abi::addr::is_hypervisor(va) && unmapped()
}
