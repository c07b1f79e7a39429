//! Memory: `memory_op(op, arg)`.
//!
//! In this module *frame* means a machine frame number and *page* a pseudo-physical one; a PV guest uses both.
//! Source: public/memory.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// Get more frames: [`XenMemoryReservation`]. Result: extents allocated.
pub const XENMEM_INCREASE_RESERVATION: u32 = 0;
/// Free frames: [`XenMemoryReservation`]. Result: extents freed.
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
/// No argument. Result: the largest machine frame number of the machine's memory.
pub const XENMEM_MAXIMUM_RAM_PAGE: u32 = 2;
/// Argument: [`XenMemoryDomain`]. Result: frames that the domain owns.
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
/// Argument: [`XenMemoryDomain`]. Result: frames that the domain may own.
pub const XENMEM_MAXIMUM_RESERVATION: u32 = 4;
/// List the 2-MiB extents that hold the machine-to-physical table: [`XenMachphysMfnList`].
pub const XENMEM_MACHPHYS_MFN_LIST: u32 = 5;
/// Allocate frames for pages: [`XenMemoryReservation`]. Result: extents allocated.
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
/// Place a page in a translated guest's map: [`XenAddToPhysmap`].
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;
/// The domain's memory map at its start: [`XenMemoryMap`].
pub const XENMEM_MEMORY_MAP: u32 = 9;
/// The machine's memory map: [`XenMemoryMap`]; for privileged domains.
pub const XENMEM_MACHINE_MEMORY_MAP: u32 = 10;
/// Exchange frames for others: [`XenMemoryExchange`].
pub const XENMEM_EXCHANGE: u32 = 11;
/// The address of the machine-to-physical table: [`XenMachphysMapping`].
pub const XENMEM_MACHPHYS_MAPPING: u32 = 12;
/// Set what [`XENMEM_MEMORY_MAP`] returns to a domain: [`XenForeignMemoryMap`].
pub const XENMEM_SET_MEMORY_MAP: u32 = 13;
/// Argument: [`XenMemoryDomain`]. Result: the largest page number that the domain uses.
pub const XENMEM_MAXIMUM_GPFN: u32 = 14;
/// Remove a page from a translated guest's map: [`XenRemoveFromPhysmap`].
pub const XENMEM_REMOVE_FROM_PHYSMAP: u32 = 15;
/// Set the target of populate-on-demand memory.
pub const XENMEM_SET_POD_TARGET: u32 = 16;
/// Ask for the target of populate-on-demand memory.
pub const XENMEM_GET_POD_TARGET: u32 = 17;
/// [`XENMEM_ADD_TO_PHYSMAP`] for many pages.
pub const XENMEM_ADD_TO_PHYSMAP_BATCH: u32 = 23;
/// Reserve a quantity of memory for a domain to be built; for privileged domains.
pub const XENMEM_CLAIM_PAGES: u32 = 24;
/// As [`XENMEM_MACHPHYS_MFN_LIST`], for the table of 32-bit guests.
pub const XENMEM_MACHPHYS_COMPAT_MFN_LIST: u32 = 25;
/// The guest's virtual NUMA topology: [`XenVnumaTopologyInfo`].
pub const XENMEM_GET_VNUMAINFO: u32 = 26;
/// Regions that devices reserve; for tools.
pub const XENMEM_RESERVED_DEVICE_MEMORY_MAP: u32 = 27;
/// Map a resource of another domain; for tools.
pub const XENMEM_ACQUIRE_RESOURCE: u32 = 28;

/// In `mem_flags`: the bits that limit how many address bits a frame may need; 0 is no limit.
pub const XENMEMF_ADDRESS_BITS_MASK: u32 = 0xff;
/// In `mem_flags`: where the NUMA node starts, stored plus one in eight bits.
pub const XENMEMF_NODE_SHIFT: u32 = 8;
/// In `mem_flags`: populate on demand.
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
/// In `mem_flags`: from the given node only.
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
/// In `mem_flags`: the node is a virtual one.
pub const XENMEMF_VNODE: u32 = 1 << 18;

