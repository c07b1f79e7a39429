//! /dev/kvm: whether it can be used, and what to do if not.

use std::{fmt, io};

use kvm_ioctls::Kvm;

/// The only version of the KVM interface there is (Linux, Documentation/virt/kvm/api.rst, 4.1).
const KVM_API_VERSION: i32 = 12;

/// What became of the attempt to use /dev/kvm.
#[derive(Debug, PartialEq, Eq)]
pub enum KvmState {
    /// A virtual machine can be made.
    Works,
    /// There is no such device.
    Absent,
    /// It may not be opened.
    Forbidden,
    /// It speaks another version of the interface.
    Version(i32),
    /// It is there and fails.
    Fails(String),
}

impl KvmState {
    /// Looks.
    pub fn probe() -> Self {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(e) => return Self::of_open_error(&io::Error::from_raw_os_error(e.errno())),
        };
        match kvm.get_api_version() {
            KVM_API_VERSION => {}
            other => return Self::Version(other),
        }
        match kvm.create_vm() {
            Ok(_) => Self::Works,
            Err(e) => Self::Fails(format!(
                "it opens, but makes no virtual machine: {}",
                io::Error::from_raw_os_error(e.errno())
            )),
        }
    }

    /// For scripts.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Absent => "absent",
            Self::Forbidden => "forbidden",
            Self::Version(_) => "version",
            Self::Fails(_) => "fails",
        }
    }

    fn of_open_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Fails(error.to_string()),
        }
    }

    /// What to do about it; nothing if it works.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Works => None,
            Self::Absent => Some(
                "load kvm_intel or kvm_amd (with virtualization switched on in the firmware); \
                 in a virtual machine or a container, have /dev/kvm passed through",
            ),
            Self::Forbidden => {
                Some("add this user to the group that owns /dev/kvm (mostly `kvm`) and log in again")
            }
            Self::Version(_) => Some("use a current Linux kernel"),
            Self::Fails(_) => Some("see the kernel's log (dmesg) for what KVM says"),
        }
    }
}

impl fmt::Display for KvmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("/dev/kvm works"),
            Self::Absent => f.write_str("/dev/kvm does not exist"),
            Self::Forbidden => f.write_str("/dev/kvm may not be opened by this user"),
            Self::Version(n) => {
                write!(f, "/dev/kvm speaks version {n} of the interface, not {KVM_API_VERSION}")
            }
            Self::Fails(why) => write!(f, "/dev/kvm does not work: {why}"),
        }
    }
}

/// What a module behind /dev/kvm is.
pub fn kind(module: Option<&str>) -> &'static str {
    match module {
        Some("kvm_pvm") => {
            "module kvm_pvm, in software. Kernels at CPL 3 run natively, ring 0 is interpreted"
        }
        Some("kvm_intel") => "module kvm_intel, in hardware (VT-x)",
        Some("kvm_amd") => "module kvm_amd, in hardware (SVM)",
        _ => "no module that /sys/module names",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let state = |errno| KvmState::of_open_error(&io::Error::from_raw_os_error(errno));
        assert_eq!(state(libc::ENOENT), KvmState::Absent);
        assert_eq!(state(libc::EACCES), KvmState::Forbidden);
        assert_eq!(state(libc::EPERM), KvmState::Forbidden);
        assert!(matches!(state(libc::ENODEV), KvmState::Fails(_)));
    }

    #[test]
    fn every_problem_comes_with_advice() {
        use KvmState::{Absent, Fails, Forbidden, Version};
        for state in [Absent, Forbidden, Version(11), Fails("no".to_owned())] {
            assert!(state.advice().is_some() && state.id() != KvmState::Works.id(), "{state:?}");
        }
        assert_eq!(KvmState::Works.advice(), None);
    }
}
