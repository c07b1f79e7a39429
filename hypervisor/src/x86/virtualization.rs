//! Hardware virtualization: the two extensions of the architecture, and what each calls its exits.
//!
//! Names are those of the manuals: Intel's "basic exit reasons" (SDM vol. 3, appendix C, table C-1) and AMD's "intercept
//! exit codes" (APM vol. 2, appendix C).

/// An extension that runs a guest's kernel at CPL 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Intel's.
    Vmx,
    /// AMD's.
    Svm,
}

impl Extension {
    /// Its name in its manual.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmx => "VMX",
            Self::Svm => "SVM",
        }
    }

    /// What it calls the second table that translates guest-physical addresses.
    pub const fn nested_table(self) -> &'static str {
        match self {
            Self::Vmx => "EPT",
            Self::Svm => "NPT",
        }
    }
}

/// How the processor comes from a guest-virtual address to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// It walks the guest's tables, and for each of their addresses a second table.
    Nested,
    /// It walks tables that shadow the guest's.
    Shadow,
}

impl Translation {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
        }
    }
}

/// What runs a kernel at CPL 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// The extension.
    pub extension: Extension,
    /// How it translates addresses; `None` if the host does not say.
    pub translation: Option<Translation>,
}

/// Why the processor left a guest. Only what reaches a monitor outside of the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// IN, OUT, INS or OUTS.
    Io,
    /// HLT.
    Hlt,
    /// An access to an address without memory.
    DeviceMemory,
    /// The guest takes interrupts, and one waits.
    InterruptWindow,
    /// A MOV to CR8.
    TaskPriority,
    /// An interrupt of the host's.
    HostInterrupt,
}

impl ExitReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Io,
        Self::Hlt,
        Self::DeviceMemory,
        Self::InterruptWindow,
        Self::TaskPriority,
        Self::HostInterrupt,
    ];

    /// The manual's name.
    pub const fn name(self, by: Hardware) -> &'static str {
        match by.extension {
            Extension::Vmx => self.vmx(by.translation),
            Extension::Svm => self.svm(by.translation),
        }
    }

    const fn vmx(self, translation: Option<Translation>) -> &'static str {
        match (self, translation) {
            (Self::Io, _) => "I/O instruction",
            (Self::Hlt, _) => "HLT",
            (Self::DeviceMemory, Some(Translation::Shadow)) => "exception or non-maskable interrupt (#PF)",
            // The first access to a page is the one; KVM then sets an entry that makes the next ones the other.
            (Self::DeviceMemory, _) => "EPT violation or misconfiguration",
            (Self::InterruptWindow, _) => "interrupt window",
            // No virtual-APIC page without a virtual APIC, so that there is no "TPR below threshold".
            (Self::TaskPriority, _) => "control-register access",
            (Self::HostInterrupt, _) => "external interrupt",
        }
    }

    const fn svm(self, translation: Option<Translation>) -> &'static str {
        match (self, translation) {
            (Self::Io, _) => "VMEXIT_IOIO",
            (Self::Hlt, _) => "VMEXIT_HLT",
            (Self::DeviceMemory, Some(Translation::Shadow)) => "VMEXIT_EXCP14",
            (Self::DeviceMemory, _) => "VMEXIT_NPF",
            (Self::InterruptWindow, _) => "VMEXIT_VINTR",
            (Self::TaskPriority, _) => "VMEXIT_CR8_WRITE",
            (Self::HostInterrupt, _) => "VMEXIT_INTR",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_manual_has_a_name_of_its_own_for_each_reason() {
        for extension in [Extension::Vmx, Extension::Svm] {
            for translation in [None, Some(Translation::Nested), Some(Translation::Shadow)] {
                let by = Hardware { extension, translation };
                let names: HashSet<_> = ExitReason::ALL.map(|reason| reason.name(by)).into();
                assert_eq!(names.len(), ExitReason::ALL.len(), "{by:?}");
            }
        }
    }

    /// Without a second table, an access to a device is a page fault.
    #[test]
    fn device_memory_is_left_for_by_the_table_in_use() {
        let left =
            |extension, translation| ExitReason::DeviceMemory.name(Hardware { extension, translation });
        assert_eq!(left(Extension::Svm, Some(Translation::Nested)), "VMEXIT_NPF");
        assert_eq!(left(Extension::Svm, Some(Translation::Shadow)), "VMEXIT_EXCP14");
        assert!(left(Extension::Vmx, Some(Translation::Nested)).starts_with("EPT violation"));
        assert!(left(Extension::Vmx, Some(Translation::Shadow)).contains("#PF"));
    }
}
