//! What the vCPUs of a domain share, out and in.

use std::mem::offset_of;
use std::sync::Arc;

use paravane_abi::event::EVTCHN_2L_NR_CHANNELS;
use paravane_abi::shared_info::{VcpuInfo, VcpuTimeInfo};
use paravane_abi::{addr, pte};
use serde::{Deserialize, Serialize};

use super::stubs;
use super::vcpu::RunstateState;
use super::{BadDomain, CannotSave, State, VcpuState, at_most, until_done};
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::kick::Kick;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::machine::time::{Clock, MIN_PERIOD, Watchdogs};
use crate::mmu::direct::{DirectPaging, RESERVED_ENTRIES, VcpuTables};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::pv::context::PvContext;
use crate::pv::domain::{CONSOLE_PORT, DOMID, Facts, PvConsole, PvDomain, PvParts, PvStore, STORE_PORT};
use crate::pv::event::PortState;
use crate::pv::event::upcall::NOWHERE;
use crate::pv::grants::GrantsState;
use crate::pv::hypercall::ASSISTS;
use crate::pv::peers::Left;
use crate::pv::store::{About, StoreState};
use crate::pv::vcpu::{MAX_VCPUS, PvVcpu, VcpuId};
use crate::pv::wall_clock::WallClock;
use crate::x86::registers::Regs;

/// System time that a snapshot may say: some three hundred years.
const LATEST: u64 = u64::MAX / 2;

/// What the vCPUs share.
#[derive(Debug, Serialize, Deserialize)]
pub struct DomainState {
    /// System time.
    pub now: u64,
    /// What the guest last read of the date: its version.
    wall_version: u32,
    /// What the domain is called in its xenstore.
    name: String,
    /// The tables that the guest pinned, with their levels.
    pins: Vec<(u64, u8)>,
    /// The frames that it gave back: first and count.
    given_back: Vec<(u64, u64)>,
    console: u64,
    store_ring: u64,
    store: Option<StoreState>,
    #[serde(deserialize_with = "at_most::<{ EVTCHN_2L_NR_CHANNELS as usize }, _, _>")]
    ports: Vec<PortState>,
    grants: GrantsState,
    #[serde(deserialize_with = "at_most::<{ MAX_VCPUS as usize }, _, _>")]
    peers: Vec<PeerState>,
    watchdogs: Watchdogs,
    pirq_eoi_map: Option<u64>,
    shutdown_code: Option<u32>,
    assists: u64,
    /// Where the hypercall page is that an engine wrote.
    hypercall_page: Option<u64>,
    /// Where the guest was told that the machine-to-physical table is.
    m2p: u64,
}

/// A vCPU, as the others see it.
#[derive(Debug, Serialize, Deserialize)]
struct PeerState {
    initialised: bool,
    up: bool,
    /// What it begins with.
    context: Option<Box<VcpuState>>,
    runstate: RunstateState,
    left: Left,
    has_left: bool,
    /// Where the guest has put its info.
    info: Option<u64>,
}

/// What a saved domain is made from, besides its state.
pub struct RestoreParts<'a> {
    /// Its memory, with what was saved in it.
    pub memory: MachineMemory,
    /// Where in it is what.
    pub layout: HypervisorLayout,
    /// What the engine wants in slots 256 to 271 of every L4 table.
    pub reserved_l4: [u64; RESERVED_ENTRIES],
    /// The engine's own entry of the hypercall page.
    pub stub: &'a dyn Fn(u32) -> [u8; stubs::STUB],
    /// What the engine says of itself.
    pub engine: Origin,
    /// Takes what the guest prints.
    pub sink: Box<dyn ConsoleSink>,
    /// Bytes typed for the guest.
    pub input: ConsoleInput,
    /// How each vCPU is kicked; as many as there are.
    pub kicks: Vec<Arc<dyn Kick>>,
    /// Whether the kernel may mark a measured region.
    pub marks: bool,
}

/// What a domain knows of the engine that runs it.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Linear address of the machine-to-physical table.
    pub m2p_va: u64,
    /// Length of the hypercall page's instruction that enters the host.
    pub call_length: u64,
    /// Rate of the time-stamp counter that the guest reads, in kHz.
    pub tsc_khz: u64,
    /// What to add (wrapping) to the host's counter to get the guest's.
    pub tsc_offset: u64,
    /// Whether addresses of the upper half can be mapped.
    pub upper_half: bool,
}

