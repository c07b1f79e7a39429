//! What a debugger is told of a paravirtual guest, and may change of it.
//!
//! Page tables are never written here: direct paging has validated them, and only it may change them.

use std::fmt::Write;

use paravane_abi::event::EvtchnPort;
use paravane_abi::pte;

use super::PvRunner;
use super::testimony::{binding_name, doing};
use crate::machine::end::DomainEnd;
use crate::machine::memory::{MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::direct::frame::{Frame, FrameType, Owner};
use crate::monitor::inspect::{Inspect, Question, Unwritable};
use crate::pv::domain::PvDomain;
use crate::pv::event::{Binding, EventChannels};
use crate::pv::vcpu::RunState;
use crate::x86::control::cr0;
use crate::x86::registers::{Regs, SystemRegisters};
use crate::x86::walk::{MachineTables, walk};

/// The most users of a frame that are named.
const MOST_USERS: usize = 16;

impl Inspect for PvRunner {
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.vcpu.regs
    }

    fn system(&self) -> SystemRegisters {
        let control = &self.vcpu.control;
        let task_switched = if control.task_switched { cr0::TS } else { 0 };
        SystemRegisters {
            other_gs_base: self.vcpu.other_gs_base,
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG | task_switched,
            cr2: control.cr2,
            cr3: self.vcpu.space.root().maddr().0,
            cr4: control.cr4,
        }
    }

    fn translate(&self, va: u64) -> Option<Maddr> {
        if self.vcpu.state == RunState::Offline && self.vcpu.space.root() == Mfn(0) {
            return None;
        }
        let domain = self.shared.lock();
        let roots = [self.vcpu.space.root(), self.vcpu.tables.kernel_root()];
        roots.into_iter().find_map(|root| {
            let found = walk(&self.shared.memory, &MachineTables, root.maddr().0, va).ok()?.maddr?;
            // Of the hypervisor's own addresses only the table is shown that the guest may read, too.
            let frame = domain.mmu.frame(found.mfn())?;
            (frame.owner() != Owner::Hypervisor).then_some(found)
        })
    }

    fn write(&mut self, at: Maddr, bytes: &[u8]) -> Result<(), Unwritable> {
        let domain = self.shared.lock();
        let frame = domain.mmu.frame(at.mfn()).ok_or(Unwritable::NotTheGuests)?;
        if !matches!(frame.owner(), Owner::Guest | Owner::Shared) {
            return Err(Unwritable::NotTheGuests);
        }
        if at.offset() + bytes.len() as u64 > PAGE_SIZE {
            return Err(Unwritable::NotTheGuests);
        }
        if matches!(frame.held_as(), Some(FrameType::Table(_) | FrameType::SegDesc)) {
            return Err(Unwritable::Table);
        }
        Ok(self.shared.memory.write(at, bytes)?)
    }

    fn bad_end(&self) -> Option<String> {
        match self.shared.lock().end.as_ref()? {
            DomainEnd::PowerOff | DomainEnd::Reboot | DomainEnd::Suspend | DomainEnd::Interrupted => None,
            end @ (DomainEnd::GuestCrash | DomainEnd::Watchdog | DomainEnd::Killed(_)) => {
                Some(end.to_string())
            }
        }
    }

    fn answer(&self, question: Question) -> String {
        let domain = self.shared.lock();
        match question {
            Question::Doing => doing(&self.vcpu).to_owned(),
            Question::Events => events(&domain),
            Question::P2m(pfn) => p2m(&domain, pfn),
            Question::Frame(mfn) => {
                let mut text = frame(&domain, Mfn(mfn));
                let tables = &self.vcpu.tables;
                let (kernel, user) = (tables.kernel_root(), tables.user_root());
                for (what, root) in [("kernel", Some(kernel)), ("user programs", user)] {
                    if root == Some(Mfn(mfn)) {
                        line(
                            &mut text,
                            format_args!("  vcpu{} walks it for its {what}", self.vcpu.id.number()),
                        );
                    }
                }
                text
            }
        }
    }
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what}");
}

fn events(domain: &PvDomain) -> String {
    let mut text = String::new();
    let ports = (1..).take_while(|port| EventChannels::is_number(*port));
    for port in ports.filter(|port| domain.events.binding(*port) != Binding::Free) {
        let port: EvtchnPort = port;
        let binding = binding_name(domain.events.binding(port));
        let vcpu = domain.events.vcpu(port).number();
        let is = |set, what| if set == Ok(true) { what } else { "" };
        let pending = is(domain.bells.is_pending(port), ", pending");
        let masked = is(domain.bells.is_masked(port), ", masked");
        line(&mut text, format_args!("port {port}: {binding}; for vcpu{vcpu}{pending}{masked}"));
    }
    if text.is_empty() { "no event channel is in use\n".to_owned() } else { text }
}

