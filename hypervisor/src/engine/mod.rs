//! Engines run code at CPL 3 and map pages; nothing else.
//!
//! A [`Machine`] makes virtual CPUs. A [`Cpu`] enters the guest and returns with an [`Exit`] that says, in the terms of
//! the architecture, why the code stopped. It knows nothing of hypercalls, events, emulation or devices: what an exit
//! means is decided above it. Page tables are ordinary frames of machine memory in the x86-64 format. Code that
//! changes an entry stores it there first and then notes it in the domain's [`TableLog`], from which an engine that
//! caches translations (a shadow-paging KVM, a mirror of mappings in a process) learns of it.
//!
//! Everything here runs on the thread of the virtual CPU, except [`Kick`], which any thread and any signal handler may
//! use. What may not be done here: looking at a domain, deciding what an exit means, allocating or logging between two
//! entries.

use std::io;
use std::sync::Arc;

use crate::machine::kick::Kick;
use crate::machine::memory::MachineMemory;
use crate::mmu::crossing::Crossed;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;
use crate::x86::virtualization::Hardware;
use state::{BadState, Breakpoints, NoBreakpoints, VectorState};

pub mod kvm;
pub mod process;
pub mod state;
pub mod thread;
mod tsc;

/// The address with bits 63:48 as bit 47 has them: itself if it is canonical.
fn canonical(address: u64) -> u64 {
    (address.cast_signed() << 16 >> 16).cast_unsigned()
}

/// Why guest code stopped. `regs` are then the guest's own, as they were at that point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The hypercall page's stub: number in rax, `regs.rip` after the stub's trap instruction, which is
    /// [`EngineInfo::call_length`] bytes long. Where that instruction is a SYSCALL, the next. Never in user mode.
    Hypercall,
    /// A SYSCALL instruction; `regs.rip` is the instruction after it and `regs.rflags` the flags at it
    /// (rcx and r11 hold both too, as the architecture has it).
    Syscall,
    /// An exception; `regs.rip` is what the architecture pushes for it (the instruction itself for faults).
    Fault(Fault),
    /// An access to an I/O port that did not raise a #GP. Only where the guest's kernel runs at CPL 0.
    Port {
        /// Which port.
        port: u16,
        /// Bytes of one element: 1, 2 or 4.
        size: u8,
        /// Bytes in all: a repeated string instruction may transfer several elements in one exit, 4096 bytes at most.
        bytes: usize,
        /// Whether it is an output. Its bytes are [`Ring0::written`]; those of an input are given by
        /// [`Ring0::answer`].
        write: bool,
    },
    /// An access to a guest-physical address that is not memory. Only where the guest's kernel runs at CPL 0.
    Mmio {
        /// The guest-physical address.
        address: u64,
        /// Bytes: 1 to 8.
        bytes: usize,
        /// Whether it is a store, with its bytes as for a port.
        write: bool,
    },
    /// A HLT with nothing to wake it; `regs.rip` is after it. Only where the guest's kernel runs at CPL 0.
    Halt,
    /// The guest takes interrupts now, as [`Ring0::request_window`] asked. Only where its kernel runs at CPL 0.
    Window,
    /// The guest lowered its task priority (MOV to CR8). Only where its kernel runs at CPL 0.
    Priority,
    /// A triple fault: an exception could not be delivered, nor could the double fault. Only where the guest's kernel
    /// runs at CPL 0.
    Shutdown,
    /// The engine was kicked (see [`Kick`]) or the host interrupted it: nothing happened in the guest.
    Kick,
    /// The virtual CPU cannot go on: the engine lost its state. Ends the guest, not the host.
    Dead(&'static str),
}

impl Exit {
    /// The last message of a guest whose engine reported an exit that only code at CPL 0 can cause.
    pub const NOT_AT_CPL_3: &'static str = concat!(
        "the engine reports an exit that code at CPL 3 cannot make; ",
        "this is a bug in Paravane, please report it"
    );
}

