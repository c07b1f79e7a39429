//! A paravirtual domain: everything that its hypercalls, faults and events act on.
//!
//! One vCPU for now. The state is plain data; what happens to it is written in `hypercall`, `emulate::pv`,
//! `domain::{frames, iret}` and `monitor::pv`, each a function of the domain and what the guest asked, none
//! knowing the engine.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use paravane_abi::event::EvtchnPort;
use paravane_abi::shared_info::SharedInfo;

use super::devices::PvDevices;
use super::event::upcall::Upcall;
use super::event::{Binding, EventChannels, HostService};
use super::free_frames::FreeFrames;
use super::grants::Grants;
use super::store::{About, Server};
use super::vcpu::PvVcpu;
use super::wall_clock::WallClock;
use crate::ledger::Ledger;
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn};
use crate::machine::time::{Clock, Timers};
use crate::mmu::direct::{DirectPaging, Stop, VcpuTables};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Allowed, VcpuSpace};
use crate::x86::control::cr4;
use crate::x86::registers::Regs;

/// The number of the only guest domain.
pub const DOMID: u16 = 1;

/// The port of the xenstore: the first, as Xen's toolstack has it.
pub const STORE_PORT: EvtchnPort = 1;
/// The port of the console.
pub const CONSOLE_PORT: EvtchnPort = 2;

/// A domain and its one vCPU.
pub struct PvDomain {
    /// Its world.
    pub memory: Arc<MachineMemory>,
    /// Frame types and validated page tables.
    pub mmu: DirectPaging,
    /// The tables that the vCPU uses.
    pub tables: VcpuTables,
    /// What engines must hear of page tables.
    pub log: TableLog,
    /// The vCPU's address space.
    pub space: VcpuSpace,
    /// The vCPU.
    pub vcpu: PvVcpu,
    /// Event channels.
    pub events: EventChannels,
    /// Where the vCPU's event bits lie.
    pub upcall: Upcall,
    /// System time.
    pub clock: Clock,
    /// Timers, in system time.
    pub timers: Timers,
    /// The date, as the guest was told.
    pub wall: WallClock,
    /// The console's two ends.
    pub console: PvConsole,
    /// The xenstore.
    pub store: PvStore,
    /// Every exit and batch.
    pub ledger: Ledger,
    /// Elementary operations that a hypercall may still perform before it is interrupted: see `hypercall`.
    pub budget: u64,
    /// Facts that the guest may ask for.
    pub facts: Facts,
    /// The frames that the guest gave back.
    pub free_frames: FreeFrames,
    /// What it grants, and what it has mapped of that.
    pub grants: Grants,
    /// Its virtio devices.
    pub virtio: PvDevices,
    /// A page of the guest's that it shares to hear of physical interrupts, of which there are none.
    pub pirq_eoi_map: Option<Mfn>,
    /// The reason of an end to come, noted in advance (SCHEDOP_shutdown_code).
    pub shutdown_code: Option<u32>,
    /// Set once the domain's life is over.
    pub end: Option<DomainEnd>,
}

/// What a domain is made from; all else of it starts empty.
pub struct PvParts {
    /// Its world, with the image in it.
    pub memory: MachineMemory,
    /// Frame types, the first page tables validated.
    pub mmu: DirectPaging,
    /// The first page tables.
    pub tables: VcpuTables,
    /// What engines must hear of page tables.
    pub log: TableLog,
    /// The vCPU's address space.
    pub space: VcpuSpace,
    /// The first registers.
    pub regs: Regs,
    /// The shared info page.
    pub shared_info: Maddr,
    /// System time.
    pub clock: Clock,
    /// The console's two ends.
    pub console: PvConsole,
    /// The xenstore.
    pub store: PvStore,
    /// Facts that the guest may ask for.
    pub facts: Facts,
}

/// Facts that do not change.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Linear address of the machine-to-physical table.
    pub m2p_va: u64,
    /// The frames that hold it.
    pub m2p: Range<u64>,
    /// The frames that its grant table can have.
    pub grants: Range<u64>,
    /// Rate of the time-stamp counter that the guest reads, in kHz.
    pub tsc_khz: u64,
    /// Length of the hypercall page's instruction that enters the host.
    pub call_length: u64,
    /// Whether the kernel may mark a measured region (see `ledger`).
    pub marks: bool,
}

/// The console: a ring shared with the guest, and the host's side.
pub struct PvConsole {
    /// The ring's page.
    pub ring: Maddr,
    /// Takes output.
    pub sink: Box<dyn ConsoleSink>,
    /// Gives input.
    pub input: ConsoleInput,
}

