//! A virtual machine whose kernel runs at CPL 0, as hardware virtualization allows it.
//!
//! Guest-physical memory is the guest's part of machine memory, from 0 on: its page tables are walked by the processor
//! (nested paging) or shadowed by KVM. There is no gate and nothing of ours in the guest. What leaves the guest and
//! reaches us is what no hardware can do for it: accesses to ports and to addresses without memory, HLT, and the moment
//! at which it takes an interrupt that waits.
//!
//! With [`Irqchip::Kernel`] KVM has the two 8259s, the 8254 and HLT; without it, whoever runs the machine has them.
//!
//! What may not be done here: knowing a device.

mod cpu;

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};

use self::cpu::Ring0Cpu;
use super::error::{KvmError, refused};
use super::host::{self, HostKind};
use super::kick::KvmKick;
use super::{context, cpuid, setup, stats};
use crate::engine::{Cpu, EngineInfo, Irqchip, Machine, NoCpu};
use crate::machine::memory::{MachineMemory, PAGE_SIZE};
use crate::x86::control::efer;
use crate::x86::virtualization::{Hardware, Translation};

/// Where Linux wants three pages for real mode on processors that need help for it, as far as the guest has no memory
/// there (KVM API documentation, 4.54; the address is QEMU's and everybody's).
const REAL_MODE_TSS: u64 = 0xfffb_d000;

/// Whether kernels can run at CPL 0 here; if not, why.
///
/// # Errors
/// What is missing, for a sentence that says so.
pub fn available() -> Result<(), String> {
    match host::host_kind() {
        HostKind::Hardware => Ok(()),
        HostKind::Software => Err(KvmError::Ring0.to_string()),
        HostKind::Absent => {
            Err("it needs /dev/kvm with hardware support (VMX or SVM), and this machine has \
                                 no /dev/kvm that you may open"
                .to_owned())
        }
    }
}

/// The machine, with one virtual CPU.
pub struct Ring0Machine {
    /// Made with the machine; goes first.
    boot: Option<Ring0Cpu>,
    vm: Arc<VmFd>,
    info: EngineInfo,
}

impl Ring0Machine {
    /// Sets up a machine over the guest's part of `memory`, whose virtual CPU runs on the calling thread.
    ///
    /// # Errors
    /// When KVM cannot be used, or not for that.
    pub fn new(memory: &MachineMemory, irqchip: Irqchip) -> Result<Self, KvmError> {
        let vm = setup::open()?.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        if host::usable_kind() == HostKind::Software {
            return Err(KvmError::Ring0);
        }
        let region = guest_memory(memory);
        // SAFETY: the region lies within machine memory, which the engine's owner keeps mapped as long as the engine.
        unsafe { vm.set_user_memory_region(region) }.map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        if region.memory_size <= REAL_MODE_TSS {
            // Processors that need no such pages have no such call, or one without effect.
            let _ = vm.set_tss_address(REAL_MODE_TSS as usize);
        }
        if irqchip == Irqchip::Kernel {
            vm.create_irq_chip().map_err(refused("KVM_CREATE_IRQCHIP"))?;
            let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.create_pit2(config).map_err(refused("KVM_CREATE_PIT2"))?;
        }
        let mut vcpu = processor(&vm)?;
        let (tsc_khz, tsc_offset) = setup::clock(&vcpu)?;
        let kick = KvmKick::new(vcpu.get_kvm_run()).map_err(KvmError::Timer)?;
        let hardware = host::hardware();
        let info = EngineInfo {
            name: "kvm",
            transport: "none",
            detail: detail(hardware),
            lower_half_end: 1 << 47,
            upper_half: true,
            native_selectors: true,
            tsc_khz,
            tsc_offset,
            hardware,
            ..EngineInfo::default()
        };
        let vm = Arc::new(vm);
        Ok(Self { boot: Some(Ring0Cpu::new(vcpu, kick, vm.clone())), vm, info })
    }
}

