//! Engines run code at CPL 3 and map pages; nothing else.
//!
//! An [`Engine`] enters a virtual CPU and comes back with an [`Exit`] that says, in the architecture's own
//! terms, why the code stopped. It knows nothing of hypercalls, events, emulation or devices: every meaning
//! lives above it, once. Page tables are ordinary frames of machine memory in the x86-64 format; whoever
//! changes an entry writes it there first and tells the engine through [`Paging`], which is how an engine
//! that caches translations (a shadow-paging KVM, a mirror of mappings in a process) learns of it.
//!
//! What may not be done here: looking at a domain, deciding what an exit means, allocating or logging
//! between two entries.

use std::sync::Arc;

use paravane_abi::segment::GDT_FRAMES;

use crate::machine::kick::Kick;
use crate::machine::memory::{MachineMemory, Maddr, Mfn};
use crate::x86::control::{CR4_FSGSBASE, CR4_OSXSAVE};
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;

pub mod kvm;
pub mod process;

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
    /// The engine was kicked (see [`Kick`]) or the host interrupted it: nothing happened in the guest.
    Kick,
    /// The virtual CPU cannot go on: the engine lost its state. Ends the guest, not the host.
    Dead(&'static str),
}

/// One page-table entry that was written, in machine memory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PteWrite {
    /// Machine address of the entry, 8-byte aligned.
    pub entry: Maddr,
    /// What it held before.
    pub old: u64,
    /// What it holds now.
    pub new: u64,
    /// Level of the table that holds it: 1..=4.
    pub level: u8,
}

/// What an engine must hear before it enters the guest again. Filled by the MMU code, emptied by the engine.
///
/// Capacity is fixed when it is made: past it the whole translation cache is declared stale instead, so that
/// nothing here allocates and nothing that a guest does can make it grow.
#[derive(Debug)]
pub struct Paging {
    writes: Vec<PteWrite>,
    reused: Vec<Mfn>,
    stale: bool,
    flush: Flush,
    root: Mfn,
    task_switched: bool,
    allowed: Allowed,
    gdt: GdtFrames,
    gdt_is_new: bool,
    user: bool,
}

/// The frames of a guest's descriptor table, in order.
pub type GdtFrames = [Option<Mfn>; GDT_FRAMES];

/// What CR4 and XCR0 let a guest's code execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Of CR4 the bits TSD, FSGSBASE and OSXSAVE; the rest is the engine's.
    pub cr4: u64,
    /// XCR0, of which an engine leaves out what it does not have. It counts while `cr4` has OSXSAVE.
    pub xcr0: u64,
}

impl Allowed {
    /// All that the engine has.
    pub const ALL: Self = Self { cr4: CR4_FSGSBASE | CR4_OSXSAVE, xcr0: u64::MAX };
}

/// How much of what a CPU may have cached of translations must go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    #[default]
    None,
    /// The translation of one linear address.
    Page(u64),
    /// All of them.
    All,
}

impl Paging {
    /// How many entry writes are told one by one before the engine drops everything it has cached.
    pub const CAPACITY: usize = 4096;
    /// How many reused tables are told one by one before the engine drops everything it has cached.
    pub const REUSED_CAPACITY: usize = 256;

