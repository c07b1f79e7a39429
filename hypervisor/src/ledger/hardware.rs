//! Exits under the names that the processor's manual has for them, where a guest's kernel runs at CPL 0.

use serde::Serialize;

use super::cause::{Cause, PrivOp};
use super::region::Region;
use crate::x86::virtualization::{ExitReason, Hardware};

/// What ran a kernel at CPL 0, and the exits that reached us by the manual's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HardwareExits {
    /// "VMX" or "SVM".
    pub extension: &'static str,
    /// How addresses are translated: "nested" or "shadow"; nothing if the host does not say.
    pub translation: Option<&'static str>,
    /// Those that occurred, in the order of [`ExitReason::ALL`].
    pub exits: Vec<HardwareExit>,
}

/// One of the manual's exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HardwareExit {
    /// The manual's name.
    pub name: &'static str,
    /// How many.
    pub count: u64,
}

impl HardwareExits {
    /// Those of a region.
    pub fn of(region: &Region, by: Hardware) -> Self {
        let count = |reason| {
            let rows = region.exits.iter().filter(|row| row.cause.hardware_reason() == Some(reason));
            rows.map(|row| row.count).sum()
        };
        let all = ExitReason::ALL.map(|reason| HardwareExit { name: reason.name(by), count: count(reason) });
        Self {
            extension: by.extension.name(),
            translation: by.translation.map(|translation| translation.name()),
            exits: all.into_iter().filter(|exit| exit.count != 0).collect(),
        }
    }
}

impl Cause {
    /// Why the processor left a guest that has its kernel at CPL 0; `None` for what such a guest cannot cause, and for
    /// exits after which it has no state worth a name.
    const fn hardware_reason(self) -> Option<ExitReason> {
        match self {
            Self::PortIn(_) | Self::PortOut(_) => Some(ExitReason::Io),
            Self::Mmio(_) => Some(ExitReason::DeviceMemory),
            Self::PrivilegedInstruction(PrivOp::Hlt) => Some(ExitReason::Hlt),
            Self::PrivilegedInstruction(PrivOp::MovToCr) => Some(ExitReason::TaskPriority),
            Self::InterruptWindow => Some(ExitReason::InterruptWindow),
            Self::Kick => Some(ExitReason::HostInterrupt),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ledger, PortDevice};
    use super::*;
    use crate::x86::virtualization::{Extension, Translation};

    #[test]
    fn causes_add_up_under_the_manuals_names() {
        let mut ledger = Ledger::new();
        let causes = [
            Cause::PortOut(PortDevice::Uart),
            Cause::PortIn(PortDevice::Uart),
            Cause::PrivilegedInstruction(PrivOp::Hlt),
            Cause::InterruptWindow,
            Cause::Dead,
        ];
        causes.iter().for_each(|cause| ledger.record(*cause, 1));
        let by = Hardware { extension: Extension::Svm, translation: Some(Translation::Nested) };
        let json = serde_json::to_value(HardwareExits::of(&ledger.whole(0), by)).unwrap();
        let expected = serde_json::json!({
            "extension": "SVM",
            "translation": "nested",
            "exits": [
                { "name": "VMEXIT_IOIO", "count": 2 },
                { "name": "VMEXIT_HLT", "count": 1 },
                { "name": "VMEXIT_VINTR", "count": 1 },
            ],
        });
        assert_eq!(json, expected);
    }
}
