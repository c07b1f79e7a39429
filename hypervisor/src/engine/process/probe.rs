//! Whether this host can run the process engine, and what is missing if it cannot.

use std::arch::x86_64::{_xgetbv, CpuidResult};

use super::area::room;
use super::stub::{FPU_COMPONENTS, PKRU};
use super::sys;
use crate::host::host_cpuid;

/// What the process engine needs and this host does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The kernel is too old.
    #[error(
        "Linux {0}.{1} lacks what the process engine needs (seccomp listeners that signals cannot interrupt); use 5.19 \
         or newer"
    )]
    Kernel(u32, u32),
    /// The processor, or the kernel for it, lacks a feature.
    #[error(
        "the host does not offer {0}, which the process engine needs; use a processor from 2013 or later, or --engine \
         kvm"
    )]
    Processor(&'static str),
    /// The FPU state is larger than the engine's room for it.
    #[error(
        "the processor's extended state takes {0} bytes, more than the process engine has room for; use --engine kvm"
    )]
    FpuSize(u64),
}

/// What of the host's abilities matters here.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    fpu_size: u64,
}

/// FSGSBASE usable by programs, in AT_HWCAP2.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

impl Features {
    /// Looks at the kernel and the processor; makes no process.
    pub fn detect() -> Result<Self, Unavailable> {
        let (major, minor) = sys::kernel_version();
        if (major, minor) < (5, 19) {
            return Err(Unavailable::Kernel(major, minor));
        }
        // SAFETY: reads this process's auxiliary vector.
        if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE == 0 {
            return Err(Unavailable::Processor("FSGSBASE"));
        }
        if !std::arch::is_x86_feature_detected!("xsaveopt") {
            return Err(Unavailable::Processor("XSAVEOPT"));
        }
        // SAFETY: XSAVEOPT implies XSAVE, which Linux enables with OSXSAVE; XCR0 always exists.
        let enabled = unsafe { _xgetbv(0) };
        let leaf = |component| host_cpuid::query(0xd, component);
        // CPUID takes microseconds where a hypervisor answers it: once, where nothing is left out.
        // PKRU's few bytes make no difference, and most processors have it.
        let fpu_size = match enabled & (FPU_COMPONENTS | PKRU) {
            all if all == enabled => leaf(0).ebx.into(),
            components => image_size(components, leaf),
        };
        if fpu_size > room::FPU_SIZE {
            return Err(Unavailable::FpuSize(fpu_size));
        }
        Ok(Self { fpu_size })
    }
    /// Bytes of an FPU image with everything that XCR0 enables and a guest has.
    pub(super) fn fpu_size(self) -> u64 {
        self.fpu_size
    }
}

/// Bytes of an XSAVE area in the standard format (SDM volume 1, 13.4) with `components`, of which `leaf` tells
/// offset (EBX) and size (EAX): CPUID leaf 0xd.
fn image_size(components: u64, leaf: impl Fn(u32) -> CpuidResult) -> u64 {
    /// The legacy region, with x87 and SSE, and the header.
    const FIRST: u64 = 576;
    (2..63)
        .filter(|component| components & 1 << component != 0)
        .map(leaf)
        .map(|CpuidResult { eax: size, ebx: offset, .. }| u64::from(size) + u64::from(offset))
        .fold(FIRST, u64::max)
}

/// Whether the process engine works here.
pub fn probe() -> Result<(), Unavailable> {
    Features::detect().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor with AMX, whose tiles Linux leaves out of the signal frames of a program that has not asked for
    /// them: an image must not be taken for larger than what is there.
    #[test]
    fn tiles_do_not_count() {
        let leaf = |component| {
            let (eax, ebx) = match component {
                2 => (0x100, 0x240),
                5 => (0x40, 0x440),
                6 => (0x200, 0x480),
                7 => (0x400, 0x680),
                17 => (0x40, 0xac0),
                18 => (0x2000, 0xb00),
                _ => (0, 0),
            };
            CpuidResult { eax, ebx, ecx: 0, edx: 0 }
        };
        assert_eq!(image_size(0x600e7 & FPU_COMPONENTS, leaf), 0xa80);
        assert_eq!(image_size(0x600e7, leaf), 0x2b00);
        assert_eq!(image_size(7, leaf), 0x340);
        assert_eq!(image_size(3, leaf), 576);
    }
}
