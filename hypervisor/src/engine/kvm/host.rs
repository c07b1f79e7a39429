//! What kind of KVM this machine has. Looks only: nothing is set up here.

use std::path::Path;

/// What kind of KVM a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// None that this user may open.
    Absent,
    /// Without hardware support: exits are dear.
    Software,
    /// With VMX or SVM, or of a kind that is not known to be software.
    Hardware,
}

fn module_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

/// Looks, without setting anything up.
pub fn host_kind() -> HostKind {
    // SAFETY: a NUL-terminated literal; only asks whether the file may be read and written.
    let usable = unsafe { libc::access(c"/dev/kvm".as_ptr(), libc::R_OK | libc::W_OK) } == 0;
    if usable { usable_kind() } else { HostKind::Absent }
}

/// The kind of a KVM that was opened.
pub(super) fn usable_kind() -> HostKind {
    if module_loaded("kvm_pvm") { HostKind::Software } else { HostKind::Hardware }
}

/// One line about the host's KVM.
pub(super) fn describe() -> &'static str {
    if module_loaded("kvm_pvm") {
        "software KVM (kvm_pvm)"
    } else if module_loaded("kvm_amd") {
        "hardware KVM (kvm_amd)"
    } else if module_loaded("kvm_intel") {
        "hardware KVM (kvm_intel)"
    } else {
        "KVM of an unknown kind"
    }
}

/// Whether this processor has SVM's instructions rather than VMX's: AMD and Hygon (CPUID leaf 0).
pub(super) fn is_amd() -> bool {
    let vendor = crate::host::host_cpuid::query(0, 0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}
