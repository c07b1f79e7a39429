//! Calls that are not for a guest: for tools, for privileged domains, for hardware-virtualized ones, or gone.
//!
//! Each is answered as Xen 4.17 answers a domU whose arguments are otherwise in order. Nothing is read.

use paravane_abi::domid::{DOMID_IO, DOMID_SELF, DOMID_XEN};
use paravane_abi::errno::Errno;
use paravane_abi::hypercall as nr;

use super::{Call, HypercallResult, low32};

/// Parameters of hardware-virtualized domains: HVMOP_set_param and HVMOP_get_param (public/hvm/hvm_op.h).
const HVMOP_PARAMETERS: std::ops::RangeInclusive<u32> = 0..=1;
/// HVMOP_flush_tlbs.
const HVMOP_FLUSH_TLBS: u32 = 5;

/// The error of a call that is never performed; ENOSYS for one that does not exist.
pub fn errno(number: u64) -> Errno {
    match number {
        // Tools' and the first domain's; the last two are machine checks, and a long domctl's continuation.
        nr::PLATFORM_OP
        | nr::SYSCTL
        | nr::DOMCTL
        | nr::KEXEC_OP
        | nr::DM_OP
        | nr::HYPFS_OP
        | nr::ARCH_0
        | nr::ARCH_1 => Errno::EPERM,
        // Virtual performance counters are not offered.
        nr::XENPMU_OP => Errno::EOPNOTSUPP,
        _ => Errno::ENOSYS,
    }
}

/// hvm_op(command, argument): this is not a hardware-virtualized domain.
pub fn hvm_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, ..] = call.args;
    Err(match command.low32() {
        command if command == HVMOP_FLUSH_TLBS || HVMOP_PARAMETERS.contains(&command) => Errno::EINVAL,
        _ => Errno::ENOSYS,
    })
}

/// update_va_mapping_otherdomain(va, entry, flags, domain): its own domain is the only one that it may name,
/// and only as DOMID_SELF.
pub fn update_va_mapping_otherdomain(call: &mut Call<'_>) -> HypercallResult {
    let [va, entry, flags, domain, ..] = call.raw();
    match u16::try_from(low32(domain)) {
        Ok(DOMID_SELF) => super::mmu::update_va_mapping(&mut call.with([va, entry, flags, domain, 0, 0])),
        Ok(0 | DOMID_IO | DOMID_XEN) => Err(Errno::EPERM),
        _ => Err(Errno::ESRCH),
    }
}

#[cfg(test)]
mod tests {
    use crate::pv::hypercall::refused::*;
    use crate::testing::pv::{FREE, NOWHERE, RW, TestDomain, va};

    #[test]
    fn privileged_calls_are_refused_whatever_they_say() {
        let mut t = TestDomain::new();
        let refused = [
            (nr::PLATFORM_OP, Errno::EPERM),
            (nr::SYSCTL, Errno::EPERM),
            (nr::DOMCTL, Errno::EPERM),
            (nr::KEXEC_OP, Errno::EPERM),
            (nr::DM_OP, Errno::EPERM),
            (nr::HYPFS_OP, Errno::EPERM),
            (nr::ARCH_0, Errno::EPERM),
            (nr::XSM_OP, Errno::ENOSYS),
            (nr::XENOPROF_OP, Errno::ENOSYS),
            (nr::TMEM_OP, Errno::ENOSYS),
            (nr::ARGO_OP, Errno::ENOSYS),
            (nr::XENPMU_OP, Errno::EOPNOTSUPP),
            (nr::ARCH_1, Errno::EPERM),
            (nr::ARCH_2, Errno::ENOSYS),
            (nr::PARAVANE_VIRTIO_OP, Errno::ENOSYS),
            (11, Errno::ENOSYS),
            (63, Errno::ENOSYS),
            (u64::MAX, Errno::ENOSYS),
        ];
        for (number, errno) in refused {
            assert_eq!(t.call(number, [NOWHERE, NOWHERE]), Err(errno), "{number}");
        }
        for (command, errno) in
            [(0, Errno::EINVAL), (1, Errno::EINVAL), (5, Errno::EINVAL), (6, Errno::ENOSYS)]
        {
            assert_eq!(t.call(nr::HVM_OP, [command, NOWHERE]), Err(errno));
        }
    }

    #[test]
    fn only_self_can_be_named_as_another_domain() {
        let mut t = TestDomain::new();
        let entry = t.entry(FREE, RW);
        let set = |t: &mut TestDomain, domain: u16| {
            t.call(nr::UPDATE_VA_MAPPING_OTHERDOMAIN, [va(FREE + 1), entry, 0, domain.into()])
        };
        assert_eq!(set(&mut t, DOMID_SELF), Ok(0));
        for (domain, errno) in
            [(1, Errno::ESRCH), (9, Errno::ESRCH), (0, Errno::EPERM), (DOMID_IO, Errno::EPERM)]
        {
            assert_eq!(set(&mut t, domain), Err(errno));
        }
    }
}
