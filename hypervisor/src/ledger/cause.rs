//! The causes of exits, and a dense number for each.
//!
//! The numbers index the ledger's arrays; they are not stable between versions and never leave the process
//! (what is exported is the name, see `name.rs`).

/// A privileged or sensitive instruction that a deprivileged kernel tripped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PrivOp {
    Cli,
    Sti,
    Hlt,
    MovToCr,
    MovFromCr,
    Lgdt,
    Lidt,
    Ltr,
    Lldt,
    Invlpg,
    Rdmsr,
    Wrmsr,
    Swapgs,
    Iretq,
    Sysret,
    Clts,
    Wbinvd,
    SegmentLoad,
    FarReturn,
    SoftInt,
    Cpuid,
    MovDr,
    Xsetbv,
    Other,
}

impl PrivOp {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 24] = [
        Self::Cli,
        Self::Sti,
        Self::Hlt,
        Self::MovToCr,
        Self::MovFromCr,
        Self::Lgdt,
        Self::Lidt,
        Self::Ltr,
        Self::Lldt,
        Self::Invlpg,
        Self::Rdmsr,
        Self::Wrmsr,
        Self::Swapgs,
        Self::Iretq,
        Self::Sysret,
        Self::Clts,
        Self::Wbinvd,
        Self::SegmentLoad,
        Self::FarReturn,
        Self::SoftInt,
        Self::Cpuid,
        Self::MovDr,
        Self::Xsetbv,
        Self::Other,
    ];
}

/// Whose I/O port was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortDevice {
    /// The 16550 UART.
    Uart,
    /// The pair of 8259 interrupt controllers.
    Pic,
    /// The 8254 timer.
    Pit,
    /// The port by which a guest brackets a measured region.
    Mark,
    /// Power off, reset and crash reports.
    Power,
    /// Any other port.
    Other,
}

impl PortDevice {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Uart, Self::Pic, Self::Pit, Self::Mark, Self::Power, Self::Other];
}

/// A register of a virtio device on the memory bus (virtio 1.2, section 4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum VirtioRegister {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNumMax,
    QueueNum,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    ConfigGeneration,
    /// A length or an address of a shared memory region.
    SharedMemory,
    /// Any byte of the configuration space.
    Config,
    /// An offset without a register.
    Other,
}

impl VirtioRegister {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 26] = [
        Self::MagicValue,
        Self::Version,
        Self::DeviceId,
        Self::VendorId,
        Self::DeviceFeatures,
        Self::DeviceFeaturesSel,
        Self::DriverFeatures,
        Self::DriverFeaturesSel,
        Self::QueueSel,
        Self::QueueNumMax,
        Self::QueueNum,
        Self::QueueReady,
        Self::QueueNotify,
        Self::InterruptStatus,
        Self::InterruptAck,
        Self::Status,
        Self::QueueDescLow,
        Self::QueueDescHigh,
        Self::QueueDriverLow,
        Self::QueueDriverHigh,
        Self::QueueDeviceLow,
        Self::QueueDeviceHigh,
        Self::ConfigGeneration,
        Self::SharedMemory,
        Self::Config,
        Self::Other,
    ];

    /// The register at a byte offset of a device's page.
    pub const fn at(offset: u64) -> Self {
        match offset {
            0x00 => Self::MagicValue,
            0x04 => Self::Version,
            0x08 => Self::DeviceId,
            0x0c => Self::VendorId,
            0x10 => Self::DeviceFeatures,
            0x14 => Self::DeviceFeaturesSel,
            0x20 => Self::DriverFeatures,
            0x24 => Self::DriverFeaturesSel,
            0x30 => Self::QueueSel,
            0x34 => Self::QueueNumMax,
            0x38 => Self::QueueNum,
            0x44 => Self::QueueReady,
            0x50 => Self::QueueNotify,
            0x60 => Self::InterruptStatus,
            0x64 => Self::InterruptAck,
            0x70 => Self::Status,
            0x80 => Self::QueueDescLow,
            0x84 => Self::QueueDescHigh,
            0x90 => Self::QueueDriverLow,
            0x94 => Self::QueueDriverHigh,
            0xa0 => Self::QueueDeviceLow,
            0xa4 => Self::QueueDeviceHigh,
            0xb0 | 0xb4 | 0xb8 | 0xbc => Self::SharedMemory,
            0xfc => Self::ConfigGeneration,
            0x100.. => Self::Config,
            _ => Self::Other,
        }
    }
}

/// Whose device memory was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MmioDevice {
    /// A read of a virtio device's register.
    VirtioRead(VirtioRegister),
    /// A write to one.
    VirtioWrite(VirtioRegister),
    /// Anything else.
    Other,
}

impl MmioDevice {
    /// How many there are.
    const COUNT: usize = 2 * VirtioRegister::ALL.len() + 1;

