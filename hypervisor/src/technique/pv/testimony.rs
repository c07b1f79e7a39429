//! What a paravirtual kernel's author wants to know of its vCPU once it has come to a bad end.

use crate::autopsy::Testimony;
use crate::machine::end::DomainEnd;
use crate::mmu::direct::Obstacle;
use crate::mmu::direct::frame::FrameType;
use crate::pv::access::GuestMemory;
use crate::pv::domain::PvDomain;
use crate::pv::event::{Binding, HostService};
use crate::pv::exception::Exception;
use crate::pv::vcpu::{PvVcpu, Refusal, RunState};
use crate::x86::exception::Fault;

use paravane_abi::event::{EVTCHN_2L_NR_CHANNELS, EvtchnPort};
use paravane_abi::trap::{PFEC_PRESENT, PFEC_WRITE, TRAP_PAGE_FAULT};
use paravane_abi::virq::{VIRQ_CONSOLE, VIRQ_DEBUG, VIRQ_TIMER};

/// The most ports that are named.
const MOST_PORTS: usize = 8;
/// The most uses of a frame that are named.
const MOST_REFERENCES: usize = 4;
/// How many exits a kernel makes at most from a refusal to its panic: it prints some lines.
const RECENT: u64 = 64;

pub(super) fn of(domain: &PvDomain, vcpu: &PvVcpu) -> Testimony {
    let hangs = matches!(domain.end, None | Some(DomainEnd::Interrupted | DomainEnd::Watchdog));
    let exception = vcpu.last_exception.filter(|_| !hangs);
    Testimony {
        vcpu: vcpu.id.number(),
        regs: vcpu.regs,
        doing: doing(vcpu),
        exception: exception.map(|exception| (exception.to_string(), exception.rip)),
        notes: if hangs { events(domain, vcpu) } else { tables(domain, vcpu) },
    }
}

/// What page tables had to do with it.
fn tables(domain: &PvDomain, vcpu: &PvVcpu) -> Vec<String> {
    let mut notes = Vec::new();
    let mut explain = |what: String, obstacle: Obstacle| {
        notes.push(format!("{what}: {obstacle}"));
        let Some(mfn) = obstacle.frame() else { return };
        let root = vcpu.space.root();
        let references = domain.mmu.references(&domain.memory, root, mfn, MOST_REFERENCES);
        notes.extend(
            references.iter().map(|reference| format!("  machine frame {:#x} is {reference}", mfn.0)),
        );
    };
    if let Some(table) = vcpu.last_exception.and_then(|exception| table_written(domain, vcpu, &exception)) {
        explain("the store went to a page table".to_owned(), table);
    }
    // What was refused long before had nothing to do with it.
    let recent = |refusal: &Refusal| vcpu.ledger.exits().saturating_sub(refusal.exits) <= RECENT;
    if let Some(Refusal { errno, obstacle, .. }) = vcpu.last_refusal.filter(recent) {
        explain(format!("its last change of page tables was refused with {errno}"), obstacle);
    }
    notes
}

/// The page table that a kernel has tried to write to.
fn table_written(domain: &PvDomain, vcpu: &PvVcpu, exception: &Exception) -> Option<Obstacle> {
    const STORE: u32 = PFEC_PRESENT | PFEC_WRITE;
    let Fault { vector, error_code, address } = exception.fault;
    if vector != TRAP_PAGE_FAULT || error_code & STORE != STORE {
        return None;
    }
    let at = GuestMemory::new(&domain.memory, vcpu.space.root()).translate(address, false).ok()?;
    let found = domain.mmu.frame(at.mfn())?;
    let is_table = matches!(found.held_as(), Some(FrameType::Table(_)));
    is_table.then_some(Obstacle::Use { mfn: at.mfn(), wanted: FrameType::Writable, found: Some(found) })
}

pub(super) fn doing(vcpu: &PvVcpu) -> &'static str {
    match (vcpu.state, vcpu.kernel_mode) {
        (RunState::Blocked, _) => "waits for an event (SCHEDOP_block)",
        (RunState::Polling, _) => "polls event channels (SCHEDOP_poll)",
        (RunState::Offline, _) => "is down",
        (RunState::Running, true) => "is in its kernel",
        (RunState::Running, false) => "is in a user program",
    }
}

/// Why no event reaches the kernel, as far as that can be seen.
fn events(domain: &PvDomain, vcpu: &PvVcpu) -> Vec<String> {
    let mut notes = Vec::new();
    let waits = vcpu.state != RunState::Running;
    let masked = matches!(domain.bells.of(vcpu.id).state(&domain.memory), Ok((_, true)));
    if vcpu.event.address == 0 {
        notes.push("it has registered no handler for events (SDK: event::install)".to_owned());
    } else if masked && !waits {
        notes.push("it has masked events: none reaches its handler (SDK: event::enable)".to_owned());
    }
    let pending = (1..EVTCHN_2L_NR_CHANNELS).filter(|port| {
        domain.events.binding(*port) != Binding::Free
            && domain.events.vcpu(*port) == vcpu.id
            && domain.bells.is_pending(*port) == Ok(true)
    });
    let pending: Vec<EvtchnPort> = pending.take(MOST_PORTS).collect();
    for port in &pending {
        let what = binding_name(domain.events.binding(*port));
        notes.push(format!("port {port} ({what}) is pending and was not handled"));
    }
    if waits && pending.is_empty() && vcpu.timers.next().is_none() {
        notes.push("it has set no timer, and nothing is pending: only a device can wake it".to_owned());
    }
    notes
}

pub(super) fn binding_name(binding: Binding) -> String {
    match binding {
        Binding::Virq(VIRQ_TIMER) => "the timer, VIRQ_TIMER".to_owned(),
        Binding::Virq(VIRQ_DEBUG) => "VIRQ_DEBUG".to_owned(),
        Binding::Virq(VIRQ_CONSOLE) => "VIRQ_CONSOLE".to_owned(),
        Binding::Virq(number) => format!("virtual interrupt {number}"),
        Binding::Ipi => "from another vCPU, or itself".to_owned(),
        Binding::Loop { peer } => format!("sent through port {peer}"),
        Binding::Host(HostService::Console) => "the console".to_owned(),
        Binding::Host(HostService::Store) => "the xenstore".to_owned(),
        Binding::Host(HostService::Queue { device, queue }) => {
            format!("virtio device {device}, queue {queue}")
        }
        Binding::Host(HostService::Config { device }) => format!("virtio device {device}, configuration"),
        Binding::Free | Binding::Unbound { .. } => "not bound".to_owned(),
    }
}
