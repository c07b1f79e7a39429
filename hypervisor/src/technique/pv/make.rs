//! A paravirtual domain from its parts: what Xen does between the domain builder and the first instruction.

use std::mem::offset_of;
use std::sync::Arc;

use paravane_abi::shared_info::VcpuInfo;

use super::{PvGuest, PvRunner, Shared};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::machine::time::Clock;
use crate::mmu::direct::DirectPaging;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::pv::devices::PvDevices;
use crate::pv::domain::{CONSOLE_PORT, DOMID, Facts, PvConsole, PvDomain, PvParts, PvStore, STORE_PORT};
use crate::pv::event::upcall::NOWHERE;
use crate::pv::store::About;
use crate::pv::vcpu::PvVcpu;
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
    let coherence = info.coherence;
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
        vcpus: 1 + parts.kicks.len(),
    };

    let clock = Clock::new(info.tsc_khz, info.tsc_offset);
    let shared_info = parts.layout.shared_info.maddr();
    let time = Maddr(shared_info.0 + offset_of!(VcpuInfo, time) as u64);
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
        kicks: [parts.kick].into_iter().chain(parts.kicks).collect(),
        facts: Facts {
            m2p_va: info.m2p_va,
            m2p_told: None,
            hypercall_page: parts.built.hypercall_page,
            call_length: info.call_length,
            marks: parts.marks,
            m2p: parts.layout.m2p,
            grants: parts.layout.grants,
            tsc_khz: info.tsc_khz,
        },
    })
    .map_err(|_| MakeError::NoRing)?;
    domain.bells.of(vcpu.id).set_mask(&domain.memory, true)?;
    domain.follow_wall_clock(clock.now())?;
    domain.connect_services();
    domain.virtio = PvDevices::new(parts.devices, &domain.bells);
    domain.virtio.publish_all(&domain.memory)?;
    let mut others = Vec::new();
    if domain.peers.count() > 1 {
        domain.mmu.expect_several_vcpus(&mut domain.log)?;
        for id in (1..).map_while(|number| domain.peers.id(number)) {
            let info = domain.bells.of(id).vcpu_info;
            if info != NOWHERE {
                let time = Maddr(info.0 + offset_of!(VcpuInfo, time) as u64);
                domain.memory.write_obj(time, &clock.published(0))?;
            }
            others.push(PvVcpu::absent(id, &domain.log));
        }
    }
    let shared = Arc::new(Shared::new(domain, coherence));
    let runner = |vcpu| PvRunner::new(Arc::clone(&shared), vcpu);
    let (boot, others) = (runner(vcpu), others.into_iter().map(runner).collect());
    Ok(Box::new(PvGuest { shared, boot, others, clock }))
}
