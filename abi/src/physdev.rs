//! Physical devices and interrupts: `physdev_op(op, arg)`.
//!
//! Operations that an unprivileged guest calls have their structures here; the others are numbers only.
//! Source: public/physdev.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// Obsolete: channels of physical interrupts were unmasked.
pub const PHYSDEVOP_IRQ_UNMASK_NOTIFY: u32 = 4;
/// Ask how an interrupt is handled: [`PhysdevIrqStatusQuery`].
pub const PHYSDEVOP_IRQ_STATUS_QUERY: u32 = 5;
/// Set the vCPU's I/O privilege level: [`PhysdevSetIopl`].
pub const PHYSDEVOP_SET_IOPL: u32 = 6;
/// Set the vCPU's bitmap of I/O ports: [`PhysdevSetIobitmap`].
pub const PHYSDEVOP_SET_IOBITMAP: u32 = 7;
/// Read a register of an I/O APIC.
pub const PHYSDEVOP_APIC_READ: u32 = 8;
/// Write a register of an I/O APIC.
pub const PHYSDEVOP_APIC_WRITE: u32 = 9;
/// Get a vector for an interrupt.
pub const PHYSDEVOP_ALLOC_IRQ_VECTOR: u32 = 10;
/// Free a vector.
pub const PHYSDEVOP_FREE_IRQ_VECTOR: u32 = 11;
/// Signal the end of an interrupt: [`PhysdevEoi`].
pub const PHYSDEVOP_EOI: u32 = 12;
/// Map an interrupt of a device: [`PhysdevMapPirq`].
pub const PHYSDEVOP_MAP_PIRQ: u32 = 13;
/// Unmap an interrupt of a device: [`PhysdevUnmapPirq`].
pub const PHYSDEVOP_UNMAP_PIRQ: u32 = 14;
/// A PCI device was added.
pub const PHYSDEVOP_MANAGE_PCI_ADD: u32 = 15;
/// A PCI device was removed.
pub const PHYSDEVOP_MANAGE_PCI_REMOVE: u32 = 16;
/// Share a bitmap of interrupts that need an end of interrupt, which also unmasks: [`PhysdevPirqEoiGmfn`].
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V1: u32 = 17;
/// Restore a device's message interrupts.
pub const PHYSDEVOP_RESTORE_MSI: u32 = 19;
/// A PCI device was added, with its kind.
pub const PHYSDEVOP_MANAGE_PCI_ADD_EXT: u32 = 20;
/// Set an interrupt's trigger and polarity.
pub const PHYSDEVOP_SETUP_GSI: u32 = 21;
/// Get a free interrupt number.
pub const PHYSDEVOP_GET_FREE_PIRQ: u32 = 23;
/// Report the address of PCI's configuration space in memory.
pub const PHYSDEVOP_PCI_MMCFG_RESERVED: u32 = 24;
/// A PCI device was added, with its segment.
pub const PHYSDEVOP_PCI_DEVICE_ADD: u32 = 25;
/// A PCI device was removed, with its segment.
pub const PHYSDEVOP_PCI_DEVICE_REMOVE: u32 = 26;
/// Restore the message interrupts of a device with its segment.
pub const PHYSDEVOP_RESTORE_MSI_EXT: u32 = 27;
/// As [`PHYSDEVOP_PIRQ_EOI_GMFN_V1`], without unmasking.
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V2: u32 = 28;
/// The debug port's controller is to be reset.
pub const PHYSDEVOP_DBGP_OP: u32 = 29;
/// A device's message interrupts will not change from now on.
pub const PHYSDEVOP_PREPARE_MSIX: u32 = 30;
/// A device's message interrupts may change again.
pub const PHYSDEVOP_RELEASE_MSIX: u32 = 31;

/// Argument of [`PHYSDEVOP_EOI`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevEoi {
    /// IN: interrupt.
    pub irq: u32,
}

layout!(PhysdevEoi: 4 { irq @ 0 });

/// Argument of [`PHYSDEVOP_PIRQ_EOI_GMFN_V1`] and [`PHYSDEVOP_PIRQ_EOI_GMFN_V2`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevPirqEoiGmfn {
    /// IN: machine frame of the bitmap.
    pub gmfn: u64,
}

layout!(PhysdevPirqEoiGmfn: 8 { gmfn @ 0 });

/// In [`PhysdevIrqStatusQuery::flags`]: the interrupt needs a [`PHYSDEVOP_EOI`].
pub const XENIRQSTAT_NEEDS_EOI: u32 = 1 << 0;
/// In [`PhysdevIrqStatusQuery::flags`]: several domains share the interrupt.
pub const XENIRQSTAT_SHARED: u32 = 1 << 1;

/// Argument of [`PHYSDEVOP_IRQ_STATUS_QUERY`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevIrqStatusQuery {
    /// IN: interrupt.
    pub irq: u32,
    /// OUT: `XENIRQSTAT_*`.
    pub flags: u32,
}

layout!(PhysdevIrqStatusQuery: 8 { irq @ 0, flags @ 4 });

/// Argument of [`PHYSDEVOP_SET_IOPL`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevSetIopl {
    /// IN: 0 to 3: the kernel may access ports from 1 on, user mode at 3.
    pub iopl: u32,
}

layout!(PhysdevSetIopl: 4 { iopl @ 0 });

/// Argument of [`PHYSDEVOP_SET_IOBITMAP`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevSetIobitmap {
    /// IN: virtual address of a bitmap, a set bit refuses the port.
    pub bitmap: u64,
    /// IN: ports that it covers.
    pub nr_ports: u32,
    /// Padding.
    pub _pad: u32,
}

layout!(PhysdevSetIobitmap: 16 { bitmap @ 0, nr_ports @ 8 });

/// Kind of interrupt to map: a message.
pub const MAP_PIRQ_TYPE_MSI: i32 = 0;
/// Kind of interrupt to map: a line.
pub const MAP_PIRQ_TYPE_GSI: i32 = 1;
/// Kind of interrupt to map: not known.
pub const MAP_PIRQ_TYPE_UNKNOWN: i32 = 2;
/// Kind of interrupt to map: a message of a device with its segment.
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 3;
/// Kind of interrupt to map: several messages.
pub const MAP_PIRQ_TYPE_MULTI_MSI: i32 = 4;

/// Argument of [`PHYSDEVOP_MAP_PIRQ`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevMapPirq {
    /// IN: domain.
    pub domid: DomId,
    /// Padding.
    pub _pad0: u16,
    /// IN: `MAP_PIRQ_TYPE_*`.
    pub kind: i32,
    /// IN: the device's interrupt.
    pub index: i32,
    /// IN: requested number, negative for any. OUT: assigned number.
    pub pirq: i32,
    /// IN: bus, and segment above bit 16.
    pub bus: i32,
    /// IN: device and function.
    pub devfn: i32,
    /// IN: which message, or how many. OUT: how many.
    pub entry_nr: i32,
    /// Padding.
    pub _pad1: u32,
    /// IN: machine address of the table of messages.
    pub table_base: u64,
}

layout!(PhysdevMapPirq: 40 {
    domid @ 0, kind @ 4, index @ 8, pirq @ 12, bus @ 16, devfn @ 20, entry_nr @ 24, table_base @ 32,
});

/// Argument of [`PHYSDEVOP_UNMAP_PIRQ`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysdevUnmapPirq {
    /// IN: domain.
    pub domid: DomId,
    /// Padding.
    pub _pad: u16,
    /// IN: number to free.
    pub pirq: i32,
}

layout!(PhysdevUnmapPirq: 8 { domid @ 0, pirq @ 4 });
