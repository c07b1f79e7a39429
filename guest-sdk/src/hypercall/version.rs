//! `xen_version`: what the hypervisor is.

use paravane_abi::Errno;
use paravane_abi::hypercall::XEN_VERSION;
use paravane_abi::version::{
    XENVER_EXTRAVERSION, XENVER_GET_FEATURES, XENVER_VERSION, XenExtraversion, XenFeatureInfo,
};

use super::{call, operation};

/// Major and minor version. The cheapest call: it reads and changes no memory.
///
/// # Errors
/// Never for a PV domain.
pub fn version() -> Result<(u16, u16), Errno> {
    // SAFETY: no argument.
    let version = unsafe { call(XEN_VERSION, [u64::from(XENVER_VERSION), 0]) }?;
    Ok(((version >> 16) as u16, version as u16))
}

/// What follows the minor version, zero-terminated.
///
/// # Errors
/// Never for a PV domain.
pub fn extraversion() -> Result<XenExtraversion, Errno> {
    let mut extra = XenExtraversion::default();
    // SAFETY: the structure of this operation.
    unsafe { operation(XEN_VERSION, XENVER_EXTRAVERSION, &mut extra) }.map(|_| extra)
}

/// The features that the hypervisor offers this domain: a bit for each `XENFEAT_*` below 32.
///
/// # Errors
/// Never for a PV domain.
pub fn features() -> Result<u32, Errno> {
    let mut info = XenFeatureInfo::default();
    // SAFETY: the structure of this operation.
    unsafe { operation(XEN_VERSION, XENVER_GET_FEATURES, &mut info) }.map(|_| info.submap)
}
