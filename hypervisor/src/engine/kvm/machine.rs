//! A virtual machine of KVM, and how a way into the host is chosen for it.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::cpu::KvmCpu;
use super::error::KvmError;
use super::fast::FastPaths;
use super::gdt::Gdt;
use super::host::{self, HostKind};
use super::kick::KvmKick;
use super::setup;
use super::tables::{self, GateTables};
use super::transport::{self, Transport};
use super::{context, stats};
use crate::engine::{Cpu, EngineInfo, Machine, NoCpu};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::MachineMemory;

/// A virtual machine.
pub struct KvmMachine {
    /// Made with the machine, to ask it for the clock; goes first.
    boot: Option<KvmCpu>,
    /// The other virtual CPUs, in order from number 1.
    others: Vec<Option<KvmCpu>>,
    vm: Arc<VmFd>,
    info: EngineInfo,
    transport: Transport,
    gate: GateTables,
    spare_slot: kvm_userspace_memory_region,
    /// Whether there are fast paths.
    fast: bool,
}

/// Ways into the host, and around it.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    /// The one that is asked for; `None`: the best that works (see `transport`).
    pub transport: Option<Transport>,
    /// Whether there may be fast paths: there are where they can be had.
    pub fast: bool,
}

impl KvmMachine {
    /// Sets up a VM over `memory` with vCPUs, of which the first runs on the calling thread, and a way into the host:
    /// the one that is asked for, or else the best that works (see `transport`).
    pub fn new(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        transport: Option<Transport>,
        vcpus: u32,
    ) -> Result<Self, KvmError> {
        Self::with_ways(memory, layout, Ways { transport, fast: true }, vcpus)
    }

    /// The same, with or without fast paths.
    pub fn with_ways(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        ways: Ways,
        vcpus: u32,
    ) -> Result<Self, KvmError> {
        // The ways are one page, which finds the state of one vCPU.
        let fast = ways.fast && vcpus == 1;
        let mut machine = Self::with_boot_cpu(memory, layout, Ways { fast, ..ways })?;
        machine.add_others((memory, layout), vcpus)?;
        Ok(machine)
    }

    fn with_boot_cpu(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        Ways { transport, fast }: Ways,
    ) -> Result<Self, KvmError> {
        if let Some(transport) = transport {
            return Self::with_transport(memory, layout, (transport, fast));
        }
        let mut machine = Self::with_transport(memory, layout, (Transport::Pio, fast))?;
        if host::usable_kind() == HostKind::Software || machine.port_is_open(memory) {
            return Ok(machine);
        }
        // Before the next is made, because of what its thread shares with it.
        drop(machine);
        Self::with_transport(memory, layout, (Transport::Vmcall, fast)).map_err(|error| match error {
            KvmError::Vmcall(_) => KvmError::NoWay,
            other => other,
        })
    }

    fn with_transport(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        (transport, fast): (Transport, bool),
    ) -> Result<Self, KvmError> {
        if !tables::can_map(layout) {
            return Err(KvmError::TooLarge { largest_gib: tables::largest_guest_gib(layout) });
        }
        let vm = Arc::new(setup::machine(memory)?);
        transport::prepare(transport, &vm)?;
        let gdt = Gdt::on(host::usable_kind());
        let gate = GateTables::install(memory, layout, transport, gdt)?;
        let tss_type = context::tss_type();
        let raises = host::usable_kind() == HostKind::Hardware;
        let fast = fast && transport == Transport::Pio;
        let fast = fast.then(|| FastPaths::install(memory, &gate, (gdt, raises))).transpose()?;
        let syscall_va = fast.as_ref().map(FastPaths::syscall_target);
        let (mut vcpu, features) = setup::processor(&vm, 0, (&gate, syscall_va), (tss_type, gdt))?;
        let (tsc_khz, tsc_offset) = setup::clock(&vcpu)?;
        let kick = KvmKick::new(vcpu.get_kvm_run()).map_err(KvmError::Timer)?;
        let spare_slot = kvm_userspace_memory_region {
            slot: 1,
            flags: 0,
            guest_phys_addr: memory.len().next_multiple_of(1 << 30),
            memory_size: crate::machine::memory::PAGE_SIZE,
            userspace_addr: memory.host_address(),
        };
        let info = EngineInfo {
            name: "kvm",
            transport: transport.name(),
            detail: host::describe().to_owned(),
            call_length: transport::CALL_LENGTH,
            m2p_va: tables::M2P_VA,
            lower_half_start: 0,
            lower_half_end: 1 << 47,
            upper_half: true,
            native_selectors: gdt.is_guests(),
            tsc_khz,
            tsc_offset,
            hardware: None,
            coherence: host::coherence(),
        };
        let has_fast = fast.is_some();
        let mut boot = KvmCpu::new(vcpu, kick, (vm.clone(), spare_slot), gate.clone(), features, transport);
        if let Some(fast) = fast {
            boot.take_fast_paths(fast);
        }
        Ok(Self {
            vm,
            info,
            transport,
            gate,
            spare_slot,
            fast: has_fast,
            boot: Some(boot),
            others: Vec::new(),
        })
    }

