//! A bare kernel's machine: its virtual CPU, the shadow of its page tables, and its PC.

use std::ops::Range;

use super::bus::{Bus, controls, view};
use super::handler::ExitHandler;
use super::history::FaultHistory;
use super::outcome::{BareExit, killed};
use super::platform::Platform;
use crate::engine::Exit;
use crate::exec::executor::Executor;
use crate::exec::virtual_cpu::{VirtualCpu, hardware_flags};
use crate::machine::end::DomainEnd;
use crate::machine::memory::{MachineMemory, Maddr, PAGE_SIZE};
use crate::mmu::log::TableLog;
use crate::mmu::shadow::{NoShadow, Shadow};
use crate::mmu::space::VcpuSpace;
use crate::virtio::Slot;
use crate::x86::decode;
use crate::x86::registers::{Regs, SystemRegisters};
use crate::x86::walk::{PseudoPhysicalTables, walk};

/// The first state of a bare kernel's CPU, as the boot protocol has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareBoot {
    /// Linear address of the first instruction.
    pub entry: u64,
    /// Top of the boot stack.
    pub stack: u64,
    /// Address of the `hvm_start_info`, in the guest's terms: RSI.
    pub start_info: u64,
    /// Address of the L4 table, in the guest's terms.
    pub cr3: u64,
}

/// A bare guest could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Shadow tables cannot be made.
    #[error(transparent)]
    Shadow(#[from] NoShadow),
    /// The loader's L4 table is not in the guest's memory.
    #[error("the first L4 table, at {0:#x}, is not in the guest's memory; give the guest more memory")]
    Root(u64),
}

/// A bare kernel's machine, without its memory and general registers.
#[derive(Debug)]
pub struct BareMachine {
    pub(super) cpu: VirtualCpu,
    pub(super) shadow: Shadow,
    pub(super) platform: Platform,
    pub(super) history: FaultHistory,
}

impl BareMachine {
    /// A machine at the kernel's first instruction, and the registers to enter the guest with.
    ///
    /// `shadow_frames` are the hypervisor's frames for shadow tables, zeroed; `reserved` are
    /// [`crate::engine::Machine::reserved_l4_entries`]. Sets the root of `paging`.
    pub fn new(
        boot: &BareBoot,
        shadow_frames: Range<u64>,
        reserved: [u64; 16],
        platform: Platform,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
    ) -> Result<(Self, Regs), StartError> {
        decode::prepare();
        let cpu = VirtualCpu::new(boot.cr3);
        let mut shadow = Shadow::new(shadow_frames, mem.guest_frames(), reserved)?;
        shadow
            .activate(mem, log, space, boot.cr3, view(&cpu), controls(&cpu))
            .map_err(|bad| StartError::Root(bad.0))?;
        let regs = Regs {
            rip: boot.entry,
            rsp: boot.stack,
            rsi: boot.start_info,
            rflags: hardware_flags(0),
            ..Regs::default()
        };
        Ok((Self { cpu, shadow, platform, history: FaultHistory::default() }, regs))
    }

    /// Handles one exit of the guest.
    pub fn handle_exit(
        &mut self,
        regs: &mut Regs,
        exit: Exit,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        now_ns: u64,
    ) -> BareExit {
        self.handler(regs, mem, log, space, now_ns).handle(exit)
    }

    /// Delivers a pending interrupt if the guest takes interrupts now; returns its vector.
    ///
    /// To be called before every entry.
    ///
    /// # Errors
    /// How the guest ends, if its tables are too broken for the delivery.
    pub fn deliver_pending(
        &mut self,
        regs: &mut Regs,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        now_ns: u64,
    ) -> Result<Option<u8>, DomainEnd> {
        self.handler(regs, mem, log, space, now_ns).deliver_pending().map_err(killed)
    }

    /// Its virtio devices, in order.
    pub fn slots(&self) -> Vec<&Slot> {
        self.platform.slots()
    }

    /// Whether the kernel waits in HLT.
    pub fn is_halted(&self) -> bool {
        self.cpu.halted
    }

    /// What it was doing, as the rest of a sentence.
    pub fn doing(&self) -> &'static str {
        match (self.cpu.halted, self.cpu.interrupts) {
            (true, true) => "waits for an interrupt (HLT)",
            (true, false) => "waits in HLT with interrupts off: nothing can wake it",
            (false, true) => "runs",
            (false, false) => "runs with interrupts off",
        }
    }

    /// The memory behind a linear address, by the guest's own tables; `None` where nothing is mapped, or a device.
    pub fn translate(&self, memory: &MachineMemory, va: u64) -> Option<Maddr> {
        walk(memory, &PseudoPhysicalTables, self.cpu.cr3, va).ok()?.maddr
    }

    /// Whether a frame of the guest's is a page table that has a shadow.
    pub fn is_shadowed(&self, pfn: u64) -> bool {
        self.shadow.is_table(pfn)
    }

    /// What its kernel has in registers that a debugger knows and [`Regs`] has not.
    pub fn system_registers(&self) -> SystemRegisters {
        let VirtualCpu { cr0, cr2, cr3, cr4, kernel_gs_base, .. } = self.cpu;
        SystemRegisters { other_gs_base: kernel_gs_base, cr0, cr2, cr3, cr4 }
    }

    /// Eight bytes of the guest's linear memory, by its own tables; `None` where there are none, or on two pages.
    pub fn peek(&self, memory: &MachineMemory, va: u64) -> Option<u64> {
        if va % PAGE_SIZE > PAGE_SIZE - 8 {
            return None;
        }
        memory.read_obj(self.translate(memory, va)?).ok()
    }

    /// When the monitor should kick the guest, or wake it from HLT, because a device raises an interrupt that the guest
    /// takes; `None` if no device is going to.
    ///
    /// `notices_sti` says whether the guest's turning interrupts on is an exit. Then a kick with interrupts off would
    /// have no effect, and none is asked for.
    pub fn next_deadline(&self, notices_sti: bool) -> Option<u64> {
        if self.cpu.interrupts || !notices_sti { self.platform.next_deadline() } else { None }
    }

    /// Executes the instruction at RIP, whether or not it would trap: for code of ours that called out in its place.
    pub fn execute_here(
        &mut self,
        regs: &mut Regs,
        mem: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        now_ns: u64,
    ) -> BareExit {
        self.handler(regs, mem, log, space, now_ns).execute_here()
    }

    /// Its virtual CPU and the shadow of its page tables, and whether an interrupt waits for the kernel to allow it:
    /// for code of ours beside the guest's.
    pub(crate) fn hot_parts(&mut self) -> (&mut VirtualCpu, &mut Shadow, bool) {
        let waits = self.platform.interrupt_waits();
        (&mut self.cpu, &mut self.shadow, waits)
    }

    /// The shadow of its page tables, for code of ours beside the guest's.
    pub fn shadow(&mut self) -> &mut Shadow {
        &mut self.shadow
    }

    fn handler<'a>(
        &'a mut self,
        regs: &'a mut Regs,
        mem: &'a MachineMemory,
        log: &'a mut TableLog,
        space: &'a mut VcpuSpace,
        now_ns: u64,
    ) -> ExitHandler<'a> {
        let bus = Bus { shadow: &mut self.shadow, platform: &mut self.platform, mem, log, space, now_ns };
        let exec = Executor { cpu: &mut self.cpu, regs, outside: bus };
        ExitHandler { exec, history: &mut self.history }
    }
}