impl DomainState {
    /// The state of a domain none of whose vCPUs is in the guest, or handles an exit.
    ///
    /// # Errors
    /// When there is something that cannot be saved.
    pub fn of(domain: &mut PvDomain) -> Result<Self, CannotSave> {
        if domain.end.is_some() {
            return Err(CannotSave::Ended);
        }
        if !domain.virtio.is_empty() {
            return Err(CannotSave::Devices);
        }
        let now = domain.clock.now();
        let bells = Arc::clone(&domain.bells);
        let moved = |id| bells.vcpu_info_has_moved(id).then(|| bells.of(id).vcpu_info.0);
        let peer = |id| {
            let peer = domain.peers.get(id)?;
            let context = peer.context.as_deref().map(|context| Box::new(VcpuState::of(context)));
            Some(PeerState {
                initialised: peer.initialised,
                up: peer.up,
                context,
                runstate: RunstateState::of(&peer.runstate),
                left: peer.left,
                has_left: peer.has_left,
                info: moved(id),
            })
        };
        let peers = (0..).map_while(|number| domain.peers.id(number)).filter_map(peer).collect();
        Ok(Self {
            now,
            wall_version: domain.wall.version(),
            name: domain.store.about.name.clone(),
            pins: domain.mmu.pins().map(|(mfn, level)| (mfn.0, level)).collect(),
            given_back: runs(domain.mmu.given_back()),
            console: domain.console.ring.mfn().0,
            store_ring: domain.store.ring.mfn().0,
            store: domain.store.state(),
            ports: domain.events.state(),
            grants: domain.grants.state(),
            peers,
            watchdogs: domain.watchdogs,
            pirq_eoi_map: domain.pirq_eoi_map.map(|mfn| mfn.0),
            shutdown_code: domain.shutdown_code,
            assists: domain.assists,
            hypercall_page: domain.facts.hypercall_page.map(|mfn| mfn.0),
            m2p: domain.facts.m2p_told.unwrap_or(domain.facts.m2p_va),
        })
    }
}

/// Consecutive frames as runs.
fn runs(frames: impl Iterator<Item = Mfn>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for Mfn(mfn) in frames {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == mfn => *count += 1,
            _ => runs.push((mfn, 1)),
        }
    }
    runs
}

/// Makes the domain anew, and its vCPUs in order.
///
/// # Errors
/// When it is not one that a guest could have come to have.
pub fn restore(parts: RestoreParts<'_>, state: &State) -> Result<(PvDomain, Vec<PvVcpu>), BadDomain> {
    let State { domain: saved, vcpus } = state;
    let count = parts.kicks.len();
    if vcpus.len() != count || saved.peers.len() != count || saved.now > LATEST {
        return Err(BadDomain::Nonsense("vCPUs or clock"));
    }
    saved.check_vcpus(vcpus)?;
    saved.check_addresses(&parts, vcpus)?;
    saved.adapt_hypercall_page(&parts)?;
    let mut log = TableLog::default();
    let mmu = saved.page_tables(&parts, &mut log)?;
    let mut domain = saved.empty(parts, mmu, log)?;
    saved.hold_frames(&mut domain)?;
    let mut restored = Vec::with_capacity(count);
    for (number, vcpu) in (0..).zip(vcpus) {
        let id = domain.peers.id(number).ok_or(BadDomain::Nonsense("vCPUs or clock"))?;
        restored.push(vcpu.restored(id, &mut domain)?);
    }
    saved.restore_peers(&mut domain)?;
    if count > 1 {
        let PvDomain { mmu, log, .. } = &mut domain;
        mmu.expect_several_vcpus(log)?;
    }
    for vcpu in &mut restored {
        tell_time(&mut PvContext { domain: &mut domain, vcpu })?;
    }
    domain.follow_wall_clock(domain.clock.now())?;
    Ok((domain, restored))
}

impl DomainState {
    /// A vCPU that may run has page tables, or a context with some that it begins with.
    fn check_vcpus(&self, vcpus: &[VcpuState]) -> Result<(), BadDomain> {
        for (number, (peer, vcpu)) in self.peers.iter().zip(vcpus).enumerate() {
            let begins = peer.context.as_ref().is_some_and(|context| context.has_tables());
            let can_run = vcpu.has_tables() || begins && vcpu.is_down();
            let may_run = peer.up || peer.initialised || !vcpu.is_down() || number == 0;
            if may_run && !can_run || peer.up && !peer.initialised || peer.context.is_some() && !begins {
                return Err(BadDomain::Nonsense("vCPUs or clock"));
            }
        }
        Ok(())
    }