/// What the machine-to-physical table says of a frame.
fn pfn_of(domain: &PvDomain, mfn: Mfn) -> Option<u64> {
    let at = Mfn(domain.facts.m2p.start).maddr().0.checked_add(mfn.0.checked_mul(8)?)?;
    let inside = Maddr(at).mfn().0 < domain.facts.m2p.end;
    domain.memory.load_u64(Maddr(at)).ok().filter(|_| inside)
}

fn p2m(domain: &PvDomain, pfn: u64) -> String {
    let guests = |mfn: &u64| domain.mmu.frame(Mfn(*mfn)).is_some_and(|frame| frame.owner() == Owner::Guest);
    let mut frames = (0..domain.memory.frames()).filter(guests);
    match frames.find(|mfn| pfn_of(domain, Mfn(*mfn)) == Some(pfn)) {
        Some(mfn) => format!("pfn {pfn:#x} is mfn {mfn:#x}\n"),
        None => format!("no frame is said to be pfn {pfn:#x} (machine-to-physical table)\n"),
    }
}

fn frame(domain: &PvDomain, mfn: Mfn) -> String {
    let Some(state) = domain.mmu.frame(mfn) else {
        return format!("there is no frame {:#x}: this machine has {:#x}\n", mfn.0, domain.memory.frames());
    };
    let mut text = String::new();
    let owner = match state.owner() {
        Owner::Guest => "the guest's",
        Owner::Hypervisor => "the hypervisor's",
        Owner::Shared => "shared info, the hypervisor's",
        Owner::ReadOnly => "machine-to-physical table, the hypervisor's",
    };
    let number = mfn.0;
    match pfn_of(domain, mfn).filter(|_| state.owner() == Owner::Guest) {
        Some(pfn) => line(&mut text, format_args!("mfn {number:#x}, pfn {pfn:#x}: {owner}")),
        None => line(&mut text, format_args!("mfn {number:#x}: {owner}")),
    }
    let held = describe(state);
    let (refs, type_refs) = (state.refs(), state.type_refs());
    line(&mut text, format_args!("  {held}; {refs} references, {type_refs} of them hold its type"));
    users(domain, mfn, &mut text);
    text
}

fn describe(state: Frame) -> String {
    let name = |kind| match kind {
        FrameType::None => "only read so far".to_owned(),
        FrameType::Writable => "writable memory".to_owned(),
        FrameType::SegDesc => "segment descriptors".to_owned(),
        FrameType::Table(level) => format!("L{} page table", level.number()),
    };
    let pinned = if state.pinned() { ", pinned" } else { "" };
    match state.held_as() {
        Some(kind) => format!("in use as {}{pinned}", name(kind)),
        None => format!("in no use that has a type; last: {}", name(state.kind())),
    }
}

/// The entries of page tables that name the frame.
fn users(domain: &PvDomain, mfn: Mfn, text: &mut String) {
    let mut found = 0;
    for table in (0..domain.memory.frames()).map(Mfn) {
        let Some(FrameType::Table(level)) = domain.mmu.frame(table).and_then(Frame::held_as) else {
            continue;
        };
        for (index, entry) in entries(&domain.memory, table) {
            if entry & pte::PRESENT == 0 || pte::mfn(entry) != mfn.0 {
                continue;
            }
            found += 1;
            if found <= MOST_USERS {
                let rights = if entry & pte::RW != 0 { "writable" } else { "read-only" };
                let what = if level.number() == 1 { "maps" } else { "links" };
                let level = level.number();
                line(
                    text,
                    format_args!("  L{level} table mfn {:#x}, entry {index}: {what} it, {rights}", table.0),
                );
            }
        }
    }
    if found > MOST_USERS {
        line(text, format_args!("  and {} more entries", found - MOST_USERS));
    }
}

fn entries(memory: &MachineMemory, table: Mfn) -> impl Iterator<Item = (u64, u64)> {
    let start = table.maddr().0;
    (0..512u64).filter_map(move |index| Some((index, memory.load_u64(Maddr(start + 8 * index)).ok()?)))
}