/// A list of extents: runs of `2^extent_order` frames, aligned to their size.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryReservation {
    /// Address of an array of 64-bit numbers, one per extent. Increase, OUT: first frame of each; may be null.
    /// Decrease, IN: first frame of each. Populate, IN: first page, then OUT: first frame of each.
    pub extent_start: u64,
    /// IN: extents in the array.
    pub nr_extents: u64,
    /// IN: log2 of the frames in an extent.
    pub extent_order: u32,
    /// IN: `XENMEMF_*`.
    pub mem_flags: u32,
    /// IN: domain whose memory changes: `DOMID_SELF`, unless the caller is privileged.
    pub domid: DomId,
    /// Padding.
    pub _pad: [u16; 3],
}

layout!(XenMemoryReservation: 32 { extent_start @ 0, nr_extents @ 8, extent_order @ 16, mem_flags @ 20, domid @ 24 });

/// Argument of [`XENMEM_EXCHANGE`]: as many frames out as in, for one domain.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryExchange {
    /// IN: the frames to free.
    pub in_: XenMemoryReservation,
    /// IN: the pages of these frames; OUT: their new frames.
    pub out: XenMemoryReservation,
    /// IN: 0. OUT: extents of `in` exchanged, all of them when the call succeeds.
    pub nr_exchanged: u64,
}

layout!(XenMemoryExchange: 72 { in_ @ 0, out @ 32, nr_exchanged @ 64 });

/// Argument of the questions about a domain's memory.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryDomain {
    /// IN: domain asked about.
    pub domid: DomId,
}

layout!(XenMemoryDomain: 2 { domid @ 0 });

/// Argument of [`XENMEM_MACHPHYS_MFN_LIST`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMachphysMfnList {
    /// IN: room in the array.
    pub max_extents: u32,
    /// Padding.
    pub _pad0: u32,
    /// IN: address of an array of 64-bit frame numbers. OUT: first frame of each 2-MiB extent, 0 for a gap.
    pub extent_start: u64,
    /// OUT: extents written.
    pub nr_extents: u32,
    /// Padding.
    pub _pad1: u32,
}

layout!(XenMachphysMfnList: 24 { max_extents @ 0, extent_start @ 8, nr_extents @ 16 });

/// Argument of [`XENMEM_MACHPHYS_MAPPING`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMachphysMapping {
    /// OUT: first virtual address of the table.
    pub v_start: u64,
    /// OUT: first virtual address after it.
    pub v_end: u64,
    /// OUT: the largest frame number that has an entry.
    pub max_mfn: u64,
}

layout!(XenMachphysMapping: 24 { v_start @ 0, v_end @ 8, max_mfn @ 16 });

/// Kind of page to place: the shared-info page.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
/// Kind of page to place: a page of the grant table.
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
/// Kind of page to place: a page of the guest.
pub const XENMAPSPACE_GMFN: u32 = 2;
/// Kind of page to place: several pages of the guest.
pub const XENMAPSPACE_GMFN_RANGE: u32 = 3;
/// Kind of page to place: a page of another domain.
pub const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;
/// Kind of page to place: device memory, on Arm.
pub const XENMAPSPACE_DEV_MMIO: u32 = 5;
/// In `idx` of [`XENMAPSPACE_GRANT_TABLE`]: a page of version 2's status array.
pub const XENMAPIDX_GRANT_TABLE_STATUS: u32 = 0x8000_0000;

/// Argument of [`XENMEM_ADD_TO_PHYSMAP`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenAddToPhysmap {
    /// IN: domain whose map changes.
    pub domid: DomId,
    /// IN: pages, for a range.
    pub size: u16,
    /// IN: `XENMAPSPACE_*`.
    pub space: u32,
    /// IN: which page of that kind.
    pub idx: u64,
    /// IN: page number to place it at.
    pub gpfn: u64,
}