/// What an engine is, and where the layers above may put things.
#[derive(Clone, Debug, Default)]
pub struct EngineInfo {
    /// "kvm" or "process".
    pub name: &'static str,
    /// How the hypercall page enters the host, e.g. "pio", "vmcall", "syscall".
    pub transport: &'static str,
    /// One line about the host's side, e.g. "software KVM (kvm_pvm)".
    pub detail: String,
    /// Length of the hypercall page's instruction that enters the host: how far back a call that is to be issued
    /// again begins.
    pub call_length: u64,
    /// Linear address at which the guest finds the machine-to-physical table.
    pub m2p_va: u64,
    /// First linear address that a guest can use.
    pub lower_half_start: u64,
    /// First linear address past what a guest can use below the hypervisor's range (exclusive).
    pub lower_half_end: u64,
    /// Whether kernels linked in the upper half (0xffffffff80000000) can run.
    pub upper_half: bool,
    /// Whether the processor runs on [`Regs::selectors`] and on the guest's own descriptor table.
    pub native_selectors: bool,
    /// Rate of the time-stamp counter that the guest reads, in kHz.
    pub tsc_khz: u64,
    /// What to add (wrapping) to the host's RDTSC to get the guest's.
    pub tsc_offset: u64,
    /// What the processor offers for a guest's kernel at CPL 0; `None` where that is at CPL 3.
    pub hardware: Option<Hardware>,
    /// When a change of a page table is known to every virtual CPU.
    pub coherence: Coherence,
}

/// What makes a change of a page table known to every virtual CPU of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coherence {
    /// That any one of them catches up ([`Cpu::catch_up`]), while the others run on.
    #[default]
    OwnEntry,
    /// That each of them catches up: one that runs has to leave the guest for it.
    EveryCpu,
}

/// A machine in which a guest's virtual CPUs run.
///
/// Made on the thread that makes its virtual CPUs, which also is the one that runs number 0. It is told at its making
/// how many there will be.
pub trait Machine {
    /// What it is, for the layers above.
    fn info(&self) -> &EngineInfo;
    /// The 32 bytes of the hypercall page's entry `number`; the rest of the entry is INT3.
    fn hypercall_stub(&self, number: u32) -> [u8; 32];
    /// The same for the page of a guest that began on another machine: in the form that all machines' stubs can be
    /// replaced by.
    fn restored_stub(&self, number: u32) -> [u8; 32] {
        self.hypercall_stub(number)
    }
    /// The hypervisor's own entries for slots 256..=271 of every L4 table in use, in order.
    ///
    /// A machine that needs none (its gate lives elsewhere) returns zeroes.
    fn reserved_l4_entries(&self) -> [u64; 16];
    /// The virtual CPU number `id`. Each can be had once, before any of them runs.
    ///
    /// # Errors
    /// When the machine has no such virtual CPU, or has given it away.
    fn cpu(&mut self, id: u32) -> Result<Box<dyn Cpu>, NoCpu>;
    /// What the host's kernel counts of the machine as a whole, by name; empty if it does not.
    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// A virtual CPU cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCpu {
    /// The machine has no virtual CPU of that number.
    #[error("the {engine} engine has no virtual CPU {id}: it has {vcpus} from number 0")]
    Absent {
        /// Which engine.
        engine: &'static str,
        /// Which number.
        id: u32,
        /// How many there are.
        vcpus: u32,
    },
    /// It was made before.
    #[error("virtual CPU {0} was made before")]
    Taken(u32),
}

