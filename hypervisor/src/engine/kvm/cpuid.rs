//! The CPUID table of a KVM guest, made by hand.
//!
//! `KVM_GET_SUPPORTED_CPUID` alone costs more than all other set-up calls together on some hosts. What a guest
//! may know of the processor is decided in [`crate::x86::guest_cpuid`]; this puts it into KVM's form.

use std::arch::x86_64::CpuidResult;

use kvm_bindings::kvm_cpuid_entry2;

use crate::host::host_cpuid::{query, xcr0_by};
use crate::x86::guest_cpuid::{COMPONENTS, MAX_BASIC, MAX_EXTENDED, area_size, available, filter};

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

/// The table for a vCPU, and the state components that it announces; 0 if it has no XSAVE.
///
/// What depends on CR4 and XCR0 (OSXSAVE, the sizes of an XSAVE area in use) KVM fills in. Executes about twelve
/// CPUID instructions, each of which costs microseconds when this host is itself a guest: leaves that nobody needs
/// are not read.
pub fn table() -> (Vec<kvm_cpuid_entry2>, u64) {
    let features = query(1, 0);
    let state = available(xcr0_by(features));
    let host = |function, index| filter(function, index, query(function, index), state);
    let mut entries = Vec::with_capacity(16);

    let basic = query(0, 0);
    entries.push(entry(0, 0, 0, filter(0, 0, basic, state)));

    entries.push(entry(1, 0, 0, filter(1, 0, features, state)));

    if basic.eax >= 7 {
        let extended = host(7, 0);
        entries.push(entry(7, 0, BY_INDEX, extended));
        entries.extend((1..=extended.eax).map(|index| entry(7, index, BY_INDEX, host(7, index))));
    }
    if state != 0 {
        entries.extend(state_leaves(state, host));
    }

    entries.push(entry(0x8000_0000, 0, 0, filter(0x8000_0000, 0, basic, state)));
    for function in [0x8000_0001, MAX_EXTENDED] {
        entries.push(entry(function, 0, 0, host(function, 0)));
    }
    (entries, state)
}

/// Leaf 0xd.
fn state_leaves(state: u64, host: impl Fn(u32, u32) -> CpuidResult) -> Vec<kvm_cpuid_entry2> {
    let announced = COMPONENTS.into_iter().filter(|component| state & 1 << component != 0);
    let components: Vec<_> = announced.map(|component| (component, host(MAX_BASIC, component))).collect();
    let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    let leaf = |component| components.iter().find(|(c, _)| *c == component).map_or(none, |(_, leaf)| *leaf);
    let largest = area_size(state, false, leaf);
    let first = CpuidResult { ebx: largest, ecx: largest, ..filter(MAX_BASIC, 0, none, state) };
    let heads = [(0, first), (1, host(MAX_BASIC, 1))];
    heads
        .into_iter()
        .chain(components.iter().copied())
        .map(|(n, r)| entry(MAX_BASIC, n, BY_INDEX, r))
        .collect()
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
        assert_eq!(xcr0, available(crate::host::host_cpuid::xcr0()));
    }
}