    /// An engine without an upper half cannot run a guest that has something there.
    fn check_addresses(&self, parts: &RestoreParts<'_>, vcpus: &[VcpuState]) -> Result<(), BadDomain> {
        if parts.engine.upper_half {
            return Ok(());
        }
        for root in vcpus.iter().flat_map(VcpuState::roots) {
            for slot in addr::RESERVED_L4_LAST + 1..addr::PT_ENTRIES {
                let entry = Maddr(Mfn(root).maddr().0.saturating_add(slot as u64 * 8));
                if parts.memory.load_u64(entry).is_ok_and(pte::is_present) {
                    return Err(BadDomain::Addresses { at: (slot as u64) << 39 | 0xffff << 48 });
                }
            }
        }
        Ok(())
    }

    /// Has the hypercall page enter this engine. Before the page tables are validated, so that a frame that is one
    /// cannot be changed by this.
    fn adapt_hypercall_page(&self, parts: &RestoreParts<'_>) -> Result<(), BadDomain> {
        let Some(mfn) = self.hypercall_page.map(Mfn) else { return Ok(()) };
        if !parts.memory.is_guest_frame(mfn) {
            return Err(BadDomain::Frame("the hypercall page"));
        }
        let mut page: [u8; PAGE_SIZE as usize] = parts.memory.read_obj(mfn.maddr())?;
        for (number, stub) in (0..).zip(page.as_chunks_mut::<{ stubs::STUB }>().0) {
            let adapted = stubs::adapt(stub, &(parts.stub)(number), number);
            *stub = adapted.map_err(|stubs::NoRoom| BadDomain::HypercallPage)?;
        }
        Ok(parts.memory.write_obj(mfn.maddr(), &page)?)
    }

    /// Counts the uses of frames by validating what the guest had pinned.
    fn page_tables(&self, parts: &RestoreParts<'_>, log: &mut TableLog) -> Result<DirectPaging, BadDomain> {
        let mut mmu = DirectPaging::new(&parts.layout, parts.reserved_l4)?;
        mmu.distrust_memory();
        // In order, so that no frame is looked at twice.
        let mut next = 0;
        for &(first, count) in &self.given_back {
            let end = first.checked_add(count).filter(|end| first >= next && *end <= parts.layout.total);
            next = end.ok_or(BadDomain::Frame("given back"))?;
            for mfn in first..next {
                if !parts.memory.is_guest_frame(Mfn(mfn)) {
                    return Err(BadDomain::Frame("given back"));
                }
                mmu.withhold(Mfn(mfn));
            }
        }
        self.grants.share(&parts.layout.grants, &mut mmu)?;
        for &(mfn, level) in &self.pins {
            until_done(|| mmu.pin_again(&parts.memory, log, Mfn(mfn), level)).map_err(BadDomain::Tables)?;
        }
        Ok(mmu)
    }

    /// The domain, with nothing in it yet but its memory and page tables.
    fn empty(
        &self,
        parts: RestoreParts<'_>,
        mmu: DirectPaging,
        log: TableLog,
    ) -> Result<PvDomain, BadDomain> {
        let [console, store] = [self.console, self.store_ring].map(Mfn);
        let about = About {
            domain: DOMID,
            name: self.name.chars().take(256).collect(),
            memory_kib: parts.memory.guest_frames() * (PAGE_SIZE >> 10),
            store: (store.0, STORE_PORT),
            console: (console.0, CONSOLE_PORT),
            vcpus: parts.kicks.len(),
        };
        let Origin { m2p_va, call_length, tsc_khz, tsc_offset, .. } = parts.engine;
        let space = VcpuSpace::new(Mfn(0), &log);
        let made = PvDomain::new(PvParts {
            memory: parts.memory,
            mmu,
            tables: VcpuTables::none(),
            log,
            space,
            regs: Regs::default(),
            shared_info: parts.layout.shared_info.maddr(),
            clock: Clock::going_on(tsc_khz, tsc_offset, self.now),
            console: PvConsole { ring: console.maddr(), sink: parts.sink, input: parts.input },
            store: PvStore::new(store.maddr(), about),
            facts: Facts {
                m2p_va,
                m2p_told: Some(self.m2p).filter(|told| *told != m2p_va),
                call_length,
                marks: parts.marks,
                m2p: parts.layout.m2p,
                grants: parts.layout.grants,
                tsc_khz,
                hypercall_page: self.hypercall_page.map(Mfn),
            },
            kicks: parts.kicks,
        });
        let (mut domain, _) = made.map_err(|_| BadDomain::Frame("the ring of console or xenstore"))?;
        domain.wall = WallClock::going_on(self.wall_version);
        domain.watchdogs = self.watchdogs;
        domain.shutdown_code = self.shutdown_code;
        domain.assists = self.assists & ASSISTS;
        let restored = self.store.as_ref().map(|state| domain.store.restore(state)).unwrap_or(Some(()));
        restored.ok_or(BadDomain::Nonsense("nodes of the xenstore"))?;
        let ports = domain.events.restore(&self.ports, domain.peers.count());
        ports.ok_or(BadDomain::Nonsense("event channels"))?;
        Ok(domain)
    }

