//! What causes are called in tables and exports: the field's names for them, and the group each belongs to.

use std::fmt;

use super::cause::{Cause, MmioDevice, PortDevice, PrivOp, VirtioRegister};

impl Cause {
    /// The kind of exit that this is a case of.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Hypercall(_) => "hypercall",
            Self::Syscall => "syscall",
            Self::GuestFault { .. } => "guest-fault",
            Self::PrivilegedInstruction(_) => "privileged",
            Self::PortIn(_) | Self::PortOut(_) => "port",
            Self::PageTableStore | Self::TableLoad | Self::ShadowFill => "paging",
            Self::Mmio(_) => "mmio",
            Self::TranslateMiss | Self::LookupMiss | Self::CodeWrite | Self::PatchEntry => "code",
            Self::InterruptWindow | Self::Kick | Self::Dead => "host",
        }
    }

    /// The device, if it is an access to one.
    pub const fn device(self) -> Option<&'static str> {
        match self {
            Self::PortIn(device) | Self::PortOut(device) => Some(device.name()),
            Self::Mmio(MmioDevice::VirtioRead(_) | MmioDevice::VirtioWrite(_)) => Some("virtio"),
            Self::Mmio(MmioDevice::Other) => Some("other memory"),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Hypercall(nr) => match hypercall_name(nr) {
                Some(name) => write!(f, "hypercall {name}"),
                None => write!(f, "hypercall #{nr}"),
            },
            Self::Syscall => f.write_str("syscall"),
            Self::GuestFault { vector } => match fault_name(vector) {
                Some(name) => write!(f, "fault #{name}"),
                None => write!(f, "fault {vector}"),
            },
            Self::PrivilegedInstruction(op) => f.write_str(op.name()),
            Self::PortIn(device) => write!(f, "in {}", device.name()),
            Self::PortOut(device) => write!(f, "out {}", device.name()),
            Self::PageTableStore => f.write_str("page-table store"),
            Self::TableLoad => f.write_str("machine-to-physical load"),
            Self::ShadowFill => f.write_str("shadow fill"),
            Self::Mmio(MmioDevice::VirtioRead(register)) => write!(f, "mmio read virtio {}", register.name()),
            Self::Mmio(MmioDevice::VirtioWrite(register)) => {
                write!(f, "mmio write virtio {}", register.name())
            }
            Self::Mmio(MmioDevice::Other) => f.write_str("mmio other"),
            Self::TranslateMiss => f.write_str("translate miss"),
            Self::LookupMiss => f.write_str("lookup miss"),
            Self::CodeWrite => f.write_str("code write"),
            Self::PatchEntry => f.write_str("jump into a patch"),
            Self::InterruptWindow => f.write_str("interrupt window"),
            Self::Kick => f.write_str("kick"),
            Self::Dead => f.write_str("engine gave up"),
        }
    }
}

impl PrivOp {
    const fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Sti => "sti",
            Self::Hlt => "hlt",
            Self::MovToCr => "mov to cr",
            Self::MovFromCr => "mov from cr",
            Self::Lgdt => "lgdt",
            Self::Lidt => "lidt",
            Self::Ltr => "ltr",
            Self::Lldt => "lldt",
            Self::Invlpg => "invlpg",
            Self::Rdmsr => "rdmsr",
            Self::Wrmsr => "wrmsr",
            Self::Swapgs => "swapgs",
            Self::Iretq => "iretq",
            Self::Sysret => "sysret",
            Self::Clts => "clts",
            Self::Wbinvd => "wbinvd",
            Self::SegmentLoad => "segment load",
            Self::FarReturn => "far return",
            Self::SoftInt => "int n",
            Self::Cpuid => "cpuid",
            Self::MovDr => "mov dr",
            Self::Xsetbv => "xsetbv",
            Self::Other => "other privileged",
        }
    }
}

impl PortDevice {
    const fn name(self) -> &'static str {
        match self {
            Self::Uart => "uart",
            Self::Pic => "pic",
            Self::Pit => "pit",
            Self::Mark => "mark",
            Self::Power => "power",
            Self::Other => "other port",
        }
    }
}

