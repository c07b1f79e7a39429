//! A paravirtual domain from its parts: what Xen does between the domain builder and the first instruction.

use paravane_abi::shared_info::VcpuInfo;

use super::PvGuest;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::machine::time::Clock;
use crate::mmu::direct::DirectPaging;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::pv::devices::PvDevices;
use crate::pv::domain::{CONSOLE_PORT, DOMID, Facts, PvConsole, PvDomain, PvParts, PvStore, STORE_PORT};
use crate::pv::store::About;
use crate::technique::{Domain, MakeError, Parts};
use crate::x86::registers::Regs;

/// The machine-to-physical table, the tables that map it, and the account of the hypervisor's frames.
pub(super) fn own_frames(layout: &HypervisorLayout) -> u64 {
    let m2p = layout.m2p.end - layout.m2p.start;
    m2p + m2p.div_ceil(512) + layout.hypervisor_frames().div_ceil(512)
}

/// Makes the domain.
pub(super) fn make(parts: Parts<'_>) -> Result<Box<dyn Domain>, MakeError> {
    let info = parts.machine.info();
    let mut mmu = DirectPaging::new(&parts.layout, parts.machine.reserved_l4_entries())?;
    let mut log = TableLog::default();
    let space = VcpuSpace::new(parts.built.root, &log);
    let tables =
        mmu.pin_initial(&parts.memory, &mut log, parts.built.root).map_err(MakeError::InitialTables)?;
    let console = parts.built.console_mfn.ok_or(MakeError::NoRing)?;
    let store = parts.built.store_mfn.ok_or(MakeError::NoRing)?;
    let about = About {
        domain: DOMID,
        name: parts.name,
        memory_kib: parts.memory.guest_frames() * (PAGE_SIZE >> 10),
        store: (store.0, STORE_PORT),
        console: (console.0, CONSOLE_PORT),
    };

    let clock = Clock::new(info.tsc_khz, info.tsc_offset);
    let shared_info = parts.layout.shared_info.maddr();
    let time = Maddr(shared_info.0 + std::mem::offset_of!(VcpuInfo, time) as u64);
    parts.memory.write_obj(time, &clock.published(0))?;
    let regs = Regs {
        rip: parts.built.entry_rip,
        rsp: parts.built.rsp,
        rsi: parts.built.rsi,
        rflags: 0x202,
        ..Regs::default()
    };
    let (mut domain, vcpu) = PvDomain::new(PvParts {
        memory: parts.memory,
        mmu,
        tables,
        log,
        space,
        regs,
        shared_info,
        clock,
        console: PvConsole { ring: console.maddr(), sink: parts.sink, input: parts.input },
        store: PvStore::new(store.maddr(), about),
        facts: Facts {
            m2p_va: info.m2p_va,
            call_length: info.call_length,
            marks: parts.marks,
            m2p: parts.layout.m2p,
            grants: parts.layout.grants,
            tsc_khz: info.tsc_khz,
        },
    })
    .map_err(|_| MakeError::NoRing)?;
    let upcall = domain.upcalls.of(vcpu.id);
    upcall.set_mask(&domain.memory, true)?;
    domain.follow_wall_clock(clock.now())?;
    domain.connect_services();
    domain.virtio = PvDevices::new(parts.devices, &domain.memory, upcall, parts.kick);
    domain.virtio.publish_all(&domain.memory)?;
    Ok(Box::new(PvGuest { domain, vcpu }))
}
