//! A virtual CPU of KVM: into the guest, out of it, and what that meant.
//!
//! Runs on the vCPU's thread. What may not be done here: allocating, logging or waiting on the way in or out.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd, VmFd};

use super::coherence::{Plan, Planner};
use super::context::{
    Features, cr0, cr4, enter_gate, gate_selectors, is_in_ring, set_segments, to_kvm, write_words,
};
use super::fast::FastPaths;
use super::gate::Answer;
use super::host::HostKind;
use super::kick::KvmKick;
use super::tables::GateTables;
use super::transport::Transport;
use super::{gate, host, setup, state, stats, tables};
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::engine::{Coherence, Cpu, Exit, canonical};
use crate::machine::kick::Kick;
use crate::machine::memory::{MachineMemory, Mfn};
use crate::mmu::crossing::Crossed;
use crate::mmu::log::TableLog;
use crate::mmu::space::{Allowed, Pending, VcpuSpace};
use crate::x86::control::cr4;
use crate::x86::exception::Fault;
use crate::x86::registers::{Regs, Selectors};
use crate::x86::rflags;

/// The end of a guest whose engine cannot reach what the engine has put into memory.
pub(super) const LOST: &str = "the fast paths are not in memory";

/// A virtual CPU, bound to the thread that it is run on.
pub struct KvmCpu {
    // Dropped in this order: the vCPU before its VM.
    pub(super) kick: Arc<KvmKick>,
    pub(super) vcpu: VcpuFd,
    vm: Arc<VmFd>,
    pub(super) gate: GateTables,
    pub(super) features: Features,
    /// What CR4 and XCR0 allow.
    allowed: Allowed,
    /// XCR0 as KVM has it.
    xcr0: u64,
    /// The exit port can be closed to user programs, which do not need it; and whether it is.
    may_close_port: bool,
    port_closed: bool,
    planner: Planner,
    /// The gate has a work list that it has not applied yet.
    pub(super) to_apply: bool,
    /// What other virtual CPUs there are, and what they have of a change that this one applies.
    others: Others,
    /// RIP of a VMCALL that waits for its answer: KVM completes it at the next entry, whatever RIP is then.
    pub(super) call: Option<u64>,
    /// A signal came while an exception was being delivered to the gate: the next entry reports the kick.
    pub(super) kick_owed: bool,
    /// Where a slot can be added and deleted to make KVM drop what it has cached.
    spare_slot: kvm_userspace_memory_region,
    pub(super) fast: Option<FastPaths>,
    /// Where the last entry left a virtual CPU with fast paths.
    pub(super) crossed: Option<Crossed>,
}

impl KvmCpu {
    /// A virtual CPU that has not run. `vm` comes with where a slot can be added to it and deleted.
    pub(super) fn new(
        vcpu: VcpuFd,
        kick: KvmKick,
        (vm, spare_slot): (Arc<VmFd>, kvm_userspace_memory_region),
        gate: GateTables,
        features: Features,
        transport: Transport,
    ) -> Self {
        Self {
            kick: Arc::new(kick),
            vcpu,
            vm,
            gate,
            features,
            xcr0: features.xcr0,
            allowed: Allowed::ALL,
            // Where SYSCALL leaves CPL 3, as it does not on a software KVM, its `OUT` needs no permission.
            may_close_port: transport == Transport::Pio && host::usable_kind() == HostKind::Hardware,
            port_closed: false,
            planner: Planner::new(),
            to_apply: false,
            others: Others::None,
            call: None,
            kick_owed: false,
            spare_slot,
            fast: None,
            crossed: None,
        }
    }

    /// User programs reach their kernel, and it them, without an exit. For a virtual CPU alone in its machine.
    pub(super) fn take_fast_paths(&mut self, fast: FastPaths) {
        // The mode changes without anybody who could close the port.
        self.may_close_port = false;
        self.fast = Some(fast);
    }

    /// Whether an `OUT` at CPL 3 to the port of the `pio` transport, which this engine has, leaves the guest: executes
    /// the one at which SYSCALL arrives. Before the guest's first entry.
    pub(super) fn port_is_open(&mut self, memory: &MachineMemory) -> bool {
        let Ok(root) = self.gate.empty_root(memory) else { return false };
        let log = TableLog::default();
        let space = VcpuSpace::new(root, &log);
        loop {
            let mut regs = Regs { rip: tables::SYSCALL_VA, ..Regs::default() };
            match self.enter(&mut regs, &space, memory) {
                // A signal that was meant for somebody else: whoever sends them without end holds up the guest as well.
                Exit::Kick => {}
                exit => return exit == Exit::Syscall,
            }
        }
    }

