//! The guest's time-stamp counter, made to read what the host's reads.
//!
//! Hardware KVM starts a new vCPU's counter near zero. The guest gets time as a function of its counter
//! (`vcpu_time_info`), so the difference must be known exactly: a reading that is off by the time that an
//! ioctl takes would put every timer off by as much.

use std::arch::x86_64::_rdtsc;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::host::{self, HostKind};
use crate::x86::msr;

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;

/// Makes the guest's counter the host's where that can be done; says by how much the guest's is ahead (wrapping).
pub fn align(vcpu: &VcpuFd) -> u64 {
    // Where ring 3 runs natively RDTSC reads the host's counter, whatever KVM assumes.
    if host::usable_kind() == HostKind::Software || set_offset(vcpu, 0) {
        return 0;
    }
    measured_offset(vcpu)
}

/// Sets the offset by the vCPU's attribute (KVM API documentation, "KVM_VCPU_TSC_CTRL"; Linux 5.16).
fn set_offset(vcpu: &VcpuFd, offset: u64) -> bool {
    let attr = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the request reads the attribute and, through it, the eight bytes of `offset`; both are live.
    unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attr) == 0 }
}

/// Guest's counter minus the host's, of a few readings the one taken in the shortest time.
fn measured_offset(vcpu: &VcpuFd) -> u64 {
    // SAFETY: RDTSC has no precondition; Linux leaves it to programs.
    let host = || unsafe { _rdtsc() };
    let read = |_| {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: msr::TSC, ..Default::default() }]).ok()?;
        let before = host();
        let got = vcpu.get_msrs(&mut msrs);
        let width = host().wrapping_sub(before);
        let guest = msrs.as_slice().first()?.data;
        matches!(got, Ok(1)).then(|| (width, guest.wrapping_sub(before.wrapping_add(width / 2))))
    };
    (0..5).filter_map(read).min_by_key(|(width, _)| *width).map_or(0, |(_, offset)| offset)
}
