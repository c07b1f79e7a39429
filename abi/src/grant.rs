//! Grants, by which a domain allows another to use a frame: `grant_table_op(op, array, count)`.
//!
//! The granting domain writes an entry into its table; the other names domain and entry to map it or copy from it. Each
//! element of the array carries a status (`GNTST_*`) of its own. Source: public/grant_table.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// A grant: the number of an entry in a domain's table.
pub type GrantRef = u32;
/// A mapping of a grant.
pub type GrantHandle = u32;

/// Entries reserved for fixed uses.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;
/// Entry of the console ring.
pub const GNTTAB_RESERVED_CONSOLE: GrantRef = 0;
/// Entry of the xenstore ring.
pub const GNTTAB_RESERVED_XENSTORE: GrantRef = 1;

/// In an entry's flags: nothing is granted.
pub const GTF_INVALID: u16 = 0;
/// In an entry's flags: a frame may be used.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// In an entry's flags: a frame may be given to this domain.
pub const GTF_ACCEPT_TRANSFER: u16 = 2;
/// In an entry's flags: another domain's grant is passed on; version 2.
pub const GTF_TRANSITIVE: u16 = 3;
/// In an entry's flags: the bits of the four values above.
pub const GTF_TYPE_MASK: u16 = 3;
/// In an entry's flags: read-only.
pub const GTF_READONLY: u16 = 1 << 2;
/// In an entry's flags, by the hypervisor: mapped for reading.
pub const GTF_READING: u16 = 1 << 3;
/// In an entry's flags, by the hypervisor: mapped for writing.
pub const GTF_WRITING: u16 = 1 << 4;
/// In an entry's flags: map it with PWT.
pub const GTF_PWT: u16 = 1 << 5;
/// In an entry's flags: map it with PCD.
pub const GTF_PCD: u16 = 1 << 6;
/// In an entry's flags: map it with PAT.
pub const GTF_PAT: u16 = 1 << 7;
/// In an entry's flags: a part of the frame, to copy from or to; version 2.
pub const GTF_SUB_PAGE: u16 = 1 << 8;
/// In an entry's flags, by the hypervisor: a transfer to this domain is in progress.
pub const GTF_TRANSFER_COMMITTED: u16 = 1 << 2;
/// In an entry's flags, by the hypervisor: the transfer is complete.
pub const GTF_TRANSFER_COMPLETED: u16 = 1 << 3;

/// An entry of the table, version 1.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantEntryV1 {
    /// IN/OUT: `GTF_*`; written last by the guest.
    pub flags: u16,
    /// IN: domain that may use it.
    pub domid: DomId,
    /// IN: frame granted, its low 32 bits; OUT: frame received by a transfer.
    pub frame: u32,
}

layout!(GrantEntryV1: 8 { flags @ 0, domid @ 2, frame @ 4 });

/// An entry of the table, version 2, for a whole frame or a part of one.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantEntryV2 {
    /// IN: `GTF_*`; what the hypervisor sets is in the status array.
    pub flags: u16,
    /// IN: domain that may use it.
    pub domid: DomId,
    /// IN: [`GTF_SUB_PAGE`]: first byte. [`GTF_TRANSITIVE`]: domain whose grant it is.
    pub page_off: u16,
    /// IN: [`GTF_SUB_PAGE`]: bytes.
    pub length: u16,
    /// IN: frame granted. [`GTF_TRANSITIVE`]: the other grant in the low half.
    pub frame: u64,
}

layout!(GrantEntryV2: 16 { flags @ 0, domid @ 2, page_off @ 4, length @ 6, frame @ 8 });

/// Map grants: [`GnttabMapGrantRef`].
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// Unmap grants: [`GnttabUnmapGrantRef`].
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// Grow a table to a number of frames, and list them: [`GnttabSetupTable`].
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// Print a table on the hypervisor's console: [`GnttabDumpTable`].
pub const GNTTABOP_DUMP_TABLE: u32 = 3;
/// Transfer frames to another domain: [`GnttabTransfer`].
pub const GNTTABOP_TRANSFER: u32 = 4;
/// Copy between frames: [`GnttabCopy`].
pub const GNTTABOP_COPY: u32 = 5;
/// A table's current and maximum size: [`GnttabQuerySize`].
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Unmap grants and move other mappings there: [`GnttabUnmapAndReplace`].
pub const GNTTABOP_UNMAP_AND_REPLACE: u32 = 7;
/// Choose the entries' version: [`GnttabSetVersion`].
pub const GNTTABOP_SET_VERSION: u32 = 8;
/// Frames of the status array, version 2: [`GnttabGetStatusFrames`].
pub const GNTTABOP_GET_STATUS_FRAMES: u32 = 9;
/// The entries' version: [`GnttabGetVersion`].
pub const GNTTABOP_GET_VERSION: u32 = 10;
/// Exchange two entries: [`GnttabSwapGrantRef`].
pub const GNTTABOP_SWAP_GRANT_REF: u32 = 11;
/// Write back or invalidate caches for a frame: [`GnttabCacheFlush`].
pub const GNTTABOP_CACHE_FLUSH: u32 = 12;