    /// There are other virtual CPUs, which share the page tables.
    pub(super) fn shares_tables(&mut self, coherence: Coherence) {
        self.others = match coherence {
            Coherence::OwnEntry => Others::Follow,
            Coherence::EveryCpu => Others::ForThemselves,
        };
    }

    /// Makes KVM drop every translation that it has cached of any page table.
    fn zap(&mut self) -> Result<(), &'static str> {
        let gone = kvm_userspace_memory_region { memory_size: 0, ..self.spare_slot };
        // SAFETY: the slot covers the first page of machine memory, which outlives this call; it is deleted again.
        let added = unsafe { self.vm.set_user_memory_region(self.spare_slot) };
        // SAFETY: as above; deleting a slot touches no memory.
        let deleted = unsafe { self.vm.set_user_memory_region(gone) };
        added.and(deleted).map_err(|_| "KVM refused to drop its cached translations")
    }

    /// Loads `regs`: straight into guest context, or through the gate when there is work for it or a VMCALL to
    /// answer.
    fn load(&mut self, regs: &Regs, space: &VcpuSpace, memory: &MachineMemory) -> Result<(), &'static str> {
        let apply = self.to_apply;
        if self.may_close_port && self.port_closed != space.user_mode() {
            self.port_closed = space.user_mode();
            self.gate.close_port(memory, self.port_closed).map_err(|_| "the gate's TSS is not in memory")?;
        }
        let call = self.call.take();
        let ring = if apply || call.is_some() { 0 } else { 3 };
        let cr3 = space.root().maddr().0;
        let cr0 = cr0(space.task_switched());
        if space.allowed() != self.allowed {
            self.allow(space.allowed())?;
        }
        let cr4 = cr4(self.allowed.cr4, self.features);
        if let Some(fast) = &mut self.fast {
            let crossing = space.crossing().filter(|_| cr4 & cr4::FSGSBASE != 0);
            fast.arm(crossing, (space.root(), space.user_mode()), memory).map_err(|_| LOST)?;
        }
        let (fs, gs) = (canonical(regs.fs_base), canonical(regs.gs_base));
        let segments = gate_selectors(self.features.gdt, &regs.selectors, space.gdt(), memory);
        let shared = self.vcpu.sync_regs_mut();
        let sregs = &mut shared.sregs;
        let dirty = !is_in_ring(sregs, self.features.gdt, &regs.selectors, ring)
            || sregs.cr0 != cr0
            || sregs.cr4 != cr4
            || sregs.cr3 != cr3
            || sregs.fs.base != fs
            || sregs.gs.base != gs;
        if dirty {
            set_segments(sregs, self.features.gdt, &regs.selectors, ring);
            sregs.cr0 = cr0;
            sregs.cr4 = cr4;
            sregs.cr3 = cr3;
            sregs.fs.base = fs;
            sregs.gs.base = gs;
            sregs.tr.type_ = self.features.tss_type;
        }
        to_kvm(regs, &mut shared.regs);
        if ring == 0 {
            let rip = call.unwrap_or(self.gate.apply(self.others != Others::None));
            enter_gate(regs, segments, &mut shared.regs, rip, memory, &self.gate)
                .map_err(|_| "the gate's stack is not in memory")?;
        }
        if call.is_some() {
            let answer = match self.others {
                _ if !apply => Answer::Return,
                Others::None => Answer::Apply,
                Others::Follow | Others::ForThemselves => Answer::ApplyShared,
            };
            self.vcpu.get_kvm_run().__bindgen_anon_1.hypercall.ret = answer as u64;
        }
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        if dirty {
            self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        }
        Ok(())
    }

    /// Applies what is allowed: CR4 travels with the registers, XCR0 is set by a call of KVM.
    #[cold]
    fn allow(&mut self, allowed: Allowed) -> Result<(), &'static str> {
        self.allowed = allowed;
        let xcr0 = allowed.xcr0 & self.features.xcr0;
        // While CR4.OSXSAVE is clear, the value makes no difference and is left alone.
        if allowed.cr4 & cr4::OSXSAVE == 0 || xcr0 == self.xcr0 {
            return Ok(());
        }
        self.xcr0 = xcr0;
        if setup::set_xcr0(&self.vcpu, xcr0) { Ok(()) } else { Err("KVM refused a value of XCR0") }
    }

    /// Maps the guest's descriptors if they are others than at the last entry; which table of the gate's changed then.
    fn map_gdt(&self, space: &VcpuSpace, memory: &MachineMemory) -> Result<Option<Mfn>, &'static str> {
        if !self.features.gdt.is_guests() || !space.gdt_is_new() {
            return Ok(None);
        }
        let table = self.gate.map_gdt(memory, space.gdt());
        table.map(Some).map_err(|_| "the gate's page tables are not in memory")
    }

    /// Maps what the fast paths need, and nothing of it for a program; which tables changed then.
    fn show_state(
        &mut self,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Result<[Option<Mfn>; 2], &'static str> {
        let Some(fast) = &mut self.fast else { return Ok([None; 2]) };
        let crossing = space.crossing();
        let running = space.user_mode().then(|| space.root());
        let program = crossing.map(|crossing| crossing.user_root).or(running);
        fast.show(crossing, program, memory).map_err(|_| LOST)
    }

    /// Sees to it that no stale translation will be used: plans what the gate applies at the next entry.
    fn plan(
        &mut self,
        pending: &Pending<'_>,
        changed: [Option<Mfn>; 3],
        memory: &MachineMemory,
    ) -> Result<(), &'static str> {
        if !self.to_apply {
            self.planner.clear();
        }
        let plan = if pending.stale {
            Plan::Zap
        } else {
            let reused = pending.reused.iter().copied().chain(changed.into_iter().flatten());
            self.planner.plan(pending.writes.iter(), reused, tables::PHYSMAP_VA)
        };
        let list = match plan {
            Plan::Nothing => return Ok(()),
            Plan::Apply(list) => list,
            // What KVM caches is dropped here, what the TLB holds of nested paging by the gate.
            Plan::Zap => &[0, 0],
        };
        write_words(memory, self.gate.work(), list).map_err(|_| "the gate's work list is not in memory")?;
        if plan == Plan::Zap {
            self.zap()?;
        }
        self.to_apply = true;
        Ok(())
    }

    /// Has the gate apply its work list now, so that all virtual CPUs are current. A kick meanwhile is reported by the
    /// next entry.
    fn run_errand(&mut self, space: &VcpuSpace) -> Result<(), &'static str> {
        let gdt = self.features.gdt;
        let shared = self.vcpu.sync_regs_mut();
        set_segments(&mut shared.sregs, gdt, &Selectors::FLAT, 0);
        shared.sregs.cr3 = space.root().maddr().0;
        shared.sregs.tr.type_ = self.features.tss_type;
        shared.regs.rip = self.gate.errand();
        shared.regs.rsi = self.gate.va(tables::WORK_VA);
        shared.regs.rsp = self.gate.va(tables::STACK_TOP_VA);
        shared.regs.rflags = rflags::FIXED;
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        let end = self.gate.va(tables::TEXT_VA) + gate::errand_out_offset() + gate::OUT_LEN;
        loop {
            match self.run() {
                Stop::Gate if self.vcpu.sync_regs().regs.rip == end => break,
                Stop::Interrupted => self.kick_owed = true,
                Stop::Dead(why) => return Err(why),
                Stop::Gate | Stop::Call | Stop::Input | Stop::Halfway => {
                    return Err("an exception in the gate");
                }
            }
        }
        self.to_apply = false;
        Ok(())
    }

    /// Runs until the guest stops; the registers are then in the shared page.
    pub(super) fn run(&mut self) -> Stop {
        loop {
            let stop = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(gate::EXIT_PORT) => Stop::Gate,
                Ok(VcpuExit::IoIn(port, _)) if port == u16::from(gate::EXIT_PORT) => Stop::Input,
                Ok(VcpuExit::Hypercall(_)) => Stop::Call,
                Ok(VcpuExit::Intr) => Stop::Interrupted,
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Stop::Interrupted,
                Ok(VcpuExit::Shutdown) => Stop::Dead("triple fault in the gate"),
                Ok(VcpuExit::InternalError) => Stop::Dead("KVM could not go on (KVM_EXIT_INTERNAL_ERROR)"),
                Ok(VcpuExit::FailEntry(..)) => {
                    Stop::Dead("KVM could not enter the guest (KVM_EXIT_FAIL_ENTRY)")
                }
                Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => {
                    Stop::Dead("the guest's page tables led outside machine memory")
                }
                Ok(_) => Stop::Dead("KVM stopped for a reason that Paravane does not know"),
                Err(_) => Stop::Dead("KVM_RUN failed"),
            };
            self.clear_dirty();
            if !matches!(stop, Stop::Interrupted) {
                return stop;
            }
            self.vcpu.set_kvm_immediate_exit(0);
            self.kick.answered();
            if self.may_be_halfway() {
                return Stop::Halfway;
            }
            if !self.exit_is_coming() {
                return Stop::Interrupted;
            }
            self.kick_owed = true;
        }
    }

    /// Whether the guest was interrupted on its way out: an exception or a SYSCALL has happened and has not
    /// reached us. It must: what it has done to the registers cannot be taken back.
    pub(super) fn exit_is_coming(&mut self) -> bool {
        let halfway = self.may_be_halfway();
        let shared = self.vcpu.sync_regs();
        let rip = shared.regs.rip;
        // An exception that KVM is about to deliver would be delivered to whatever runs next.
        let exception = shared.events.exception;
        let queued = exception.injected != 0 || exception.pending != 0;
        let in_gate = shared.sregs.cs.dpl == 0;
        let in_vector_stub =
            in_gate && rip.wrapping_sub(self.gate.va(tables::TEXT_VA)) < 32 * gate::VECTOR_STRIDE;
        // What of the fast paths' gate is not taken back is on its way to the stub of #BP.
        queued || in_vector_stub || halfway && in_gate || self.gate.syscall().contains(&rip)
    }

    pub(super) fn clear_dirty(&mut self) {
        self.vcpu.get_kvm_run().kvm_dirty_regs = 0;
    }
}

