//! Hypercalls that an unprivileged guest, or any PV guest, may not make.

use paravane_guest::abi::Errno;
use paravane_guest::abi::domid::{DOMID_IO, DOMID_SELF};
use paravane_guest::abi::hypercall::*;

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{does, raw};

/// `HVMOP_*` (public/hvm/hvm_op.h).
const SET_PARAM: u32 = 0;
const GET_PARAM: u32 = 1;
const FLUSH_TLBS: u64 = 5;

/// `xen_hvm_param`: a domain, a number, a value.
#[repr(C)]
#[derive(Clone, Copy)]
struct HvmParam {
    domid: u16,
    index: u32,
    value: u64,
}

pub(super) fn run(bench: &mut Bench) {
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    let calls = [
        ("platform-op", PLATFORM_OP, Errno::EPERM),
        ("sysctl", SYSCTL, Errno::EPERM),
        ("domctl", DOMCTL, Errno::EPERM),
        ("dm-op", DM_OP, Errno::EPERM),
        ("hypfs-op", HYPFS_OP, Errno::EPERM),
        ("machine-checks", ARCH_0, Errno::EPERM),
        ("long-domctl", ARCH_1, Errno::EPERM),
        ("xsm-op", XSM_OP, Errno::ENOSYS),
        ("xenoprof-op", XENOPROF_OP, Errno::ENOSYS),
        ("argo-op", ARGO_OP, Errno::ENOSYS),
        ("xenpmu-op", XENPMU_OP, Errno::EOPNOTSUPP),
    ];
    for (name, number, errno) in calls {
        let made = raw(number, [NOWHERE, NOWHERE, NOWHERE]);
        // Xen may check an argument first, and gives its first domain more rights.
        if paravane {
            suite.equal(name, made, Err(errno));
        } else {
            suite.refused(name, made);
        }
    }
    for (name, number) in [
        ("number-11", 11),
        ("tmem-op", TMEM_OP),
        ("number-43", 43),
        ("number-56", 56),
        ("number-max", u64::MAX),
    ] {
        suite.equal(name, raw(number, [NOWHERE, NOWHERE]), Err(Errno::ENOSYS));
    }
    if !bench.privileged {
        // A privileged domain may unload an image that is not loaded.
        bench.suite.refused("kexec-op", raw(KEXEC_OP, [NOWHERE, NOWHERE]));
    }
    hvm(bench);
    other_domains(bench);
}

fn hvm(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let param = HvmParam { domid: DOMID_SELF, index: 0, value: 0 };
    suite.equal("hvm-set-param", does(HVM_OP, SET_PARAM, param), Err(Errno::EINVAL));
    suite.equal("hvm-get-param", does(HVM_OP, GET_PARAM, param), Err(Errno::EINVAL));
    suite.equal("hvm-flush-tlbs", raw(HVM_OP, [FLUSH_TLBS, 0]), Err(Errno::EINVAL));
    suite.equal("hvm-unknown", raw(HVM_OP, [99, NOWHERE]), Err(Errno::ENOSYS));
}

fn other_domains(bench: &mut Bench) {
    // Nothing is mapped there, before and after.
    let set = |domain: u16| raw(UPDATE_VA_MAPPING_OTHERDOMAIN, [NOWHERE, 0, 0, domain.into()]);
    let suite = &mut bench.suite;
    suite.equal("mapping-of-no-domain", set(9), Err(Errno::ESRCH));
    if !bench.privileged {
        suite.equal("mapping-of-domain-0", set(0), Err(Errno::EPERM));
        suite.equal("mapping-of-devices", set(DOMID_IO), Err(Errno::EPERM));
    }
    suite.refused("mapping-without-a-table", set(DOMID_SELF));
}