    /// Takes the references that nothing in a page table stands for.
    fn hold_frames(&self, domain: &mut PvDomain) -> Result<(), BadDomain> {
        let PvDomain { mmu, memory, log, grants, free_frames, .. } = domain;
        for &(first, count) in &self.given_back {
            (first..first.saturating_add(count)).for_each(|mfn| free_frames.insert(Mfn(mfn)));
        }
        if let Some(mfn) = self.pirq_eoi_map.map(Mfn) {
            until_done(|| mmu.get_writable(memory, log, mfn)).map_err(|_| BadDomain::Frame("shared"))?;
            domain.pirq_eoi_map = Some(mfn);
        }
        for device in grants.restore(&self.grants, mmu).ok_or(BadDomain::Nonsense("grants"))? {
            until_done(|| mmu.hold_granted(memory, log, device)).map_err(|_| BadDomain::Frame("granted"))?;
        }
        Ok(())
    }

    /// What the vCPUs know of each other, and where their infos are.
    fn restore_peers(&self, domain: &mut PvDomain) -> Result<(), BadDomain> {
        for (number, saved) in (0..MAX_VCPUS).zip(&self.peers) {
            let Some(id) = domain.peers.id(number) else { continue };
            if let Some(at) = saved.info.map(Maddr) {
                move_info(domain, id, at)?;
            }
            let periodic = saved.left.periodic.flatten().unwrap_or(MIN_PERIOD);
            let areas = [saved.left.runstate_area, saved.left.time_area].into_iter().flatten();
            if periodic < MIN_PERIOD || areas.into_iter().any(addr::is_hypervisor) {
                return Err(BadDomain::Nonsense("requests to vCPUs"));
            }
            let context = match &saved.context {
                None => None,
                Some(context) => Some(Box::new(context.restored(id, domain)?)),
            };
            let runstate = saved.runstate.restored()?;
            if let Some(peer) = domain.peers.get_mut(id) {
                (peer.initialised, peer.up) = (saved.initialised, saved.up);
                (peer.context, peer.runstate) = (context, runstate);
                (peer.left, peer.has_left) = (saved.left, saved.has_left);
            }
        }
        Ok(())
    }
}

/// A vCPU's info is in a frame of the guest's, held as VCPUOP_register_vcpu_info holds it.
fn move_info(domain: &mut PvDomain, id: VcpuId, at: Maddr) -> Result<(), BadDomain> {
    let fits = at.offset() <= PAGE_SIZE - size_of::<VcpuInfo>() as u64 && at.offset().is_multiple_of(8);
    if !fits {
        return Err(BadDomain::Frame("a vCPU's info"));
    }
    let PvDomain { mmu, memory, log, .. } = domain;
    let held = until_done(|| mmu.get_writable(memory, log, at.mfn()));
    held.map_err(|_| BadDomain::Frame("a vCPU's info"))?;
    domain.bells.vcpu_info_moved(id, at);
    Ok(())
}

/// Tells the guest how its clock goes on: with another rate, perhaps, and from another reading of its counter.
fn tell_time(cx: &mut PvContext<'_>) -> Result<(), BadDomain> {
    let info = cx.upcall().vcpu_info;
    if info != NOWHERE {
        let at = Maddr(info.0 + offset_of!(VcpuInfo, time) as u64);
        let before: VcpuTimeInfo = cx.domain.memory.read_obj(at)?;
        cx.domain.memory.write_obj(at, &cx.domain.clock.published(before.version))?;
    }
    // Without page tables there are no linear addresses, and frame 0 is none of the guest's.
    if cx.vcpu.tables.kernel_root() != Mfn(0) {
        cx.mend_selectors();
        // A guest that unmapped its copy gets none, as ever.
        let _ = cx.publish_time_copy();
    }
    Ok(())
}