/// The other virtual CPUs, as far as page tables go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// There are none.
    None,
    /// They are current as soon as this one has applied a change.
    Follow,
    /// Each applies every change.
    ForThemselves,
}

/// How a KVM_RUN ended.
pub(super) enum Stop {
    Gate,
    Call,
    Input,
    Interrupted,
    /// Interrupted, perhaps half-way through a fast path.
    Halfway,
    Dead(&'static str),
}

impl Cpu for KvmCpu {
    fn settle_here(&mut self) -> io::Result<()> {
        if self.kick.is_attached() { Ok(()) } else { self.kick.attach(self.vcpu.get_kvm_run()) }
    }

    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        memory: &MachineMemory,
    ) -> Result<(), &'static str> {
        let new_gdt = self.map_gdt(space, memory)?;
        let [state, program] = self.show_state(space, memory)?;
        self.plan(&space.pending(log), [new_gdt, state, program], memory)?;
        space.caught_up(log);
        if self.to_apply && self.others == Others::Follow { self.run_errand(space) } else { Ok(()) }
    }

    fn enter(&mut self, regs: &mut Regs, space: &VcpuSpace, memory: &MachineMemory) -> Exit {
        self.crossed = None;
        if std::mem::take(&mut self.kick_owed) {
            return Exit::Kick;
        }
        if canonical(regs.rip) != regs.rip {
            // What the fetch would do; some processors refuse to enter with such a RIP instead.
            const GENERAL_PROTECTION: u8 = 13;
            return Exit::Fault(Fault { vector: GENERAL_PROTECTION, error_code: 0, address: 0 });
        }
        if let Err(why) = self.load(regs, space, memory) {
            return Exit::Dead(why);
        }
        let exit = match self.run_to_a_stop(regs, space, memory) {
            Ok(stop) => self.exit_of(stop, regs, space, memory),
            Err(exit) => exit,
        };
        self.note_selectors(exit, regs, space);
        exit
    }

    fn crossed(&mut self) -> Option<Crossed> {
        self.crossed.take()
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn take_kick(&mut self) -> bool {
        let owed = std::mem::take(&mut self.kick_owed);
        let waits = self.vcpu.get_kvm_run().immediate_exit != 0;
        if waits {
            self.vcpu.set_kvm_immediate_exit(0);
            self.kick.answered();
        }
        owed || waits
    }

    fn save(&mut self) -> Result<VectorState, BadState> {
        state::save(&self.vcpu)
    }

    fn load(&mut self, state: &VectorState) -> Result<(), BadState> {
        state::load(&self.vcpu, self.features.xcr0, state)
    }

    fn debug(&mut self, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints> {
        state::set_breakpoints(&self.vcpu, breakpoints)
    }

    fn take_debug_status(&mut self) -> u64 {
        state::take_debug_status(&self.vcpu)
    }

    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        stats::read(&self.vcpu)
    }
}

impl Drop for KvmCpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