/// Status: done.
pub const GNTST_OKAY: i16 = 0;
/// Status: failed for another reason than those below.
pub const GNTST_GENERAL_ERROR: i16 = -1;
/// Status: no such domain.
pub const GNTST_BAD_DOMAIN: i16 = -2;
/// Status: no such grant, or not of this kind.
pub const GNTST_BAD_GNTREF: i16 = -3;
/// Status: no such mapping.
pub const GNTST_BAD_HANDLE: i16 = -4;
/// Status: nothing can be mapped at that virtual address.
pub const GNTST_BAD_VIRT_ADDR: i16 = -5;
/// Status: wrong device address.
pub const GNTST_BAD_DEV_ADDR: i16 = -6;
/// Status: no room for device mappings.
pub const GNTST_NO_DEVICE_SPACE: i16 = -7;
/// Status: not allowed.
pub const GNTST_PERMISSION_DENIED: i16 = -8;
/// Status: the frame cannot be used for that.
pub const GNTST_BAD_PAGE: i16 = -9;
/// Status: a copy runs over the end of a page.
pub const GNTST_BAD_COPY_ARG: i16 = -10;
/// Status: the frame's number is too large for the receiver.
pub const GNTST_ADDRESS_TOO_BIG: i16 = -11;
/// Status: try again later.
pub const GNTST_EAGAIN: i16 = -12;
/// Status: no room, for instance for another mapping.
pub const GNTST_NO_SPACE: i16 = -13;

/// In [`GnttabMapGrantRef::flags`]: map for devices.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
/// In [`GnttabMapGrantRef::flags`]: map for the processor.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// In [`GnttabMapGrantRef::flags`]: map read-only.
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// In [`GnttabMapGrantRef::flags`]: map for user mode too.
pub const GNTMAP_APPLICATION_MAP: u32 = 1 << 3;
/// In [`GnttabMapGrantRef::flags`]: the address is the machine address of a page-table entry.
pub const GNTMAP_CONTAINS_PTE: u32 = 1 << 4;
/// In [`GnttabMapGrantRef::flags`]: the first of the entry's bits available to software.
pub const GNTMAP_GUEST_AVAIL_MASK: u32 = 0xffff_0000;

/// Element of [`GNTTABOP_MAP_GRANT_REF`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabMapGrantRef {
    /// IN: virtual address to map at, or machine address of a page-table entry.
    pub host_addr: u64,
    /// IN: `GNTMAP_*`.
    pub flags: u32,
    /// IN: the grant.
    pub r#ref: GrantRef,
    /// IN: domain whose grant it is.
    pub dom: DomId,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// OUT: handle of the mapping.
    pub handle: GrantHandle,
    /// OUT: address for devices.
    pub dev_bus_addr: u64,
}

layout!(GnttabMapGrantRef: 32 {
    host_addr @ 0, flags @ 8, r#ref @ 12, dom @ 16, status @ 18, handle @ 20, dev_bus_addr @ 24,
});

/// Element of [`GNTTABOP_UNMAP_GRANT_REF`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabUnmapGrantRef {
    /// IN: as when it was mapped; 0 to leave the processor's mapping.
    pub host_addr: u64,
    /// IN: address for devices; 0 to leave it.
    pub dev_bus_addr: u64,
    /// IN: the mapping.
    pub handle: GrantHandle,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad: u16,
}

layout!(GnttabUnmapGrantRef: 24 { host_addr @ 0, dev_bus_addr @ 8, handle @ 16, status @ 20 });

/// Element of [`GNTTABOP_UNMAP_AND_REPLACE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabUnmapAndReplace {
    /// IN: virtual address to unmap.
    pub host_addr: u64,
    /// IN: virtual address whose mapping moves there.
    pub new_addr: u64,
    /// IN: the mapping.
    pub handle: GrantHandle,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad: u16,
}

layout!(GnttabUnmapAndReplace: 24 { host_addr @ 0, new_addr @ 8, handle @ 16, status @ 20 });

/// Element of [`GNTTABOP_SETUP_TABLE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabSetupTable {
    /// IN: domain.
    pub dom: DomId,
    /// Padding.
    pub _pad0: u16,
    /// IN: frames that the table must have at least, and entries of the array.
    pub nr_frames: u32,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad1: [u16; 3],
    /// IN: address of an array of 64-bit frame numbers.
    pub frame_list: u64,
}