impl VirtioRegister {
    /// As the specification spells it.
    const fn name(self) -> &'static str {
        match self {
            Self::MagicValue => "MagicValue",
            Self::Version => "Version",
            Self::DeviceId => "DeviceID",
            Self::VendorId => "VendorID",
            Self::DeviceFeatures => "DeviceFeatures",
            Self::DeviceFeaturesSel => "DeviceFeaturesSel",
            Self::DriverFeatures => "DriverFeatures",
            Self::DriverFeaturesSel => "DriverFeaturesSel",
            Self::QueueSel => "QueueSel",
            Self::QueueNumMax => "QueueNumMax",
            Self::QueueNum => "QueueNum",
            Self::QueueReady => "QueueReady",
            Self::QueueNotify => "QueueNotify",
            Self::InterruptStatus => "InterruptStatus",
            Self::InterruptAck => "InterruptACK",
            Self::Status => "Status",
            Self::QueueDescLow => "QueueDescLow",
            Self::QueueDescHigh => "QueueDescHigh",
            Self::QueueDriverLow => "QueueDriverLow",
            Self::QueueDriverHigh => "QueueDriverHigh",
            Self::QueueDeviceLow => "QueueDeviceLow",
            Self::QueueDeviceHigh => "QueueDeviceHigh",
            Self::ConfigGeneration => "ConfigGeneration",
            Self::SharedMemory => "SHM",
            Self::Config => "configuration space",
            Self::Other => "no register",
        }
    }
}

/// Names of the hypercalls, by number, as Xen's public header `xen.h` numbers them.
const fn hypercall_name(nr: u8) -> Option<&'static str> {
    Some(match nr {
        0 => "set_trap_table",
        1 => "mmu_update",
        2 => "set_gdt",
        3 => "stack_switch",
        4 => "set_callbacks",
        5 => "fpu_taskswitch",
        6 => "sched_op_compat",
        7 => "platform_op",
        8 => "set_debugreg",
        9 => "get_debugreg",
        10 => "update_descriptor",
        12 => "memory_op",
        13 => "multicall",
        14 => "update_va_mapping",
        15 => "set_timer_op",
        16 => "event_channel_op_compat",
        17 => "xen_version",
        18 => "console_io",
        19 => "physdev_op_compat",
        20 => "grant_table_op",
        21 => "vm_assist",
        22 => "update_va_mapping_otherdomain",
        23 => "iret",
        24 => "vcpu_op",
        25 => "set_segment_base",
        26 => "mmuext_op",
        27 => "xsm_op",
        28 => "nmi_op",
        29 => "sched_op",
        30 => "callback_op",
        31 => "xenoprof_op",
        32 => "event_channel_op",
        33 => "physdev_op",
        34 => "hvm_op",
        35 => "sysctl",
        36 => "domctl",
        37 => "kexec_op",
        38 => "tmem_op",
        39 => "argo_op",
        40 => "xenpmu_op",
        41 => "dm_op",
        42 => "hypfs_op",
        55 => "paravane_virtio_op",
        _ => return None,
    })
}

/// Mnemonics of the exceptions (SDM vol. 3, table 6-1).
const fn fault_name(vector: u8) -> Option<&'static str> {
    Some(match vector {
        0 => "DE",
        1 => "DB",
        2 => "NMI",
        3 => "BP",
        4 => "OF",
        5 => "BR",
        6 => "UD",
        7 => "NM",
        8 => "DF",
        10 => "TS",
        11 => "NP",
        12 => "SS",
        13 => "GP",
        14 => "PF",
        16 => "MF",
        17 => "AC",
        18 => "MC",
        19 => "XM",
        20 => "VE",
        21 => "CP",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: HashSet<String> = Cause::all().map(|c| c.to_string()).collect();
        assert_eq!(names.len(), Cause::COUNT);
    }

    #[test]
    fn names_are_those_of_the_field() {
        assert_eq!(Cause::Hypercall(1).to_string(), "hypercall mmu_update");
        assert_eq!(Cause::Hypercall(48).to_string(), "hypercall #48");
        assert_eq!(Cause::GuestFault { vector: 14 }.to_string(), "fault #PF");
        assert_eq!(Cause::PortOut(PortDevice::Uart).to_string(), "out uart");
    }
}