/// The line about the host's side.
fn detail(hardware: Option<Hardware>) -> String {
    let paging = hardware.and_then(|by| Some((by.extension, by.translation?)));
    let paging = match paging {
        Some((extension, Translation::Nested)) => format!(", nested paging ({})", extension.nested_table()),
        Some((_, Translation::Shadow)) => ", shadow paging".to_owned(),
        None => String::new(),
    };
    format!("{}{paging}, kernel at CPL 0", host::describe())
}

/// The slot that maps guest-physical 0 to the guest's first frame.
fn guest_memory(memory: &MachineMemory) -> kvm_userspace_memory_region {
    let ours = memory.guest_base().maddr().0;
    kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.guest_frames() * PAGE_SIZE,
        userspace_addr: memory.host_address() + ours,
    }
}

fn processor(vm: &VmFd) -> Result<VcpuFd, KvmError> {
    let mut vcpu = vm.create_vcpu(0).map_err(refused("KVM_CREATE_VCPU"))?;
    let (entries, _) = cpuid::table();
    let table = CpuId::from_entries(&entries).map_err(setup::no_table("CPUID table"))?;
    vcpu.set_cpuid2(&table).map_err(refused("KVM_SET_CPUID2"))?;
    vcpu.set_sync_valid_reg(SyncReg::Register);
    Ok(vcpu)
}

/// Where the boot protocol has the processor: 64-bit mode with paging at CPL 0, flat segments, and no descriptor tables
/// yet (docs/bare-boot.md).
fn boot_sregs(reset: kvm_sregs, cr3: u64) -> kvm_sregs {
    let data = context::segment(0x10, context::DATA, 0, false);
    let no_table = |table: kvm_bindings::kvm_dtable| kvm_bindings::kvm_dtable { base: 0, limit: 0, ..table };
    kvm_sregs {
        cs: context::segment(8, context::CODE, 0, true),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: kvm_segment { type_: context::BUSY_TSS, present: 1, ..reset.tr },
        gdt: no_table(reset.gdt),
        idt: no_table(reset.idt),
        cr0: context::CR0,
        cr3,
        cr4: context::CR4,
        efer: efer::LME | efer::LMA | efer::NXE,
        ..reset
    }
}

impl Machine for Ring0Machine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// A kernel at CPL 0 of its own machine makes no hypercalls: INT3.
    fn hypercall_stub(&self, _: u32) -> [u8; 32] {
        [0xcc; 32]
    }

    fn reserved_l4_entries(&self) -> [u64; 16] {
        [0; 16]
    }

    fn cpu(&mut self, id: u32) -> Result<Box<dyn Cpu>, NoCpu> {
        if id != 0 {
            return Err(NoCpu::Absent { engine: self.info.name, id, vcpus: 1 });
        }
        self.boot.take().map(|cpu| Box::new(cpu) as Box<dyn Cpu>).ok_or(NoCpu::Taken(id))
    }

    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        stats::read(&*self.vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::Backing;

    #[test]
    fn guest_physical_zero_is_the_guests_first_frame() {
        let memory = MachineMemory::new(7, 16, Backing::Anonymous).unwrap();
        let region = guest_memory(&memory);
        assert_eq!((region.guest_phys_addr, region.memory_size), (0, 16 * PAGE_SIZE));
        assert_eq!(region.userspace_addr, memory.host_address() + 7 * PAGE_SIZE);
    }

    #[test]
    fn the_first_state_is_the_boot_protocols() {
        let sregs = boot_sregs(kvm_sregs::default(), 0x7000);
        assert_eq!((sregs.cs.dpl, sregs.cs.l, sregs.ss.dpl, sregs.cr3), (0, 1, 0, 0x7000));
        assert_eq!((sregs.gdt.limit, sregs.idt.limit), (0, 0));
        // What an interpreted or trapped kernel starts with: `exec::virtual_cpu::VirtualCpu::new`.
        let cpu = crate::exec::virtual_cpu::VirtualCpu::new(0x7000);
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (cpu.cr0, cpu.cr4, cpu.efer));
    }
}
