//! The start-of-day structure of a guest that starts without paravirtual paging (PVH).
//!
//! Addresses are physical; 0 stands for absent. Source: public/arch-x86/hvm/start_info.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`HvmStartInfo::magic`].
pub const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;
/// [`HvmStartInfo::version`] of the layout below.
pub const HVM_START_INFO_VERSION: u32 = 1;

/// The structure itself. All OUT.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HvmStartInfo {
    /// [`XEN_HVM_START_MAGIC_VALUE`].
    pub magic: u32,
    /// [`HVM_START_INFO_VERSION`].
    pub version: u32,
    /// `SIF_*` of [`crate::start_info`].
    pub flags: u32,
    /// Modules in the list.
    pub nr_modules: u32,
    /// Address of an array of [`HvmModlistEntry`].
    pub modlist_paddr: u64,
    /// Address of the zero-terminated command line.
    pub cmdline_paddr: u64,
    /// Address of ACPI's root pointer.
    pub rsdp_paddr: u64,
    /// Address of an array of [`HvmMemmapTableEntry`]; from version 1 on, as all that follows.
    pub memmap_paddr: u64,
    /// Entries in the memory map.
    pub memmap_entries: u32,
    /// Zero.
    pub reserved: u32,
}

layout!(HvmStartInfo: 56 {
    magic @ 0, version @ 4, flags @ 8, nr_modules @ 12, modlist_paddr @ 16, cmdline_paddr @ 24, rsdp_paddr @ 32,
    memmap_paddr @ 40, memmap_entries @ 48, reserved @ 52,
});

/// One module. All OUT.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HvmModlistEntry {
    /// Address.
    pub paddr: u64,
    /// Bytes.
    pub size: u64,
    /// Address of its zero-terminated command line.
    pub cmdline_paddr: u64,
    /// Zero.
    pub reserved: u64,
}

layout!(HvmModlistEntry: 32 { paddr @ 0, size @ 8, cmdline_paddr @ 16, reserved @ 24 });

/// Memory map: usable memory.
pub const XEN_HVM_MEMMAP_TYPE_RAM: u32 = 1;
/// Memory map: not to be used.
pub const XEN_HVM_MEMMAP_TYPE_RESERVED: u32 = 2;
/// Memory map: ACPI tables.
pub const XEN_HVM_MEMMAP_TYPE_ACPI: u32 = 3;
/// Memory map: preserved by the firmware over sleep states.
pub const XEN_HVM_MEMMAP_TYPE_NVS: u32 = 4;
/// Memory map: memory with errors.
pub const XEN_HVM_MEMMAP_TYPE_UNUSABLE: u32 = 5;
/// Memory map: memory that is not enabled.
pub const XEN_HVM_MEMMAP_TYPE_DISABLED: u32 = 6;
/// Memory map: persistent memory.
pub const XEN_HVM_MEMMAP_TYPE_PMEM: u32 = 7;

/// One region of the memory map. All OUT.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HvmMemmapTableEntry {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// `XEN_HVM_MEMMAP_TYPE_*`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

layout!(HvmMemmapTableEntry: 24 { addr @ 0, size @ 8, kind @ 16, reserved @ 20 });
