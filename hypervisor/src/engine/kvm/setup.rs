//! Setting up a VM and its vCPU: everything that is done once, and what can go wrong with it.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_userspace_memory_region, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd, VmFd};

use super::context::{Features, initial_sregs};
use super::error::{KvmError, refused};
use super::gdt::Gdt;
use super::tables::GateTables;
use super::{cpuid, tsc};
use crate::machine::memory::MachineMemory;
use crate::x86::{msr, rflags};

pub fn no_table<E: std::fmt::Debug>(step: &'static str) -> impl Fn(E) -> KvmError {
    move |e| KvmError::Refused { step, error: std::io::Error::other(format!("{e:?}")) }
}

/// A new VM whose memory is machine memory.
pub fn machine(memory: &MachineMemory) -> Result<VmFd, KvmError> {
    let vm = open()?.create_vm().map_err(refused("KVM_CREATE_VM"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.len(),
        userspace_addr: memory.host_address(),
    };
    // SAFETY: the region is machine memory, which the engine's owner keeps mapped as long as the engine.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
    Ok(vm)
}

/// The vCPU number `id`, in long mode, whose SYSCALL goes to `syscall_va` or else to its `gate`; and what its processor
/// has. All of that is allowed.
pub fn processor(
    vm: &VmFd,
    id: u32,
    (gate, syscall_va): (&GateTables, Option<u64>),
    (tss_type, gdt): (u8, Gdt),
) -> Result<(VcpuFd, Features), KvmError> {
    let mut vcpu = vm.create_vcpu(id.into()).map_err(refused("KVM_CREATE_VCPU"))?;
    let (entries, xcr0) = cpuid::table();
    let table = CpuId::from_entries(&entries).map_err(no_table("CPUID table"))?;
    vcpu.set_cpuid2(&table).map_err(refused("KVM_SET_CPUID2"))?;
    let plain = gate.syscall().start;
    set_msrs(&vcpu, (syscall_va.unwrap_or(plain), plain), gdt)?;
    let xcr0 = if xcr0 != 0 && set_xcr0(&vcpu, xcr0) { xcr0 } else { 0 };
    for reg in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
        vcpu.set_sync_valid_reg(reg);
    }
    let features = Features { xcr0, fsgsbase: cpuid::has_fsgsbase(&entries), tss_type, gdt };
    vcpu.sync_regs_mut().sregs = initial_sregs(features, gate);
    vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
    Ok((vcpu, features))
}

/// Rate of the guest's time-stamp counter in kHz, and how far it is ahead of the host's.
pub fn clock(vcpu: &VcpuFd) -> Result<(u64, u64), KvmError> {
    let khz = vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))?;
    Ok((khz.into(), tsc::align(vcpu)))
}

pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Absent,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        errno => KvmError::Open(std::io::Error::from_raw_os_error(errno)),
    })?;
    for (cap, name) in [(Cap::SyncRegs, "KVM_CAP_SYNC_REGS"), (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT")]
    {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Missing(name));
        }
    }
    Ok(kvm)
}

/// The flags that SYSCALL clears on its way into the gate.
const CLEARED_BY_SYSCALL: u64 = rflags::IF | rflags::TF | rflags::DF | rflags::AC | rflags::NT;

fn set_msrs(vcpu: &VcpuFd, (syscall_va, compatibility_va): (u64, u64), gdt: Gdt) -> Result<(), KvmError> {
    // SYSCALL takes CS from STAR[47:32] and SS 8 above it (SDM vol. 2, SYSCALL).
    let star = u64::from(gdt.user32_cs()) << 48 | u64::from(gdt.kernel_cs()) << 32;
    // CSTAR as well: a guest may jump to compatibility mode, where AMD's SYSCALL goes to CSTAR at CPL 0, and the
    // linear address 0 that it would find there otherwise is the guest's.
    let entries = [
        (msr::STAR, star),
        (msr::LSTAR, syscall_va),
        (msr::CSTAR, compatibility_va),
        (msr::SYSCALL_MASK, CLEARED_BY_SYSCALL),
    ]
    .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(no_table("MSR table"))?;
    match vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))? {
        4 => Ok(()),
        _ => Err(KvmError::Missing("the SYSCALL registers (STAR, LSTAR, CSTAR, SFMASK)")),
    }
}

/// Lets the guest use these state components, which the table announces; false if KVM will not have it.
pub fn set_xcr0(vcpu: &VcpuFd, xcr0: u64) -> bool {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: xcr0 };
    vcpu.set_xcrs(&xcrs).is_ok()
}