/// A virtual CPU: runs code at CPL 3 and maps its pages.
///
/// The contract: `catch_up` makes visible everything that is [pending](VcpuSpace::pending) in `space` and `log` (and
/// says so by [`VcpuSpace::caught_up`]). `enter` loads `regs`, runs until something stops the guest, stores the guest's
/// registers back and says what it was. Each entry is preceded by a `catch_up`, with nothing pending in between.
/// Neither allocates, logs, or takes a lock that another virtual CPU can hold for long, but where an address space is
/// met for the first time, or a user program has made what holds one unfit: another process, say, takes as long as the
/// host takes to make one.
///
/// A virtual CPU belongs to one thread, which need not be the one that made it: see [`Cpu::settle_here`].
///
/// In user mode ([`VcpuSpace::user_mode`]) the only exits are system calls, kicks, and faults that code at CPL 3 can
/// raise. The way into the host that the hypercall page uses is a #GP there. Nothing that user code does makes the
/// engine lose a virtual CPU, and user code can read nothing that the kernel left in a register.
pub trait Cpu: Send {
    /// The calling thread is the one that runs it from now on. Called once, before anything else is asked of it; on the
    /// thread that made it, it need not be called.
    ///
    /// # Errors
    /// When the host has no room for what belongs to a thread: its timer, its signal.
    fn settle_here(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Makes everything known that is pending in `space` and `log`, which nobody changes meanwhile: of a domain with
    /// several virtual CPUs, under its lock.
    ///
    /// Afterwards this virtual CPU is current, as soon as it has entered the guest. With [`Coherence::OwnEntry`] and
    /// more than one virtual CPU, all of them are current at once.
    ///
    /// # Errors
    /// With why the guest cannot go on.
    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        memory: &MachineMemory,
    ) -> Result<(), &'static str>;
    /// Runs the guest until it stops. No lock is needed: `space` is this virtual CPU's own.
    fn enter(&mut self, regs: &mut Regs, space: &VcpuSpace, memory: &MachineMemory) -> Exit;
    /// Where the last entry left it, if it may have [crossed](VcpuSpace::crossing) between user mode and kernel: the
    /// registers are that mode's, and the caller is to make `space` say so.
    fn crossed(&mut self) -> Option<Crossed> {
        None
    }
    /// Both, for whom nobody changes the page tables in between.
    fn catch_up_and_enter(
        &mut self,
        regs: &mut Regs,
        space: &mut VcpuSpace,
        log: &TableLog,
        memory: &MachineMemory,
    ) -> Exit {
        match self.catch_up(space, log, memory) {
            Ok(()) => self.enter(regs, space, memory),
            Err(why) => Exit::Dead(why),
        }
    }
    /// The handle by which other threads and timers make this virtual CPU leave the guest.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// Takes a kick that is still pending, so that the next entry does not return at once because of it; whether there
    /// was one. For a caller that handles the reason of the kick before it enters again.
    ///
    /// An engine need not keep track: a kick that is not taken here makes the next entry return at once.
    fn take_kick(&mut self) -> bool {
        false
    }
    /// The vector registers, as the last exit left them.
    ///
    /// # Errors
    /// When the engine lost them, or the host does not hand them out.
    fn save(&mut self) -> Result<VectorState, BadState>;
    /// Gives it these vector registers; the next entry starts with them.
    ///
    /// # Errors
    /// When they cannot be loaded here; the old ones are then still there.
    fn load(&mut self, state: &VectorState) -> Result<(), BadState>;
    /// Sets the breakpoints. One that is hit is a #DB, as an [`Exit::Fault`]; so is a single step, which the guest's
    /// own RFLAGS.TF makes on every engine.
    ///
    /// # Errors
    /// When this engine has none, or not these; the old ones are then still set.
    fn debug(&mut self, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints>;
    /// Which breakpoints were met since this was last asked: the low four bits of DR6. 0 on an engine without any.
    fn take_debug_status(&mut self) -> u64 {
        0
    }
    /// What it offers besides if the guest's kernel runs at CPL 0.
    fn ring0(&mut self) -> Option<&mut dyn Ring0> {
        None
    }
    /// The processes beside this one in which it runs, as Linux numbers them.
    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }
    /// Exits that the host's kernel handled alone, by its own names; empty if it does not count them.
    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// Whose interrupt controllers and timer a guest with a kernel at CPL 0 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// The monitor's.
    Monitor,
    /// The host kernel's.
    Kernel,
}

/// A virtual CPU whose kernel runs at CPL 0: the page tables are the guest's own, exceptions and privileged
/// instructions need nobody, and memory is guest-physical.
pub trait Ring0 {
    /// Sets the privileged state of the boot protocol, with the L4 table at `cr3`. Before the first entry.
    ///
    /// # Errors
    /// When the host refuses it.
    fn start(&mut self, cr3: u64) -> Result<(), &'static str>;
    /// What the access that was the last exit writes; empty after any other exit.
    fn written(&self) -> &[u8];
    /// What the access that was the last exit reads. The instruction completes at the next entry.
    fn answer(&mut self, bytes: &[u8]);
    /// Whether it was left in an interrupt shadow: after STI or MOV SS, before the next instruction.
    fn in_shadow(&mut self) -> bool;
    /// Whether an interrupt may be given to it now.
    fn takes_interrupts(&mut self) -> bool;
    /// Has the next entry begin with the delivery of an interrupt. Only while [`Ring0::takes_interrupts`].
    ///
    /// # Errors
    /// When the host refuses it.
    fn interrupt(&mut self, vector: u8) -> Result<(), &'static str>;
    /// Whether it is to leave the guest ([`Exit::Window`]) once that takes interrupts.
    fn request_window(&mut self, wanted: bool);
    /// Sets the level of an interrupt line, with [`Irqchip::Kernel`].
    ///
    /// # Errors
    /// When the host refuses it.
    fn set_line(&mut self, line: u8, high: bool) -> Result<(), &'static str>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_are_their_own() {
        for address in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(canonical(address), address);
        }
        assert_eq!(canonical(1 << 63), 0);
        assert_eq!(canonical(1 << 47), 0xffff_8000_0000_0000);
    }
}
