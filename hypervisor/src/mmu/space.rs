//! The address space of one virtual CPU, and other privileged state that an engine must establish.
//!
//! This is plain data: the layers that handle the guest's requests set it, and the engine reads it before it enters. It
//! also has the virtual CPU's cursor into its domain's [`TableLog`].

use paravane_abi::segment::GDT_FRAMES;

use super::crossing::Crossing;
use super::log::{Cursor, Position, PteWrite, Since, TableLog, Unread};
use crate::machine::memory::Mfn;
use crate::x86::control::cr4;

/// The frames of a guest's descriptor table, in order.
pub type GdtFrames = [Option<Mfn>; GDT_FRAMES];

/// The bits of CR4 and XCR0 that determine which instructions a guest's code can execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// CR4, of which only the bits TSD, FSGSBASE and OSXSAVE count; the engine sets the others.
    pub cr4: u64,
    /// XCR0, of which an engine ignores the bits that it lacks. It only counts while `cr4` has OSXSAVE.
    pub xcr0: u64,
}

impl Allowed {
    /// Everything that the engine offers.
    pub const ALL: Self = Self { cr4: cr4::FSGSBASE | cr4::OSXSAVE, xcr0: u64::MAX };
}

/// Which cached translations of a CPU must be flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    #[default]
    None,
    /// The translation of one linear address.
    Page(u64),
    /// All translations.
    All,
}

/// The address space of a virtual CPU.
#[derive(Debug)]
pub struct VcpuSpace {
    root: Mfn,
    flush: Flush,
    task_switched: bool,
    allowed: Allowed,
    gdt: GdtFrames,
    gdt_is_new: bool,
    user: bool,
    crossing: Option<Crossing>,
    read: Cursor,
}

/// What an engine must apply before it enters.
#[derive(Clone, Copy, Debug)]
pub struct Pending<'a> {
    /// Everything that it has cached of any page table is stale, even if `writes` is empty.
    pub stale: bool,
    /// Entries that were written since the last entry, in order; none when all is stale.
    pub writes: Since<'a, PteWrite>,
    /// Frames that became page tables again since the last entry; none when all is stale.
    pub reused: Since<'a, Mfn>,
    /// The widest flush that was asked for.
    pub flush: Flush,
}

impl Pending<'_> {
    /// Whether no page table has changed.
    pub fn is_nothing(&self) -> bool {
        !self.stale && self.writes.is_empty() && self.reused.is_empty()
    }
}

impl VcpuSpace {
    /// An address space whose L4 is `root`, of a virtual CPU that has cached nothing yet.
    pub fn new(root: Mfn, log: &TableLog) -> Self {
        Self {
            root,
            flush: Flush::None,
            task_switched: false,
            allowed: Allowed::ALL,
            gdt: [None; GDT_FRAMES],
            gdt_is_new: false,
            user: false,
            crossing: None,
            read: log.end(),
        }
    }

    /// What an engine must apply before it enters.
    pub fn pending<'a>(&self, log: &'a TableLog) -> Pending<'a> {
        match log.since(&self.read) {
            Unread::Stale => {
                Pending { stale: true, writes: Since::none(), reused: Since::none(), flush: Flush::All }
            }
            Unread::Changes { writes, reused, flush } => {
                Pending { stale: false, writes, reused, flush: if flush { Flush::All } else { self.flush } }
            }
        }
    }

    /// The engine calls this once it has applied everything that was [pending](Self::pending).
    pub fn caught_up(&mut self, log: &TableLog) {
        self.read = log.end();
        self.flush = Flush::None;
        self.gdt_is_new = false;
    }

    /// Up to where this virtual CPU has applied the log itself.
    pub fn position(&self) -> Position {
        self.read.position()
    }

    /// Requests a flush of this virtual CPU's cached translations, merged with earlier requests.
    pub fn flush(&mut self, scope: Flush) {
        self.flush = match (self.flush, scope) {
            (a, Flush::None) => a,
            (Flush::None, b) => b,
            (a, b) if a == b => a,
            _ => Flush::All,
        };
    }

    /// The flush that the guest has asked for since the last entry, without what its page tables' changes demand.
    pub fn requested_flush(&self) -> Flush {
        self.flush
    }

    /// Sets the L4 frame that the CPU walks from now on (MOV to CR3: flushes).
    pub fn set_root(&mut self, root: Mfn) {
        self.root = root;
        self.flush = Flush::All;
    }

    /// The L4 frame in use.
    pub fn root(&self) -> Mfn {
        self.root
    }

    /// Sets or clears CR0.TS: while it is set, the use of x87 or vector state raises #NM.
    ///
    /// An engine that cannot do this ignores it: the guest then finds the state usable, and never traps.
    pub fn set_task_switched(&mut self, set: bool) {
        self.task_switched = set;
    }

    /// CR0.TS.
    pub fn task_switched(&self) -> bool {
        self.task_switched
    }

    /// Sets which instructions can be executed; initially all that the engine offers.
    ///
    /// An engine that cannot do this ignores it: the guest can then execute more than was allowed.
    pub fn set_allowed(&mut self, allowed: Allowed) {
        self.allowed = allowed;
    }

    /// Which instructions can be executed.
    pub fn allowed(&self) -> Allowed {
        self.allowed
    }

    /// Sets the frames that hold the guest's descriptors. No descriptor in them gives more rights than CPL 3 has, and
    /// only the hypervisor stores to them until they are replaced.
    pub fn set_gdt(&mut self, frames: GdtFrames) {
        self.gdt = frames;
        self.gdt_is_new = true;
    }

    /// The frames that hold the guest's descriptors.
    pub fn gdt(&self) -> &GdtFrames {
        &self.gdt
    }

    /// Whether the engine has not applied [`VcpuSpace::gdt`] yet.
    pub fn gdt_is_new(&self) -> bool {
        self.gdt_is_new
    }

    /// Sets whether a user program of the guest runs from now on, or its kernel.
    ///
    /// Both run at CPL 3. An engine gives a user program fewer rights to the resources that they share: see
    /// [`crate::engine`].
    pub fn set_user_mode(&mut self, user: bool) {
        self.user = user;
    }

    /// Whether a user program runs.
    pub fn user_mode(&self) -> bool {
        self.user
    }

    /// Sets between which modes the virtual CPU may change without an exit; `None`: it may not.
    ///
    /// An engine that cannot do this ignores it. One that can says by
    /// [`Cpu::crossed`](crate::engine::Cpu::crossed) which mode was left.
    pub fn set_crossing(&mut self, crossing: Option<Crossing>) {
        self.crossing = crossing;
    }

    /// Between which modes it may change.
    pub fn crossing(&self) -> Option<&Crossing> {
        self.crossing.as_ref()
    }
}
