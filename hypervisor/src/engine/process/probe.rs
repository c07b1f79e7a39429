//! Whether this host can run the process engine, and what is missing if it cannot.

use std::arch::x86_64::__cpuid_count;

use super::area::room;
use super::sys;

/// What the process engine needs and this host does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The kernel is too old.
    #[error(
        "Linux {0}.{1} lacks what the process engine needs (seccomp listeners that signals cannot interrupt); use 5.19 or newer"
    )]
    Kernel(u32, u32),
    /// The processor, or the kernel for it, lacks a feature.
    #[error(
        "the host does not offer {0}, which the process engine needs; use a processor from 2013 or later, or --engine kvm"
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
        let fpu_size = u64::from(__cpuid_count(0xd, 0).ebx);
        if fpu_size > room::FPU_SIZE {
            return Err(Unavailable::FpuSize(fpu_size));
        }
        Ok(Self { fpu_size })
    }
    /// Bytes of an FPU image with everything that XCR0 enables.
    pub(super) fn fpu_size(self) -> u64 {
        self.fpu_size
    }
    /// One line for people.
    pub(super) fn describe(self) -> String {
        "sandboxed processes; CPUID and RDTSC are the host's".into()
    }
}

/// Whether the process engine works here.
pub fn probe() -> Result<(), Unavailable> {
    Features::detect().map(|_| ())
}
