//! What kind of KVM this machine has. Looks only: nothing is set up here.

use std::path::Path;
use std::sync::OnceLock;

use crate::engine::Coherence;
use crate::x86::virtualization::{Extension, Hardware, Translation};

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

/// The kind of a KVM that was opened. It is looked up once: a dozen steps of start-up ask.
pub(super) fn usable_kind() -> HostKind {
    static KIND: OnceLock<HostKind> = OnceLock::new();
    *KIND.get_or_init(|| if module_loaded("kvm_pvm") { HostKind::Software } else { HostKind::Hardware })
}

/// What makes a store to a page table known to all vCPUs: a KVM that shadows page tables in software has one shadow for
/// all of them, which the store of any one's gate changes (docs/coherence.md). With hardware each has a TLB of its own.
pub(super) fn coherence() -> Coherence {
    match usable_kind() {
        HostKind::Software => Coherence::OwnEntry,
        HostKind::Hardware | HostKind::Absent => Coherence::EveryCpu,
    }
}

/// One line about the host's KVM.
pub(super) fn describe() -> &'static str {
    if usable_kind() == HostKind::Software {
        "software KVM (kvm_pvm)"
    } else if module_loaded("kvm_amd") {
        "hardware KVM (kvm_amd)"
    } else if module_loaded("kvm_intel") {
        "hardware KVM (kvm_intel)"
    } else {
        "KVM of an unknown kind"
    }
}

/// The extension that this KVM runs guests by, and how it translates their addresses; `None` where it does so in
/// software.
pub fn hardware() -> Option<Hardware> {
    let module = ["kvm_pvm", "kvm_amd", "kvm_intel"].into_iter().find(|module| module_loaded(module))?;
    by_module(module, |name| {
        std::fs::read_to_string(Path::new("/sys/module").join(module).join("parameters").join(name)).ok()
    })
}

fn by_module(module: &str, parameter: impl Fn(&str) -> Option<String>) -> Option<Hardware> {
    let (extension, name) = match module {
        "kvm_amd" => (Extension::Svm, "npt"),
        "kvm_intel" => (Extension::Vmx, "ept"),
        _ => return None,
    };
    // A bool, or a number on older kernels.
    let translation = match parameter(name).as_deref().map(str::trim) {
        Some("Y" | "1") => Some(Translation::Nested),
        Some("N" | "0") => Some(Translation::Shadow),
        Some(_) | None => None,
    };
    Some(Hardware { extension, translation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_say_how_addresses_are_translated() {
        let says = |module, name: &'static str, text: &'static str| {
            by_module(module, |asked| (asked == name).then(|| text.to_owned()))
        };
        let by = |extension, translation| Some(Hardware { extension, translation });
        assert_eq!(says("kvm_amd", "npt", "Y\n"), by(Extension::Svm, Some(Translation::Nested)));
        assert_eq!(says("kvm_amd", "npt", "0\n"), by(Extension::Svm, Some(Translation::Shadow)));
        assert_eq!(says("kvm_intel", "ept", "N\n"), by(Extension::Vmx, Some(Translation::Shadow)));
        assert_eq!(says("kvm_intel", "npt", "Y\n"), by(Extension::Vmx, None));
        assert_eq!(says("kvm_pvm", "npt", "Y\n"), None);
    }
}
