//! The CPUID table of a KVM guest, made by hand.
//!
//! `KVM_GET_SUPPORTED_CPUID` alone costs more than all other set-up calls together on some hosts. What a guest
//! may know of the processor is decided in [`crate::engine::guest_cpuid`]; this puts it into KVM's form.

use std::arch::x86_64::CpuidResult;

use kvm_bindings::kvm_cpuid_entry2;

use crate::engine::guest_cpuid::{MAX_BASIC, MAX_EXTENDED, XCR0_MASK, filter};
use crate::engine::host_cpuid::query;

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: ECX selects among the leaf's sub-leaves.
const BY_INDEX: u32 = 1;

fn entry(function: u32, index: u32, flags: u32, r: CpuidResult) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
        ..Default::default()
    }
}

/// The table for a vCPU, and the XCR0 that goes with it.
///
/// Executes about ten CPUID instructions, each of which costs microseconds when this host is itself a guest:
/// leaves that nobody needs are not read.
pub fn table() -> (Vec<kvm_cpuid_entry2>, u64) {
    let host = |function, index| filter(function, index, query(function, index));
    let mut entries = Vec::with_capacity(16);

    let basic = query(0, 0);
    entries.push(entry(0, 0, 0, filter(0, 0, basic)));

    let features = host(1, 0);
    let xsave = features.ecx & 1 << 26 != 0;
    entries.push(entry(1, 0, 0, features));

    if basic.eax >= 7 {
        entries.push(entry(7, 0, BY_INDEX, host(7, 0)));
    }
    let mut xcr0 = 1;
    if xsave && basic.eax >= MAX_BASIC {
        let r = host(MAX_BASIC, 0);
        xcr0 = u64::from(r.eax) & XCR0_MASK;
        entries.push(entry(MAX_BASIC, 0, BY_INDEX, r));
        for component in [2, 5, 6, 7] {
            if xcr0 & 1 << component != 0 {
                entries.push(entry(MAX_BASIC, component, BY_INDEX, host(MAX_BASIC, component)));
            }
        }
    }

    entries.push(entry(0x8000_0000, 0, 0, filter(0x8000_0000, 0, basic)));
    for function in [0x8000_0001, MAX_EXTENDED] {
        entries.push(entry(function, 0, 0, host(function, 0)));
    }
    (entries, xcr0)
}

/// Whether the table announces RDFSBASE and its kin, and so allows CR4.FSGSBASE.
pub fn has_fsgsbase(table: &[kvm_cpuid_entry2]) -> bool {
    table.iter().any(|e| e.function == 7 && e.index == 0 && e.ebx & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_mode_and_sse2_are_there_and_privileged_features_are_not() {
        let (table, xcr0) = table();
        let leaf = |n| *table.iter().find(|e| e.function == n).unwrap();
        assert_ne!(leaf(1).edx & 1 << 26, 0, "SSE2");
        assert_eq!(leaf(1).edx & 1 << 9, 0, "no APIC");
        assert_eq!(leaf(1).ecx & (1 << 5 | 1 << 21), 0, "no VMX, no x2APIC");
        assert_ne!(leaf(0x8000_0001).edx & 1 << 29, 0, "long mode");
        assert!(leaf(0x8000_0008).eax & 0xff >= 36, "physical address bits");
        assert_eq!(xcr0 & 1, 1);
    }
}