    const fn index(self) -> usize {
        match self {
            Self::VirtioRead(register) => register as usize,
            Self::VirtioWrite(register) => VirtioRegister::ALL.len() + register as usize,
            Self::Other => 2 * VirtioRegister::ALL.len(),
        }
    }

    /// All of them, in the order of their numbers.
    fn all() -> impl Iterator<Item = Self> {
        let registers = || VirtioRegister::ALL.into_iter();
        registers().map(Self::VirtioRead).chain(registers().map(Self::VirtioWrite)).chain([Self::Other])
    }
}

/// Why the guest left the CPU to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A hypercall, by number; numbers from [`Cause::HYPERCALLS`] on count as the last one.
    Hypercall(u8),
    /// A system call of a user program, handed to the guest's kernel.
    Syscall,
    /// An exception that is the guest's own to handle, by vector; vectors past 31 count as 31.
    GuestFault {
        /// The exception's vector.
        vector: u8,
    },
    /// A privileged instruction, emulated.
    PrivilegedInstruction(PrivOp),
    /// IN and INS.
    PortIn(PortDevice),
    /// OUT and OUTS.
    PortOut(PortDevice),
    /// A store to a write-protected page table, emulated.
    PageTableStore,
    /// A load from the machine-to-physical table where the engine cannot map it, emulated.
    TableLoad,
    /// A shadow page table that lacked what the guest's own table has.
    ShadowFill,
    /// An access to device memory, emulated.
    Mmio(MmioDevice),
    /// Code that no translation exists of.
    TranslateMiss,
    /// An indirect jump, call or return to where the table of translations knows nothing.
    LookupMiss,
    /// A store to code that a translation or a patch was made from.
    CodeWrite,
    /// A jump into a patched range.
    PatchEntry,
    /// A guest whose kernel runs at CPL 0 takes interrupts now, and one waits.
    InterruptWindow,
    /// The host took the CPU back: a timer, a signal, another thread.
    Kick,
    /// The engine gave the vCPU up.
    Dead,
}

const SYSCALL: usize = Cause::HYPERCALLS;
const FAULT: usize = SYSCALL + 1;
const PRIVILEGED: usize = FAULT + Cause::VECTORS;
const PORT_IN: usize = PRIVILEGED + PrivOp::ALL.len();
const PORT_OUT: usize = PORT_IN + PortDevice::ALL.len();
const PAGE_TABLE_STORE: usize = PORT_OUT + PortDevice::ALL.len();
const TABLE_LOAD: usize = PAGE_TABLE_STORE + 1;
const SHADOW_FILL: usize = TABLE_LOAD + 1;
const MMIO: usize = SHADOW_FILL + 1;
const TRANSLATE_MISS: usize = MMIO + MmioDevice::COUNT;
const LOOKUP_MISS: usize = TRANSLATE_MISS + 1;
const CODE_WRITE: usize = LOOKUP_MISS + 1;
const PATCH_ENTRY: usize = CODE_WRITE + 1;
const INTERRUPT_WINDOW: usize = PATCH_ENTRY + 1;
const KICK: usize = INTERRUPT_WINDOW + 1;
const DEAD: usize = KICK + 1;

impl Cause {
    /// How many hypercall numbers are counted one by one.
    pub const HYPERCALLS: usize = 64;
    /// How many exception vectors are counted one by one.
    pub const VECTORS: usize = 32;
    /// How many causes there are.
    pub const COUNT: usize = DEAD + 1;

    /// This cause's number: below [`Cause::COUNT`], whatever the cause holds.
    pub const fn index(self) -> usize {
        match self {
            Self::Hypercall(nr) => at_most(nr, Self::HYPERCALLS),
            Self::Syscall => SYSCALL,
            Self::GuestFault { vector } => FAULT + at_most(vector, Self::VECTORS),
            Self::PrivilegedInstruction(op) => PRIVILEGED + op as usize,
            Self::PortIn(device) => PORT_IN + device as usize,
            Self::PortOut(device) => PORT_OUT + device as usize,
            Self::PageTableStore => PAGE_TABLE_STORE,
            Self::TableLoad => TABLE_LOAD,
            Self::ShadowFill => SHADOW_FILL,
            Self::Mmio(device) => MMIO + device.index(),
            Self::TranslateMiss => TRANSLATE_MISS,
            Self::LookupMiss => LOOKUP_MISS,
            Self::CodeWrite => CODE_WRITE,
            Self::PatchEntry => PATCH_ENTRY,
            Self::InterruptWindow => INTERRUPT_WINDOW,
            Self::Kick => KICK,
            Self::Dead => DEAD,
        }
    }

    /// Whether it is a privileged or sensitive instruction's own.
    pub const fn is_instruction(self) -> bool {
        matches!(self, Self::PrivilegedInstruction(_) | Self::PortIn(_) | Self::PortOut(_))
    }

