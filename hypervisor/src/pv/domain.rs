//! A paravirtual domain: what its vCPUs share.
//!
//! Plain data. `hypercall`, `fixup`, `entry` and `iret` act on it, each by way of a [`super::context::PvContext`]: the
//! domain and the vCPU that runs. What belongs to a vCPU alone is in [`super::vcpu::PvVcpu`]; what other threads must
//! reach of a vCPU is here, by its number.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use paravane_abi::event::EvtchnPort;
use paravane_abi::shared_info::SharedInfo;

use super::devices::PvDevices;
use super::event::upcall::Upcalls;
use super::event::{Binding, EventChannels, HostService};
use super::free_frames::FreeFrames;
use super::grants::Grants;
use super::store::{About, Server};
use super::vcpu::{PvVcpu, VcpuId};
use super::wall_clock::WallClock;
use crate::ledger::Ledger;
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn};
use crate::machine::time::{Clock, Watchdogs};
use crate::mmu::direct::{DirectPaging, Stop, VcpuTables};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::registers::Regs;

/// The number of the only guest domain.
pub const DOMID: u16 = 1;

/// The port of the xenstore: the first, as Xen's toolstack has it.
pub const STORE_PORT: EvtchnPort = 1;
/// The port of the console.
pub const CONSOLE_PORT: EvtchnPort = 2;

/// What the vCPUs of a domain share.
pub struct PvDomain {
    /// Its world.
    pub memory: Arc<MachineMemory>,
    /// Frame types and validated page tables.
    pub mmu: DirectPaging,
    /// Changes of page tables, for the engines of all vCPUs.
    pub log: TableLog,
    /// Event channels.
    pub events: EventChannels,
    /// Where each vCPU's event bits are.
    pub upcalls: Upcalls,
    /// System time.
    pub clock: Clock,
    /// Watchdogs, in system time.
    pub watchdogs: Watchdogs,
    /// The date, as the guest was told.
    pub wall: WallClock,
    /// The console's two ends.
    pub console: PvConsole,
    /// The xenstore.
    pub store: PvStore,
    /// Every exit and batch.
    pub ledger: Ledger,
    /// Facts that the guest may ask for.
    pub facts: Facts,
    /// The frames that the guest gave back.
    pub free_frames: FreeFrames,
    /// What it grants, and what it has mapped of that.
    pub grants: Grants,
    /// Its virtio devices.
    pub virtio: PvDevices,
    /// A page that the guest shares to be notified of physical interrupts; none ever comes.
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
    /// Changes of page tables, for the engines of all vCPUs.
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
    /// A domain and its first vCPU, about to run its first instruction.
    ///
    /// # Errors
    /// When a ring's frame cannot be held: the host writes the rings of console and xenstore by frame, so for the whole
    /// of the domain's life neither may become a page table.
    pub fn new(mut parts: PvParts) -> Result<(Self, PvVcpu), Stop> {
        for ring in [parts.console.ring, parts.store.ring] {
            parts.mmu.get_writable(&parts.memory, &mut parts.log, ring.mfn())?;
        }
        // Nothing has run yet: no translation can be stale.
        parts.space.caught_up(&parts.log);
        let domain = Self {
            free_frames: FreeFrames::new(parts.memory.frames()),
            memory: Arc::new(parts.memory),
            mmu: parts.mmu,
            log: parts.log,
            events: EventChannels::new(),
            upcalls: Upcalls::new(parts.shared_info),
            clock: parts.clock,
            watchdogs: Watchdogs::default(),
            wall: WallClock::of_the_host(),
            console: parts.console,
            store: parts.store,
            ledger: Ledger::new(),
            grants: Grants::new(parts.facts.grants.clone()),
            facts: parts.facts,
            virtio: PvDevices::default(),
            pirq_eoi_map: None,
            shutdown_code: None,
            end: None,
        };
        let mut vcpu = PvVcpu::new(VcpuId::BOOT, parts.regs, parts.space, parts.tables);
        vcpu.allow_instructions();
        Ok((domain, vcpu))
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
    /// When the shared page does not exist.
    pub fn follow_wall_clock(&mut self, now: u64) -> Result<(), BadMachineAddress> {
        let Some(told) = self.wall.news(now) else { return Ok(()) };
        let shared = self.upcalls.shared_info;
        let put = |field: usize, value: u32| self.memory.write_obj(Maddr(shared.0 + field as u64), &value);
        put(offset_of!(SharedInfo, wc_version), told.version.wrapping_sub(1))?;
        fence(Ordering::Release);
        put(offset_of!(SharedInfo, wc_sec), told.seconds)?;
        put(offset_of!(SharedInfo, wc_nsec), told.nanoseconds)?;
        put(offset_of!(SharedInfo, wc_sec_hi), told.seconds_high)?;
        fence(Ordering::Release);
        put(offset_of!(SharedInfo, wc_version), told.version)
    }

    /// Sets a port pending, for the vCPU that it notifies; true if that made an upcall pending that was not before.
    ///
    /// # Errors
    /// When the shared page does not exist.
    pub fn raise(&self, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        self.upcalls.of(self.events.vcpu(port)).raise(&self.memory, port)
    }

    /// Clears the mask of a port; raises it again if it was pending meanwhile (EVTCHNOP_unmask).
    ///
    /// # Errors
    /// When the shared page does not exist.
    pub fn unmask(&self, port: EvtchnPort) -> Result<(), BadMachineAddress> {
        self.upcalls.of(self.events.vcpu(port)).unmask(&self.memory, port)
    }

    /// Whether a port's pending bit is set.
    ///
    /// # Errors
    /// When there is no such bit.
    pub fn is_pending(&self, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        self.upcalls.of(VcpuId::BOOT).is_pending(&self.memory, port)
    }

    /// Clears what is pending of a port that is free.
    ///
    /// # Errors
    /// When the shared page does not exist.
    pub fn forget(&self, port: EvtchnPort) -> Result<(), BadMachineAddress> {
        self.upcalls.of(VcpuId::BOOT).forget(&self.memory, port)
    }
}

#[cfg(test)]
mod tests;
