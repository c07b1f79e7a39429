//! One vCPU's state, out and in.

use paravane_abi::addr::{is_canonical, is_hypervisor};
use paravane_abi::debugreg::{DEBUGREG_CONTROL, DEBUGREG_STATUS};
use paravane_abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MMUEXT_SET_LDT, MmuextOp};
use paravane_abi::trap::TrapInfo;
use paravane_abi::vcpu::VcpuRunstateInfo;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::{BadDomain, at_most, until_done};
use crate::machine::memory::Mfn;
use crate::machine::time::Timers;
use crate::mmu::direct::{GDT_FRAMES, VcpuTables};
use crate::mmu::space::VcpuSpace;
use crate::pv::context::PvContext;
use crate::pv::debug_registers;
use crate::pv::domain::PvDomain;
use crate::pv::fixup::state_a_guest_may_set;
use crate::pv::runstate::Runstate;
use crate::pv::vcpu::{CR4_FIXED, Callback, IoPrivilege, MAX_POLL_PORTS, Nmi, PvVcpu, RunState, VcpuId};
use crate::x86::registers::{Regs, Selectors};
use crate::x86::rflags::{ALWAYS_AT_CPL3, LOADED_AT_CPL3};

/// The privilege level that a guest's selectors ask for.
const RPL: u16 = 3;

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    regs: Regs,
    /// An XSAVE area; empty for that of a reset.
    pub vectors: Vec<u8>,
    tables: Option<Tables>,
    timers: Timers,
    kernel_mode: bool,
    kernel_sp: u64,
    /// Of those vectors that have a handler: `TrapInfo`.
    #[serde(deserialize_with = "at_most::<256, _, _>")]
    traps: Vec<(u8, [u8; 16])>,
    event: Callback,
    failsafe: Callback,
    syscall: Callback,
    syscall32: Callback,
    sysenter: Callback,
    other_gs_base: u64,
    user_selectors: (u16, u16),
    task_switched: bool,
    cr2: u64,
    cr4: u64,
    xcr0: u64,
    xsave_in_use: bool,
    tsc_aux: u32,
    debug_addresses: [u64; 4],
    debug_status: u64,
    debug_control: u64,
    io: IoPrivilege,
    nmi: Nmi,
    run: RunState,
    #[serde(deserialize_with = "at_most::<MAX_POLL_PORTS, _, _>")]
    polled: Vec<u32>,
    /// A port that it polls has become pending.
    pub poll_has_ended: bool,
    runstate: RunstateState,
}

/// The tables of a vCPU that has some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Tables {
    kernel: u64,
    user: Option<u64>,
    #[serde(deserialize_with = "at_most::<GDT_FRAMES, _, _>")]
    gdt: Vec<u64>,
    ldt: (u64, u32),
}

/// Its account of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunstateState {
    state: i32,
    since: u64,
    time: [u64; 4],
    area: u64,
    time_area: u64,
}

impl RunstateState {
    pub(super) fn of(runstate: &Runstate) -> Self {
        let Runstate { info, area, time_area } = *runstate;
        Self { state: info.state, since: info.state_entry_time, time: info.time, area, time_area }
    }

    pub(super) fn restored(self) -> Result<Runstate, BadDomain> {
        if !is_guests(self.area) || !is_guests(self.time_area) || !(0..4).contains(&self.state) {
            return Err(BadDomain::Nonsense("accounts of time"));
        }
        let info = VcpuRunstateInfo {
            state: self.state,
            state_entry_time: self.since,
            time: self.time,
            ..Default::default()
        };
        Ok(Runstate { info, area: self.area, time_area: self.time_area })
    }
}

/// Whether a guest may give this address for something of its own.
fn is_guests(va: u64) -> bool {
    is_canonical(va) && !is_hypervisor(va)
}