    /// Every cause, in the order of [`Cause::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        (0u8..)
            .take(Self::HYPERCALLS)
            .map(Self::Hypercall)
            .chain([Self::Syscall])
            .chain((0u8..).take(Self::VECTORS).map(|vector| Self::GuestFault { vector }))
            .chain(PrivOp::ALL.map(Self::PrivilegedInstruction))
            .chain(PortDevice::ALL.map(Self::PortIn))
            .chain(PortDevice::ALL.map(Self::PortOut))
            .chain([Self::PageTableStore, Self::TableLoad, Self::ShadowFill])
            .chain(MmioDevice::all().map(Self::Mmio))
            .chain([Self::TranslateMiss, Self::LookupMiss, Self::CodeWrite, Self::PatchEntry])
            .chain([Self::InterruptWindow, Self::Kick, Self::Dead])
    }
}

const fn at_most(value: u8, count: usize) -> usize {
    if (value as usize) < count { value as usize } else { count - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense_and_in_order() {
        let indices: Vec<usize> = Cause::all().map(Cause::index).collect();
        assert_eq!(indices, (0..Cause::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn registers_are_where_the_specification_has_them() {
        use VirtioRegister::*;
        use virtio_bindings::bindings::virtio_mmio as header;
        let facts = [
            (header::VIRTIO_MMIO_MAGIC_VALUE, MagicValue),
            (header::VIRTIO_MMIO_VERSION, Version),
            (header::VIRTIO_MMIO_DEVICE_ID, DeviceId),
            (header::VIRTIO_MMIO_VENDOR_ID, VendorId),
            (header::VIRTIO_MMIO_DEVICE_FEATURES, DeviceFeatures),
            (header::VIRTIO_MMIO_DEVICE_FEATURES_SEL, DeviceFeaturesSel),
            (header::VIRTIO_MMIO_DRIVER_FEATURES, DriverFeatures),
            (header::VIRTIO_MMIO_DRIVER_FEATURES_SEL, DriverFeaturesSel),
            (header::VIRTIO_MMIO_QUEUE_SEL, QueueSel),
            (header::VIRTIO_MMIO_QUEUE_NUM_MAX, QueueNumMax),
            (header::VIRTIO_MMIO_QUEUE_NUM, QueueNum),
            (header::VIRTIO_MMIO_QUEUE_READY, QueueReady),
            (header::VIRTIO_MMIO_QUEUE_NOTIFY, QueueNotify),
            (header::VIRTIO_MMIO_INTERRUPT_STATUS, InterruptStatus),
            (header::VIRTIO_MMIO_INTERRUPT_ACK, InterruptAck),
            (header::VIRTIO_MMIO_STATUS, Status),
            (header::VIRTIO_MMIO_QUEUE_DESC_LOW, QueueDescLow),
            (header::VIRTIO_MMIO_QUEUE_DESC_HIGH, QueueDescHigh),
            (header::VIRTIO_MMIO_QUEUE_AVAIL_LOW, QueueDriverLow),
            (header::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, QueueDriverHigh),
            (header::VIRTIO_MMIO_QUEUE_USED_LOW, QueueDeviceLow),
            (header::VIRTIO_MMIO_QUEUE_USED_HIGH, QueueDeviceHigh),
            (header::VIRTIO_MMIO_SHM_SEL, Other),
            (header::VIRTIO_MMIO_SHM_LEN_LOW, SharedMemory),
            (header::VIRTIO_MMIO_SHM_LEN_HIGH, SharedMemory),
            (header::VIRTIO_MMIO_SHM_BASE_LOW, SharedMemory),
            (header::VIRTIO_MMIO_SHM_BASE_HIGH, SharedMemory),
            (header::VIRTIO_MMIO_CONFIG_GENERATION, ConfigGeneration),
            (header::VIRTIO_MMIO_CONFIG, Config),
            (header::VIRTIO_MMIO_CONFIG + 7, Config),
        ];
        for (offset, register) in facts {
            assert_eq!(VirtioRegister::at(offset.into()), register, "{offset:#x}");
        }
        // Nothing else is a register: those of the legacy interface neither.
        let known = |offset: u32| facts.iter().any(|(at, _)| *at == offset);
        assert!((0..0x100).filter(|at| !known(*at)).all(|at| VirtioRegister::at(at.into()) == Other));
        assert_eq!(VirtioRegister::at(0x32), VirtioRegister::Other);
        let found =
            |register: &VirtioRegister| (0..0x101).any(|offset| VirtioRegister::at(offset) == *register);
        assert!(VirtioRegister::ALL.iter().all(found));
    }

    #[test]
    fn numbers_out_of_range_stay_in_their_group() {
        assert_eq!(Cause::Hypercall(255).index(), Cause::Hypercall(63).index());
        assert_eq!(Cause::GuestFault { vector: 32 }.index(), Cause::GuestFault { vector: 31 }.index());
    }
}
