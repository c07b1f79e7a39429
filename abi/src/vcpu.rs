//! Virtual CPUs: `vcpu_op(op, vcpu, arg)`.
//!
//! Source: public/vcpu.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Give a vCPU its first state, once: `VcpuGuestContext`.
pub const VCPUOP_INITIALISE: u32 = 0;
/// Let an initialised vCPU run.
pub const VCPUOP_UP: u32 = 1;
/// Stop a vCPU.
pub const VCPUOP_DOWN: u32 = 2;
/// Result: 1 when the vCPU is up, 0 when it is down.
pub const VCPUOP_IS_UP: u32 = 3;
/// How long a vCPU was in each state: [`VcpuRunstateInfo`].
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// Keep a copy of [`VcpuRunstateInfo`] in the guest's memory: [`VcpuRegisterRunstateMemoryArea`].
pub const VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5;
/// Start the periodic timer: [`VcpuSetPeriodicTimer`].
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
/// Stop the periodic timer.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// Start the one-shot timer of the calling vCPU: [`VcpuSetSingleshotTimer`].
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// Stop the one-shot timer of the calling vCPU.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;
/// Move the vCPU's part of the shared page into a frame of the guest, once: [`VcpuRegisterVcpuInfo`].
pub const VCPUOP_REGISTER_VCPU_INFO: u32 = 10;
/// Send the vCPU an NMI.
pub const VCPUOP_SEND_NMI: u32 = 11;
/// The physical processor that a pinned vCPU runs on: [`VcpuGetPhysid`].
pub const VCPUOP_GET_PHYSID: u32 = 12;
/// Keep a copy of the vCPU's time in the guest's memory: [`VcpuRegisterTimeMemoryArea`].
pub const VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13;

/// State: on a processor.
pub const RUNSTATE_RUNNING: i32 = 0;
/// State: ready, waiting for a processor.
pub const RUNSTATE_RUNNABLE: i32 = 1;
/// State: waiting for an event.
pub const RUNSTATE_BLOCKED: i32 = 2;
/// State: neither running nor waiting, for instance down or paused.
pub const RUNSTATE_OFFLINE: i32 = 3;
/// States that time is accounted to.
pub const RUNSTATE_COUNT: usize = 4;
/// In [`VcpuRunstateInfo::state_entry_time`] of the copy in the guest's memory: it is being written. Only with
/// `VMASST_TYPE_RUNSTATE_UPDATE_FLAG`.
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

/// OUT of [`VCPUOP_GET_RUNSTATE_INFO`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuRunstateInfo {
    /// OUT: `RUNSTATE_*`.
    pub state: i32,
    /// Padding.
    pub _pad: u32,
    /// OUT: system time in nanoseconds at which the vCPU entered this state.
    pub state_entry_time: u64,
    /// OUT: nanoseconds spent in each state.
    pub time: [u64; RUNSTATE_COUNT],
}

layout!(VcpuRunstateInfo: 48 { state @ 0, state_entry_time @ 8, time @ 16 });

/// Argument of [`VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuRegisterRunstateMemoryArea {
    /// IN: virtual address of a [`VcpuRunstateInfo`]; 0 ends the copying.
    pub addr: u64,
}

layout!(VcpuRegisterRunstateMemoryArea: 8 { addr @ 0 });

/// Argument of [`VCPUOP_SET_PERIODIC_TIMER`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSetPeriodicTimer {
    /// IN: nanoseconds between two timer interrupts; a millisecond at least.
    pub period_ns: u64,
}

layout!(VcpuSetPeriodicTimer: 8 { period_ns @ 0 });

/// In [`VcpuSetSingleshotTimer::flags`]: fail with ETIME if the time has passed.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1 << 0;

/// Argument of [`VCPUOP_SET_SINGLESHOT_TIMER`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSetSingleshotTimer {
    /// IN: system time in nanoseconds of the timer interrupt.
    pub timeout_abs_ns: u64,
    /// IN: 0 or [`VCPU_SSHOTTMR_FUTURE`].
    pub flags: u32,
    /// Padding.
    pub _pad: u32,
}

layout!(VcpuSetSingleshotTimer: 16 { timeout_abs_ns @ 0, flags @ 8 });

/// Argument of [`VCPUOP_REGISTER_VCPU_INFO`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuRegisterVcpuInfo {
    /// IN: machine frame of the new area.
    pub mfn: u64,
    /// IN: offset of the area in the frame, which must hold all of it.
    pub offset: u32,
    /// Not used.
    pub rsvd: u32,
}

layout!(VcpuRegisterVcpuInfo: 16 { mfn @ 0, offset @ 8, rsvd @ 12 });

/// OUT of [`VCPUOP_GET_PHYSID`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuGetPhysid {
    /// OUT: APIC identifier in the low half, ACPI's in the high half.
    pub phys_id: u64,
}

layout!(VcpuGetPhysid: 8 { phys_id @ 0 });

/// Argument of [`VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuRegisterTimeMemoryArea {
    /// IN: virtual address of a [`VcpuTimeInfo`](crate::shared_info::VcpuTimeInfo).
    pub addr: u64,
}

layout!(VcpuRegisterTimeMemoryArea: 8 { addr @ 0 });