impl VcpuState {
    /// The state of a vCPU that is out of the guest. Its vector registers are added by who has them; whether its poll
    /// has ended, once all vCPUs are out of the guest, because the others end it.
    pub fn of(vcpu: &PvVcpu) -> Self {
        let with_handler = (0..=u8::MAX).zip(&vcpu.traps).filter(|(_, trap)| trap.address != 0);
        let bytes = |trap: &TrapInfo| trap.as_bytes().first_chunk().copied().unwrap_or_default();
        let tables = Some(&vcpu.tables).filter(|tables| tables.kernel_root() != Mfn(0));
        Self {
            regs: vcpu.regs,
            vectors: Vec::new(),
            tables: tables.map(|tables| Tables {
                kernel: tables.kernel_root().0,
                user: tables.user_root().map(|root| root.0),
                gdt: tables.gdt_frames().map(|frame| frame.0).collect(),
                ldt: tables.ldt(),
            }),
            timers: vcpu.timers,
            kernel_mode: vcpu.kernel_mode,
            kernel_sp: vcpu.kernel_sp,
            traps: with_handler.map(|(vector, trap)| (vector, bytes(trap))).collect(),
            event: vcpu.event,
            failsafe: vcpu.failsafe,
            syscall: vcpu.syscall,
            syscall32: vcpu.syscall32,
            sysenter: vcpu.sysenter,
            other_gs_base: vcpu.other_gs_base,
            user_selectors: vcpu.user_selectors,
            task_switched: vcpu.control.task_switched,
            cr2: vcpu.control.cr2,
            cr4: vcpu.control.cr4,
            xcr0: vcpu.control.xcr0,
            xsave_in_use: vcpu.control.xsave_in_use,
            tsc_aux: vcpu.control.tsc_aux,
            debug_addresses: vcpu.debug.addresses,
            debug_status: vcpu.debug.status,
            debug_control: vcpu.debug.control,
            io: vcpu.io,
            nmi: vcpu.nmi,
            run: vcpu.state,
            polled: vcpu.polled.ports().to_vec(),
            poll_has_ended: false,
            runstate: RunstateState::of(&vcpu.runstate),
        }
    }

    /// Whether it has page tables: without, it cannot run.
    pub(super) fn has_tables(&self) -> bool {
        self.tables.is_some()
    }

    /// Whether it waits to be brought up.
    pub(super) fn is_down(&self) -> bool {
        self.run == RunState::Offline
    }

    /// The roots of its page tables.
    pub(super) fn roots(&self) -> impl Iterator<Item = u64> {
        self.tables.iter().flat_map(|tables| [Some(tables.kernel), tables.user]).flatten()
    }

    /// The vCPU, with its tables held. It has cached nothing of them yet.
    pub(super) fn restored(&self, id: VcpuId, domain: &mut PvDomain) -> Result<PvVcpu, BadDomain> {
        self.check()?;
        let (tables, gdt) = match &self.tables {
            None => (VcpuTables::none(), None),
            Some(saved) => saved.restored(domain)?,
        };
        let root = if self.kernel_mode { Some(tables.kernel_root()) } else { tables.user_root() };
        let root = root.ok_or(BadDomain::Nonsense("page tables"))?;
        let mut space = VcpuSpace::new(root, &domain.log);
        if let Some(frames) = gdt {
            space.set_gdt(frames);
        }
        space.set_user_mode(!self.kernel_mode);
        let mut vcpu = PvVcpu::new(id, self.regs(), space, tables);
        vcpu.timers = self.timers;
        vcpu.kernel_mode = self.kernel_mode;
        vcpu.kernel_sp = self.kernel_sp;
        for (vector, bytes) in &self.traps {
            let handler = vcpu.traps.get_mut(usize::from(*vector)).zip(TrapInfo::read_from_bytes(bytes).ok());
            let Some((slot, trap)) = handler.filter(|(_, trap)| is_canonical(trap.address)) else {
                return Err(BadDomain::Nonsense("exception handlers"));
            };
            *slot = trap;
        }
        (vcpu.event, vcpu.failsafe, vcpu.syscall) = (self.event, self.failsafe, self.syscall);
        (vcpu.syscall32, vcpu.sysenter) = (self.syscall32, self.sysenter);
        vcpu.other_gs_base = self.other_gs_base;
        // Whether they can be loaded is looked at before they are: see `crossing`.
        vcpu.user_selectors = (self.user_selectors.0 | RPL, self.user_selectors.1 | RPL);
        vcpu.control.cr2 = self.cr2;
        vcpu.control.tsc_aux = self.tsc_aux;
        vcpu.control.cr4 = self.cr4;
        vcpu.control.xcr0 = self.xcr0;
        vcpu.control.xsave_in_use = self.xsave_in_use;
        vcpu.set_task_switched(self.task_switched);
        let addresses = (0..).zip(self.debug_addresses);
        for (number, value) in
            addresses.chain([(DEBUGREG_STATUS, self.debug_status), (DEBUGREG_CONTROL, self.debug_control)])
        {
            let written = debug_registers::write(&mut vcpu, number, value);
            written.map_err(|_| BadDomain::Nonsense("debug registers"))?;
        }
        vcpu.io = IoPrivilege { level: self.io.level & 3, ..self.io };
        vcpu.nmi = self.nmi;
        vcpu.state = self.run;
        self.polled.iter().for_each(|port| vcpu.polled.push(*port));
        vcpu.runstate = self.runstate.restored()?;
        vcpu.allow_instructions();
        if self.run == RunState::Polling && !self.poll_has_ended {
            domain.bells.poll(id, vcpu.polled.ports());
        }
        Ok(vcpu)
    }

