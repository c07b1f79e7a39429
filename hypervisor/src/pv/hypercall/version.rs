//! xen_version: who this is and what it offers (public/version.h).

use paravane_abi::addr::{HYPERVISOR_VIRT_START, PAGE_SIZE};
use paravane_abi::errno::Errno;
use paravane_abi::features::*;
use paravane_abi::version::*;

use super::{Call, HypercallResult, done};
use crate::pv::guest_pointer::GuestPtr;

/// The version of the interface that is implemented: Xen 4.17's.
pub const VERSION: (u16, u16) = (4, 17);
const EXTRAVERSION: &str = concat!(".pv", env!("CARGO_PKG_VERSION"));
const CAPABILITIES: &str = "xen-3.0-x86_64";

/// Feature bits that every domain has.
pub const FEATURES: u32 = 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
    | 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS
    | 1 << XENFEAT_PAE_PGDIR_ABOVE_4GB;

/// xen_version(command, argument).
pub fn xen_version(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    match command.low32() {
        XENVER_VERSION => done(u64::from(make_version(VERSION.0, VERSION.1))),
        XENVER_EXTRAVERSION => text::<XEN_EXTRAVERSION_LEN>(call, argument.pointer(), EXTRAVERSION),
        XENVER_CAPABILITIES => text::<XEN_CAPABILITIES_INFO_LEN>(call, argument.pointer(), CAPABILITIES),
        XENVER_CHANGESET => text::<XEN_CHANGESET_INFO_LEN>(call, argument.pointer(), "unavailable"),
        XENVER_COMPILE_INFO => {
            let mut info = XenCompileInfo::default();
            fill(&mut info.compiler, "rustc");
            fill(&mut info.compile_by, "paravane");
            call.guest().write(argument.pointer(), &info)?;
            done(0)
        }
        XENVER_PLATFORM_PARAMETERS => {
            call.guest()
                .write(argument.pointer(), &XenPlatformParameters { virt_start: HYPERVISOR_VIRT_START })?;
            done(0)
        }
        XENVER_GET_FEATURES => {
            let mut info: XenFeatureInfo = call.guest().read(argument.pointer())?;
            info.submap = if info.submap_idx == 0 { FEATURES } else { 0 };
            if info.submap_idx >= XENFEAT_NR_SUBMAPS {
                return Err(Errno::EINVAL);
            }
            call.guest().write(argument.pointer(), &info)?;
            done(0)
        }
        XENVER_PAGESIZE => done(PAGE_SIZE),
        XENVER_GUEST_HANDLE => {
            call.guest().write(argument.pointer(), &[0u8; 16])?;
            done(0)
        }
        XENVER_COMMANDLINE => text::<XEN_COMMANDLINE_LEN>(call, argument.pointer(), ""),
        // This program has no build id (ENODATA, as from a Xen that was linked without one).
        XENVER_BUILD_ID => Err(Errno::ENODATA),
        _ => Err(Errno::ENOSYS),
    }
}

fn fill(field: &mut [u8], text: &str) {
    // The last byte stays 0: guests print these as C strings.
    let room = field.len().saturating_sub(1);
    for (to, from) in field.iter_mut().take(room).zip(text.bytes()) {
        *to = from;
    }
}

fn text<const N: usize>(call: &mut Call<'_>, to: GuestPtr<[u8; N]>, text: &str) -> HypercallResult {
    let mut field = [0; N];
    fill(&mut field, text);
    call.guest().write(to, &field)?;
    done(0)
}