layout!(GnttabSetupTable: 24 { dom @ 0, nr_frames @ 4, status @ 8, frame_list @ 16 });

/// Element of [`GNTTABOP_DUMP_TABLE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabDumpTable {
    /// IN: domain.
    pub dom: DomId,
    /// OUT: `GNTST_*`.
    pub status: i16,
}

layout!(GnttabDumpTable: 4 { dom @ 0, status @ 2 });

/// Element of [`GNTTABOP_TRANSFER`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabTransfer {
    /// IN: frame to give away.
    pub mfn: u64,
    /// IN: receiver.
    pub domid: DomId,
    /// Padding.
    pub _pad0: u16,
    /// IN: the receiver's grant.
    pub r#ref: GrantRef,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad1: [u16; 3],
}

layout!(GnttabTransfer: 24 { mfn @ 0, domid @ 8, r#ref @ 12, status @ 16 });

/// In [`GnttabCopy::flags`]: the source is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// In [`GnttabCopy::flags`]: the destination is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// One side of a copy.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabCopyPtr {
    /// IN: a frame, or a grant in the low half.
    pub u: u64,
    /// IN: domain.
    pub domid: DomId,
    /// IN: first byte in the frame.
    pub offset: u16,
    /// Padding.
    pub _pad: u32,
}

layout!(GnttabCopyPtr: 16 { u @ 0, domid @ 8, offset @ 10 });

/// Element of [`GNTTABOP_COPY`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabCopy {
    /// IN: from.
    pub source: GnttabCopyPtr,
    /// IN: to.
    pub dest: GnttabCopyPtr,
    /// IN: bytes.
    pub len: u16,
    /// IN: `GNTCOPY_*`.
    pub flags: u16,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad: u16,
}

layout!(GnttabCopy: 40 { source @ 0, dest @ 16, len @ 32, flags @ 34, status @ 36 });

/// Element of [`GNTTABOP_QUERY_SIZE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabQuerySize {
    /// IN: domain.
    pub dom: DomId,
    /// Padding.
    pub _pad0: u16,
    /// OUT: frames that the table has.
    pub nr_frames: u32,
    /// OUT: frames that it can have.
    pub max_nr_frames: u32,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad1: u16,
}

layout!(GnttabQuerySize: 16 { dom @ 0, nr_frames @ 4, max_nr_frames @ 8, status @ 12 });

/// Argument of [`GNTTABOP_SET_VERSION`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabSetVersion {
    /// IN: version wished for. OUT: version in use.
    pub version: u32,
}

layout!(GnttabSetVersion: 4 { version @ 0 });

/// Argument of [`GNTTABOP_GET_STATUS_FRAMES`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabGetStatusFrames {
    /// IN: entries of the array.
    pub nr_frames: u32,
    /// IN: domain.
    pub dom: DomId,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// IN: address of an array of 64-bit frame numbers.
    pub frame_list: u64,
}

layout!(GnttabGetStatusFrames: 16 { nr_frames @ 0, dom @ 4, status @ 6, frame_list @ 8 });

/// Argument of [`GNTTABOP_GET_VERSION`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabGetVersion {
    /// IN: domain.
    pub dom: DomId,
    /// Padding.
    pub pad: u16,
    /// OUT: version in use.
    pub version: u32,
}

layout!(GnttabGetVersion: 8 { dom @ 0, pad @ 2, version @ 4 });

/// Element of [`GNTTABOP_SWAP_GRANT_REF`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabSwapGrantRef {
    /// IN: one entry.
    pub ref_a: GrantRef,
    /// IN: the other.
    pub ref_b: GrantRef,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// Padding.
    pub _pad: u16,
}

layout!(GnttabSwapGrantRef: 12 { ref_a @ 0, ref_b @ 4, status @ 8 });

/// In [`GnttabCacheFlush::op`]: write back.
pub const GNTTAB_CACHE_CLEAN: u32 = 1 << 0;
/// In [`GnttabCacheFlush::op`]: invalidate.
pub const GNTTAB_CACHE_INVAL: u32 = 1 << 1;
/// In [`GnttabCacheFlush::op`]: the frame is named by a grant.
pub const GNTTAB_CACHE_SOURCE_GREF: u32 = 1 << 31;

/// Element of [`GNTTABOP_CACHE_FLUSH`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GnttabCacheFlush {
    /// IN: address for devices, or a grant in the low half.
    pub a: u64,
    /// IN: first byte in the frame.
    pub offset: u16,
    /// IN: bytes.
    pub length: u16,
    /// IN: `GNTTAB_CACHE_*`.
    pub op: u32,
}

layout!(GnttabCacheFlush: 16 { a @ 0, offset @ 8, length @ 10, op @ 12 });
