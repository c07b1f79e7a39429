//! A paravirtual domain: what its vCPUs share.
//!
//! Plain data. `hypercall`, `fixup`, `entry` and `iret` act on it, each by way of a [`super::context::PvContext`]: the
//! domain and the vCPU that runs. What belongs to a vCPU alone is in [`super::vcpu::PvVcpu`]; what other threads must
//! reach of a vCPU is here, by its number.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use paravane_abi::errno::Errno;
use paravane_abi::event::EvtchnPort;
use paravane_abi::shared_info::SharedInfo;

use super::devices::PvDevices;
use super::event::doorbell::Doorbells;
use super::event::{Binding, EventChannels, HostService};
use super::free_frames::FreeFrames;
use super::grants::Grants;
use super::peers::Peers;
use super::store::{About, Server, StoreState};
use super::vcpu::{PvVcpu, VcpuId};
use super::wall_clock::WallClock;
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::machine::kick::Kick;
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
    /// How each vCPU is notified of events.
    pub bells: Arc<Doorbells>,
    /// Its vCPUs, as they see each other.
    pub peers: Peers,
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
    /// Assistances that are on, a bit for each `VMASST_TYPE_*`.
    pub assists: u64,
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
    /// How each vCPU is kicked; as many as there are.
    pub kicks: Vec<Arc<dyn Kick>>,
}

/// Facts that do not change.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Linear address of the machine-to-physical table.
    pub m2p_va: u64,
    /// Where a guest that was restored was told that it is, if that is another address.
    pub m2p_told: Option<u64>,
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
    /// The hypercall page that was made for the image.
    pub hypercall_page: Option<Mfn>,
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

    /// What the server has to remember, if the guest ever asked.
    pub fn state(&self) -> Option<StoreState> {
        self.server.as_deref().map(Server::state)
    }

    /// A server that remembers; `None` if no store could have come to hold that.
    pub fn restore(&mut self, state: &StoreState) -> Option<()> {
        self.server().restore(state)
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
        let peers = Peers::new(parts.kicks.len());
        let memory = Arc::new(parts.memory);
        let bells = Arc::new(Doorbells::new(Arc::clone(&memory), parts.shared_info, parts.kicks));
        let domain = Self {
            free_frames: FreeFrames::new(memory.frames()),
            memory,
            mmu: parts.mmu,
            log: parts.log,
            events: EventChannels::new(bells.targets()),
            bells,
            peers,
            clock: parts.clock,
            watchdogs: Watchdogs::default(),
            wall: WallClock::of_the_host(),
            console: parts.console,
            store: parts.store,
            grants: Grants::new(parts.facts.grants.clone()),
            facts: parts.facts,
            virtio: PvDevices::default(),
            pirq_eoi_map: None,
            shutdown_code: None,
            assists: 0,
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
        let shared = self.bells.shared_info;
        let put = |field: usize, value: u32| self.memory.write_obj(Maddr(shared.0 + field as u64), &value);
        put(offset_of!(SharedInfo, wc_version), told.version.wrapping_sub(1))?;
        fence(Ordering::Release);
        put(offset_of!(SharedInfo, wc_sec), told.seconds)?;
        put(offset_of!(SharedInfo, wc_nsec), told.nanoseconds)?;
        put(offset_of!(SharedInfo, wc_sec_hi), told.seconds_high)?;
        fence(Ordering::Release);
        put(offset_of!(SharedInfo, wc_version), told.version)
    }

    /// Whether an assistance (`VMASST_TYPE_*`) is on.
    pub fn assisted(&self, kind: u32) -> bool {
        self.assists.checked_shr(kind).unwrap_or(0) & 1 != 0
    }

    /// The vCPU of a number that a guest named.
    ///
    /// # Errors
    /// ENOENT if the domain has no such vCPU.
    pub fn vcpu(&self, number: u32) -> Result<VcpuId, Errno> {
        self.peers.id(number).ok_or(Errno::ENOENT)
    }
}

#[cfg(test)]
mod tests;