    /// Adds the virtual CPUs past the first. Each belongs to a thread once that settles with it.
    fn add_others(
        &mut self,
        (memory, layout): (&MachineMemory, &HypervisorLayout),
        vcpus: u32,
    ) -> Result<(), KvmError> {
        let (gdt, tss_type) = (Gdt::on(host::usable_kind()), context::tss_type());
        for id in 1..vcpus {
            let gate = self.gate.another((memory, layout), id, self.transport, gdt)?;
            let (vcpu, features) = setup::processor(&self.vm, id, (&gate, None), (tss_type, gdt))?;
            let (_, tsc_offset) = setup::clock(&vcpu)?;
            if tsc_offset != self.info.tsc_offset {
                return Err(KvmError::Clocks);
            }
            let zap = (self.vm.clone(), self.spare_slot);
            let mut cpu = KvmCpu::new(vcpu, KvmKick::default(), zap, gate, features, self.transport);
            cpu.shares_tables(self.info.coherence);
            self.others.push(Some(cpu));
        }
        if let Some(boot) = self.boot.as_mut().filter(|_| vcpus > 1) {
            boot.shares_tables(self.info.coherence);
        }
        Ok(())
    }
}

impl KvmMachine {
    /// Whether the exit port can be reached from CPL 3. Before the boot virtual CPU is given away.
    pub(super) fn port_is_open(&mut self, memory: &MachineMemory) -> bool {
        self.boot.as_mut().is_some_and(|cpu| cpu.port_is_open(memory))
    }

    #[cfg(test)]
    pub(super) fn gate(&self) -> &GateTables {
        &self.gate
    }
}

impl Machine for KvmMachine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn hypercall_stub(&self, number: u32) -> [u8; 32] {
        if self.fast && u64::from(number) == paravane_abi::hypercall::IRET {
            return transport::fast_iret_stub(FastPaths::iret_target());
        }
        transport::hypercall_stub(self.transport, number)
    }

    /// Without the fast `iret`: a return takes an exit, which a guest cannot tell, and calls take none.
    fn restored_stub(&self, number: u32) -> [u8; 32] {
        transport::hypercall_stub(self.transport, number)
    }

    fn reserved_l4_entries(&self) -> [u64; 16] {
        self.gate.reserved_l4_entries()
    }

    fn cpu(&mut self, id: u32) -> Result<Box<dyn Cpu>, NoCpu> {
        let vcpus = u32::try_from(self.others.len()).map_or(u32::MAX, |others| others + 1);
        let number = usize::try_from(id).unwrap_or(usize::MAX);
        let cpu = match number.checked_sub(1) {
            None => self.boot.take(),
            Some(other) => {
                let absent = NoCpu::Absent { engine: self.info.name, id, vcpus };
                self.others.get_mut(other).ok_or(absent)?.take()
            }
        };
        cpu.map(|cpu| Box::new(cpu) as Box<dyn Cpu>).ok_or(NoCpu::Taken(id))
    }

    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        stats::read(&*self.vm)
    }
}
