//! The page that guest and hypervisor share: pending events, masks, time.
//!
//! Both sides read and write it concurrently, so each field needs atomic accesses. Source: public/xen.h,
//! public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// vCPUs whose [`VcpuInfo`] is in the shared page; further vCPUs register an area elsewhere.
pub const XEN_LEGACY_MAX_VCPUS: usize = 32;
/// Words in each bitmap of event channels.
pub const EVTCHN_WORDS: usize = 64;
/// Channels per word of a bitmap, and words per bit of the selector.
pub const EVTCHN_BITS_PER_WORD: u32 = 64;

/// In [`VcpuTimeInfo::flags`]: time is monotonic over all vCPUs.
pub const XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1 << 0;
/// In [`VcpuTimeInfo::flags`]: the hypervisor has paused the guest, which watchdogs should take into account.
pub const XEN_PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// The parameters by which a vCPU computes system time from its TSC.
///
/// `system_time + (((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32)` is the time now; a negative shift
/// goes right. A reader reads `version` before and after, and starts over if it is odd or has changed.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuTimeInfo {
    /// OUT: odd while the rest is being written; incremented before and after each update.
    pub version: u32,
    /// Padding.
    pub pad0: u32,
    /// OUT: TSC at the last update.
    pub tsc_timestamp: u64,
    /// OUT: nanoseconds since boot at the last update.
    pub system_time: u64,
    /// OUT: nanoseconds per shifted TSC tick, as a fraction of 2^32.
    pub tsc_to_system_mul: u32,
    /// OUT: power of two that a TSC difference is multiplied with before the fraction.
    pub tsc_shift: i8,
    /// OUT: `XEN_PVCLOCK_*`.
    pub flags: u8,
    /// Padding.
    pub pad1: [u8; 2],
}

layout!(VcpuTimeInfo: 32 {
    version @ 0, pad0 @ 4, tsc_timestamp @ 8, system_time @ 16, tsc_to_system_mul @ 24, tsc_shift @ 28, flags @ 29,
    pad1 @ 30,
});

/// The x86-64 part of [`VcpuInfo`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchVcpuInfo {
    /// OUT: address of the last page fault delivered; the guest reads it in place of CR2.
    pub cr2: u64,
    /// Padding, which makes [`VcpuInfo`] 64 bytes long.
    pub pad: u64,
}

layout!(ArchVcpuInfo: 16 { cr2 @ 0, pad @ 8 });

/// The area that the hypervisor shares with one vCPU.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuInfo {
    /// OUT: not 0 when events are pending; the guest clears it before it looks for them.
    pub evtchn_upcall_pending: u8,
    /// IN/OUT: the virtual interrupt flag, inverted: while it is not 0 no upcall is made. Set on entry to an upcall,
    /// and to a trap whose handler asks for it.
    pub evtchn_upcall_mask: u8,
    /// Padding.
    pub _pad: [u8; 6],
    /// OUT: one bit for each word of [`SharedInfo::evtchn_pending`] with a new event; the guest clears it.
    pub evtchn_pending_sel: u64,
    /// OUT: the architecture's part.
    pub arch: ArchVcpuInfo,
    /// OUT: time.
    pub time: VcpuTimeInfo,
}

layout!(VcpuInfo: 64 {
    evtchn_upcall_pending @ 0, evtchn_upcall_mask @ 1, evtchn_pending_sel @ 8, arch @ 16, time @ 32,
});

/// Where the guest tells tools about its p2m list. All IN, except `nmi_reason`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchSharedInfo {
    /// IN: entries in the p2m list.
    pub max_pfn: u64,
    /// IN: root frame of the three-level p2m tree; 0 if it is not set up yet, all ones if only the linear list is
    /// valid.
    pub pfn_to_mfn_frame_list_list: u64,
    /// OUT: reason of an NMI: `XEN_NMIREASON_*`.
    pub nmi_reason: u64,
    /// IN: CR3 of the address space of `p2m_vaddr`; 0 if the linear list is not used.
    pub p2m_cr3: u64,
    /// IN: virtual address of the linear p2m list.
    pub p2m_vaddr: u64,
    /// IN: incremented before and after each change of the list's mappings; odd during a change.
    pub p2m_generation: u64,
}

layout!(ArchSharedInfo: 48 {
    max_pfn @ 0, pfn_to_mfn_frame_list_list @ 8, nmi_reason @ 16, p2m_cr3 @ 24, p2m_vaddr @ 32, p2m_generation @ 40,
});

/// The shared-info page: one per domain, at the machine address that the start info gives.
///
/// A channel becomes pending in `evtchn_pending`; unless it is masked in `evtchn_mask`, its word's bit is set in the
/// bound vCPU's selector, and that vCPU's `evtchn_upcall_pending` is set.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedInfo {
    /// Per vCPU.
    pub vcpu_info: [VcpuInfo; XEN_LEGACY_MAX_VCPUS],
    /// IN/OUT: a bit per channel, set by the hypervisor, cleared by the guest.
    pub evtchn_pending: [u64; EVTCHN_WORDS],
    /// IN: a bit per channel that makes no upcall while it is set.
    pub evtchn_mask: [u64; EVTCHN_WORDS],
    /// OUT: odd while the wall clock is being written.
    pub wc_version: u32,
    /// OUT: seconds since 1970 at system time 0, low half.
    pub wc_sec: u32,
    /// OUT: nanoseconds beyond `wc_sec`.
    pub wc_nsec: u32,
    /// OUT: seconds since 1970 at system time 0, high half.
    pub wc_sec_hi: u32,
    /// The architecture's part.
    pub arch: ArchSharedInfo,
}

layout!(SharedInfo: 3136 {
    vcpu_info @ 0, evtchn_pending @ 2048, evtchn_mask @ 2560, wc_version @ 3072, wc_sec @ 3076, wc_nsec @ 3080,
    wc_sec_hi @ 3084, arch @ 3088,
});
default_is_zeroed!(SharedInfo);