    /// What a guest could not have set by itself is refused.
    fn check(&self) -> Result<(), BadDomain> {
        let callbacks = [self.event, self.failsafe, self.syscall, self.syscall32, self.sysenter];
        let bases = [self.regs.fs_base, self.regs.gs_base, self.other_gs_base];
        let addresses = callbacks.into_iter().map(|callback| callback.address).chain(bases);
        if !addresses.into_iter().all(is_canonical) {
            return Err(BadDomain::Nonsense("addresses of handlers or segments"));
        }
        let settable = state_a_guest_may_set();
        if self.cr4 & !(CR4_FIXED | settable.cr4) != 0 || !settable.is_xcr0(self.xcr0) {
            return Err(BadDomain::Nonsense("control registers"));
        }
        if !self.timers.are_possible() {
            return Err(BadDomain::Nonsense("timers"));
        }
        Ok(())
    }

    /// The registers, with the flags and privilege levels that code at CPL 3 has.
    fn regs(&self) -> Regs {
        let Selectors { cs, ss, ds, es, fs, gs } = self.regs.selectors;
        Regs {
            rflags: self.regs.rflags & LOADED_AT_CPL3 | ALWAYS_AT_CPL3,
            selectors: Selectors { cs: cs | RPL, ss: ss | RPL, ds, es, fs, gs },
            ..self.regs
        }
    }
}

impl Tables {
    fn restored(
        &self,
        domain: &mut PvDomain,
    ) -> Result<(VcpuTables, Option<crate::mmu::space::GdtFrames>), BadDomain> {
        let PvDomain { mmu, memory, log, .. } = domain;
        let mut tables =
            until_done(|| mmu.attach(memory, log, Mfn(self.kernel))).map_err(BadDomain::Tables)?;
        // A place for what the calls would have a vCPU do that runs: this one has nothing to flush yet.
        let mut space = VcpuSpace::new(Mfn(self.kernel), log);
        let (ldt, entries) = self.ldt;
        let op = |cmd, arg1, arg2| MmuextOp { cmd, arg1, arg2, ..Default::default() };
        for op in
            [op(MMUEXT_NEW_USER_BASEPTR, self.user.unwrap_or(0), 0), op(MMUEXT_SET_LDT, ldt, entries.into())]
        {
            until_done(|| mmu.mmuext_one(memory, log, &mut space, &mut tables, &op))
                .map_err(BadDomain::Tables)?;
        }
        if self.gdt.is_empty() {
            return Ok((tables, None));
        }
        let entries =
            u32::try_from(self.gdt.len() * 512).map_err(|_| BadDomain::Nonsense("descriptor tables"))?;
        until_done(|| mmu.set_gdt(memory, log, &mut space, &mut tables, &self.gdt, entries))
            .map_err(BadDomain::Tables)?;
        Ok((tables, Some(*space.gdt())))
    }
}

impl PvContext<'_> {
    /// Where the selectors of a vCPU that was restored are not what a processor could hold, it gets the flat ones.
    pub(super) fn mend_selectors(&mut self) {
        let Selectors { cs, ss, ds, es, fs, gs } = self.vcpu.regs.selectors;
        if !self.is_code_64(cs) || !self.is_stack(ss) {
            self.vcpu.regs.selectors.flatten();
        }
        let loads = [ds, es, fs, gs].map(|selector| self.load_data(selector).is_ok());
        let selectors = &mut self.vcpu.regs.selectors;
        let slots = [&mut selectors.ds, &mut selectors.es, &mut selectors.fs, &mut selectors.gs];
        slots.into_iter().zip(loads).filter(|(_, loads)| !loads).for_each(|(slot, _)| *slot = 0);
    }
}