/// The xenstore: a ring shared with the guest, and the server behind it.
pub struct PvStore {
    /// The ring's page.
    pub ring: Maddr,
    /// What the store says of the domain.
    pub about: About,
    /// Nothing until the guest first asks.
    server: Option<Box<Server>>,
}

impl PvStore {
    /// A store that nobody has asked yet.
    pub const fn new(ring: Maddr, about: About) -> Self {
        Self { ring, about, server: None }
    }

    /// The server.
    pub fn server(&mut self) -> &mut Server {
        self.server.get_or_insert_with(|| Box::new(Server::new(self.ring, self.about.clone())))
    }
}

impl PvDomain {
    /// A domain about to run its first instruction.
    ///
    /// # Errors
    /// When a ring's frame cannot be held: the host writes the rings of console and xenstore by frame, so for the whole
    /// of the domain's life neither may become a page table.
    pub fn new(mut parts: PvParts) -> Result<Self, Stop> {
        for ring in [parts.console.ring, parts.store.ring] {
            parts.mmu.get_writable(&parts.memory, &mut parts.log, ring.mfn())?;
        }
        // Nothing has run yet: no translation can be stale.
        parts.space.caught_up(&parts.log);
        let mut domain = Self {
            free_frames: FreeFrames::new(parts.memory.frames()),
            memory: Arc::new(parts.memory),
            mmu: parts.mmu,
            tables: parts.tables,
            log: parts.log,
            space: parts.space,
            vcpu: PvVcpu::new(parts.regs),
            events: EventChannels::new(),
            upcall: Upcall { shared_info: parts.shared_info, vcpu_info: parts.shared_info },
            clock: parts.clock,
            timers: Timers::default(),
            wall: WallClock::of_the_host(),
            console: parts.console,
            store: parts.store,
            ledger: Ledger::new(),
            budget: 0,
            grants: Grants::new(parts.facts.grants.clone()),
            facts: parts.facts,
            virtio: PvDevices::default(),
            pirq_eoi_map: None,
            shutdown_code: None,
            end: None,
        };
        domain.allow_instructions();
        Ok(domain)
    }

    /// Gives the domain the ports of its services, which are its first.
    pub fn connect_services(&mut self) {
        for (service, port) in [(HostService::Store, STORE_PORT), (HostService::Console, CONSOLE_PORT)] {
            let allocated = self.events.allocate(Binding::Host(service));
            debug_assert_eq!(allocated, Ok(port));
        }
    }

    /// Tells the guest the date in the shared page if that has changed, at system time `now` (public/xen.h, `wc_*`).
    ///
    /// # Errors
    /// When there is no shared page.
    pub fn follow_wall_clock(&mut self, now: u64) -> Result<(), BadMachineAddress> {
        let Some(told) = self.wall.news(now) else { return Ok(()) };
        let shared = self.upcall.shared_info;
        let put = |field: usize, value: u32| self.memory.write_obj(Maddr(shared.0 + field as u64), &value);
        put(offset_of!(SharedInfo, wc_version), told.version.wrapping_sub(1))?;
        fence(Ordering::Release);
        put(offset_of!(SharedInfo, wc_sec), told.seconds)?;
        put(offset_of!(SharedInfo, wc_nsec), told.nanoseconds)?;
        put(offset_of!(SharedInfo, wc_sec_hi), told.seconds_high)?;
        fence(Ordering::Release);
        put(offset_of!(SharedInfo, wc_version), told.version)
    }

    /// Sets or clears CR0.TS, as the guest sees it and for the engine.
    pub fn set_task_switched(&mut self, set: bool) {
        self.vcpu.control.task_switched = set;
        self.space.set_task_switched(set);
    }

    /// Tells the engine which instructions the guest's CR4 and XCR0 allow.
    pub fn allow_instructions(&mut self) {
        let control = &self.vcpu.control;
        let by_use = if control.xsave_in_use { cr4::OSXSAVE } else { 0 };
        self.space.set_allowed(Allowed {
            cr4: control.cr4 & (cr4::TSD | cr4::FSGSBASE | cr4::OSXSAVE) | by_use,
            xcr0: control.xcr0,
        });
    }

    /// Ends the domain for a rule that it broke; `what` says which, the place is added.
    ///
    /// The one place where a guest is killed for what it did.
    pub fn kill(&mut self, what: impl std::fmt::Display) {
        if self.end.is_none() {
            self.end = Some(DomainEnd::Killed(format!("{what} at rip {:#x}", self.vcpu.regs.rip)));
        }
    }
}

#[cfg(test)]
mod tests;
