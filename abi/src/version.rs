//! The hypervisor's version and features: `xen_version(op, arg)`.
//!
//! The result is 0 unless an operation states another. Source: public/version.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// No argument. Result: major version in bits 16 and up, minor in bits 0 to 15.
pub const XENVER_VERSION: u32 = 0;
/// Argument: [`XenExtraversion`].
pub const XENVER_EXTRAVERSION: u32 = 1;
/// Argument: [`XenCompileInfo`].
pub const XENVER_COMPILE_INFO: u32 = 2;
/// Argument: [`XEN_CAPABILITIES_INFO_LEN`] bytes, the guest kinds that can be run, separated by spaces.
pub const XENVER_CAPABILITIES: u32 = 3;
/// Argument: [`XEN_CHANGESET_INFO_LEN`] bytes, the source's version.
pub const XENVER_CHANGESET: u32 = 4;
/// Argument: [`XenPlatformParameters`].
pub const XENVER_PLATFORM_PARAMETERS: u32 = 5;
/// Argument: [`XenFeatureInfo`].
pub const XENVER_GET_FEATURES: u32 = 6;
/// No argument. Result: bytes in a page.
pub const XENVER_PAGESIZE: u32 = 7;
/// Argument: 16 bytes, the UUID of the guest.
pub const XENVER_GUEST_HANDLE: u32 = 8;
/// Argument: [`XEN_COMMANDLINE_LEN`] bytes, the hypervisor's command line; for privileged domains.
pub const XENVER_COMMANDLINE: u32 = 9;
/// Argument: a [`XenBuildId`] and the buffer after it, or null. Result: bytes of the build's identifier.
pub const XENVER_BUILD_ID: u32 = 10;

/// Bytes that [`XENVER_EXTRAVERSION`] writes.
pub const XEN_EXTRAVERSION_LEN: usize = 16;
/// Bytes that [`XENVER_CAPABILITIES`] writes.
pub const XEN_CAPABILITIES_INFO_LEN: usize = 1024;
/// Bytes that [`XENVER_CHANGESET`] writes.
pub const XEN_CHANGESET_INFO_LEN: usize = 64;
/// Bytes that [`XENVER_COMMANDLINE`] writes.
pub const XEN_COMMANDLINE_LEN: usize = 1024;

/// OUT of [`XENVER_EXTRAVERSION`]: what follows the minor version, zero-terminated.
pub type XenExtraversion = [u8; XEN_EXTRAVERSION_LEN];
/// OUT of [`XENVER_GUEST_HANDLE`]: a UUID, most significant byte first.
pub type XenDomainHandle = [u8; 16];

/// Result of [`XENVER_VERSION`] for a version `major.minor`.
#[must_use]
pub const fn make_version(major: u16, minor: u16) -> u32 {
    ((major as u32) << 16) | minor as u32
}

/// OUT of [`XENVER_COMPILE_INFO`]: zero-terminated strings.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenCompileInfo {
    /// OUT: compiler.
    pub compiler: [u8; 64],
    /// OUT: who built it.
    pub compile_by: [u8; 16],
    /// OUT: where it was built.
    pub compile_domain: [u8; 32],
    /// OUT: when it was built.
    pub compile_date: [u8; 32],
}

layout!(XenCompileInfo: 144 { compiler @ 0, compile_by @ 64, compile_domain @ 80, compile_date @ 112 });
default_is_zeroed!(XenCompileInfo);

/// OUT of [`XENVER_PLATFORM_PARAMETERS`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenPlatformParameters {
    /// OUT: first virtual address of the hypervisor's range.
    pub virt_start: u64,
}

layout!(XenPlatformParameters: 8 { virt_start @ 0 });

/// Argument of [`XENVER_GET_FEATURES`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenFeatureInfo {
    /// IN: which group of 32 features.
    pub submap_idx: u32,
    /// OUT: a bit per feature: `XENFEAT_*` modulo 32.
    pub submap: u32,
}

layout!(XenFeatureInfo: 8 { submap_idx @ 0, submap @ 4 });

/// Head of the argument of [`XENVER_BUILD_ID`]; the buffer follows it.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenBuildId {
    /// IN: bytes in the buffer.
    pub len: u32,
}

layout!(XenBuildId: 4 { len @ 0 });