layout!(XenAddToPhysmap: 24 { domid @ 0, size @ 2, space @ 4, idx @ 8, gpfn @ 16 });

/// Argument of [`XENMEM_REMOVE_FROM_PHYSMAP`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenRemoveFromPhysmap {
    /// IN: domain whose map changes.
    pub domid: DomId,
    /// Padding.
    pub _pad: [u16; 3],
    /// IN: page number to remove.
    pub gpfn: u64,
}

layout!(XenRemoveFromPhysmap: 16 { domid @ 0, gpfn @ 8 });

/// Argument of [`XENMEM_MEMORY_MAP`] and [`XENMEM_MACHINE_MEMORY_MAP`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenMemoryMap {
    /// IN: room in the buffer, in entries. OUT: entries written.
    pub nr_entries: u32,
    /// Padding.
    pub _pad: u32,
    /// IN: address of an array of [`E820Entry`].
    pub buffer: u64,
}

layout!(XenMemoryMap: 16 { nr_entries @ 0, buffer @ 8 });

/// Argument of [`XENMEM_SET_MEMORY_MAP`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenForeignMemoryMap {
    /// IN: the domain.
    pub domid: DomId,
    /// Padding.
    pub _pad: [u16; 3],
    /// IN: its map.
    pub map: XenMemoryMap,
}

layout!(XenForeignMemoryMap: 24 { domid @ 0, map @ 8 });

/// One region of a memory map, in the form of the BIOS call INT 15h, EAX = E820h: 20 bytes, no padding.
#[repr(C, packed(4))]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct E820Entry {
    /// OUT: first address.
    pub addr: u64,
    /// OUT: bytes.
    pub size: u64,
    /// OUT: `E820_*`.
    pub kind: u32,
}

layout!(E820Entry: 20 { addr @ 0, size @ 8, kind @ 16 });

/// A region of usable memory. Source for these: ACPI, 15.1.
pub const E820_RAM: u32 = 1;
/// A region not to be used.
pub const E820_RESERVED: u32 = 2;
/// ACPI tables; usable memory once they have been read.
pub const E820_ACPI: u32 = 3;
/// Memory that the firmware preserves over sleep states.
pub const E820_NVS: u32 = 4;
/// Memory with errors.
pub const E820_UNUSABLE: u32 = 5;

/// One memory range of a virtual NUMA node.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenVmemrange {
    /// OUT: first address.
    pub start: u64,
    /// OUT: first address after it.
    pub end: u64,
    /// OUT: flags, none defined.
    pub flags: u32,
    /// OUT: the node.
    pub nid: u32,
}

layout!(XenVmemrange: 24 { start @ 0, end @ 8, flags @ 16, nid @ 20 });

/// Argument of [`XENMEM_GET_VNUMAINFO`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenVnumaTopologyInfo {
    /// IN: domain asked about.
    pub domid: DomId,
    /// Padding.
    pub pad: u16,
    /// IN: room for nodes; OUT: nodes.
    pub nr_vnodes: u32,
    /// IN: room for vCPUs; OUT: vCPUs.
    pub nr_vcpus: u32,
    /// IN: room for ranges; OUT: ranges.
    pub nr_vmemranges: u32,
    /// IN: address of an array of 32-bit distances, `nr_vnodes` squared.
    pub vdistance: u64,
    /// IN: address of an array of 32-bit nodes, one per vCPU.
    pub vcpu_to_vnode: u64,
    /// IN: address of an array of [`XenVmemrange`].
    pub vmemrange: u64,
}

layout!(XenVnumaTopologyInfo: 40 {
    domid @ 0, pad @ 2, nr_vnodes @ 4, nr_vcpus @ 8, nr_vmemranges @ 12, vdistance @ 16, vcpu_to_vnode @ 24,
    vmemrange @ 32,
});