    /// An empty set of requests for an address space whose L4 is `root`.
    pub fn new(root: Mfn) -> Self {
        Self {
            writes: Vec::with_capacity(Self::CAPACITY),
            reused: Vec::with_capacity(Self::REUSED_CAPACITY),
            stale: false,
            flush: Flush::None,
            root,
            task_switched: false,
            allowed: Allowed::ALL,
            gdt: [None; GDT_FRAMES],
            gdt_is_new: false,
            user: false,
        }
    }
    /// Notes that an entry was written (the value is in machine memory already).
    pub fn wrote(&mut self, write: PteWrite) {
        if write.old == write.new {
            return;
        }
        if self.writes.len() == Self::CAPACITY {
            self.invalidate_all();
        }
        if !self.stale {
            self.writes.push(write);
        }
    }
    /// Notes that a frame is a page table again, after a time as something else.
    ///
    /// In between the host may have written to it unseen (a device's data, a cleared page), and entries that
    /// it wrote as the frame became a table are not told one by one: what an engine remembers of this frame
    /// as a table from before must go.
    pub fn reused_table(&mut self, table: Mfn) {
        if self.reused.len() == Self::REUSED_CAPACITY {
            self.invalidate_all();
        }
        if !self.stale {
            self.reused.push(table);
        }
    }
    /// Asks that cached translations be dropped, merging with what was asked before.
    pub fn flush(&mut self, scope: Flush) {
        self.flush = match (self.flush, scope) {
            (a, Flush::None) => a,
            (Flush::None, b) => b,
            (a, b) if a == b => a,
            _ => Flush::All,
        };
    }
    /// Sets the L4 frame that the CPU walks from now on (MOV to CR3: flushes).
    pub fn set_root(&mut self, root: Mfn) {
        self.root = root;
        self.flush = Flush::All;
    }
    /// Sets or clears CR0.TS: while it is set, the use of x87 or vector state raises #NM.
    ///
    /// An engine that cannot make it so ignores this: the guest then finds the state usable, and never traps.
    pub fn set_task_switched(&mut self, set: bool) {
        self.task_switched = set;
    }
    /// CR0.TS.
    pub fn task_switched(&self) -> bool {
        self.task_switched
    }
    /// Sets what instructions can be executed; at first all that the engine has.
    ///
    /// An engine that cannot make it so ignores this: more can then be executed than should be.
    pub fn set_allowed(&mut self, allowed: Allowed) {
        self.allowed = allowed;
    }
    /// What instructions can be executed.
    pub fn allowed(&self) -> Allowed {
        self.allowed
    }
    /// Sets the frames that hold the guest's descriptors. They hold nothing that gives more rights than CPL 3 has, and
    /// nobody but the hypervisor stores to them until they are replaced.
    pub fn set_gdt(&mut self, frames: GdtFrames) {
        self.gdt = frames;
        self.gdt_is_new = true;
    }
    /// The frames that hold the guest's descriptors.
    pub fn gdt(&self) -> &GdtFrames {
        &self.gdt
    }
    /// Whether the engine has not heard of [`Paging::gdt`] yet.
    pub fn gdt_is_new(&self) -> bool {
        self.gdt_is_new
    }
    /// Says whether a user program of the guest's runs from now on, or its kernel.
    ///
    /// Both run at CPL 3. An engine lets a user program do less to what it shares with it: see [`Engine::enter`].
    pub fn set_user_mode(&mut self, user: bool) {
        self.user = user;
    }
    /// Whether a user program runs.
    pub fn user_mode(&self) -> bool {
        self.user
    }
    /// Declares everything that an engine has cached of any page table stale.
    pub fn invalidate_all(&mut self) {
        self.stale = true;
        self.flush = Flush::All;
        self.writes.clear();
        self.reused.clear();
    }
    /// The L4 frame in use.
    pub fn root(&self) -> Mfn {
        self.root
    }
    /// The entry writes since the last entry, in order; empty when [`Paging::is_stale`].
    pub fn writes(&self) -> &[PteWrite] {
        &self.writes
    }
    /// The frames that became page tables again since the last entry; empty when [`Paging::is_stale`].
    pub fn reused_tables(&self) -> &[Mfn] {
        &self.reused
    }
    /// Whether everything cached is stale, whatever [`Paging::writes`] says.
    pub fn is_stale(&self) -> bool {
        self.stale
    }
    /// The widest flush that was asked for.
    pub fn flush_scope(&self) -> Flush {
        self.flush
    }
    /// For the engine, once it has done all that was asked.
    pub fn done(&mut self) {
        self.writes.clear();
        self.reused.clear();
        self.stale = false;
        self.flush = Flush::None;
        self.gdt_is_new = false;
    }
}

/// What an engine is and where it lets the layers above put things.
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
}

/// Something that runs one vCPU's code at CPL 3 and maps its pages.
///
/// The contract: `enter` first makes visible everything in `paging` (and calls [`Paging::done`]), loads
/// `regs`, runs until something stops the guest, stores the guest's registers back and says what it was.
/// It does not allocate, log, or take a lock that another vCPU can hold for long.
///
/// In user mode ([`Paging::user_mode`]) no exit but these comes: a system call, a kick, or a fault that code at CPL 3
/// can raise. The way into the host that the hypercall page uses is a #GP there. Nothing that user code does makes the
/// engine lose a virtual CPU, and nothing of a register that the kernel left behind can be read there.
pub trait Engine {
    /// Who this is and what the layers above need to know of it.
    fn info(&self) -> &EngineInfo;
    /// The 32 bytes of the hypercall page's entry `number`; the rest of the entry is INT3.
    fn hypercall_stub(&self, number: u32) -> [u8; 32];
    /// Runs the guest until it stops.
    fn enter(&mut self, regs: &mut Regs, paging: &mut Paging, memory: &MachineMemory) -> Exit;
    /// The handle by which other threads and timers make this vCPU leave the guest.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// Whether a kick waits for the next entry; takes it, so that this entry is not for nothing. For a caller that looks
    /// for what the kick was about before it enters again.
    ///
    /// An engine need not know: a kick that it does not own up to here makes the next entry return at once.
    fn take_kick(&mut self) -> bool {
        false
    }
    /// The hypervisor's own entries for slots 256..=271 of every L4 table in use, in order.
    ///
    /// An engine that needs none (its gate lives elsewhere) returns zeroes.
    fn reserved_l4_entries(&self) -> [u64; 16];
    /// The processes beside this one in which the guest runs, as Linux numbers them.
    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }
    /// Exits that never reached us, as the host's kernel counts them, by name; empty if it does not.
    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
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
