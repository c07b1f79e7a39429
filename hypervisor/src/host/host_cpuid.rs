//! The host's CPUID, also for threads in which the instruction faults.
//!
//! Where processor and kernel support CPUID faulting (arch_prctl, ARCH_SET_CPUID), the process engine turns it on for
//! its guest threads. The setting belongs to a thread, and each switch between two threads with different settings
//! writes an MSR. Where a hypervisor traps that write it takes 8 microseconds, several times a whole switch from host
//! to guest. The vCPU's thread, which alternates with its guest's thread, therefore has the same setting.
//!
//! What may not be done in such a thread: executing CPUID other than by [`query`]. Nothing here is async-signal-safe.
//!
//! Source: arch_prctl(2), Linux's arch/x86/kernel/process.c.

use std::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};
use std::cell::Cell;
use std::sync::OnceLock;

/// arch_prctl's ARCH_SET_CPUID: with 1 the calling thread may execute CPUID, with 0 the instruction raises #GP.
pub const ARCH_SET_CPUID: u64 = 0x1012;

thread_local! {
    static TRAPS: Cell<bool> = const { Cell::new(false) };
}

/// Sets whether this thread may execute CPUID. Returns whether the kernel did so.
fn set(allowed: bool) -> bool {
    // SAFETY: changes only what CPUID does in this thread, where only `query` executes it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, u64::from(allowed)) == 0 }
}

/// Whether CPUID can be made to trap on this host.
pub fn can_trap() -> bool {
    // Allowing what is allowed changes nothing, and fails where the kernel does not know the setting.
    TRAPS.get() || set(true)
}

/// CPUID faults in the calling thread until this value is dropped, which must happen in the same thread: elsewhere it
/// would be that thread that may execute CPUID again.
#[derive(Debug)]
pub struct Trapping(());

impl Trapping {
    /// `None` where CPUID faulting is not supported, or is on already.
    pub fn begin() -> Option<Self> {
        // The standard library executes CPUID at its first question and keeps the answer: ask before CPUID faults.
        let _ = std::arch::is_x86_feature_detected!("avx");
        let began = !TRAPS.get() && set(false);
        began.then(|| {
            TRAPS.set(true);
            Self(())
        })
    }
}

impl Drop for Trapping {
    fn drop(&mut self) {
        TRAPS.set(false);
        set(true);
    }
}

/// Lets the calling thread execute CPUID, if the thread that started it had it faulting: new threads inherit the
/// setting.
pub fn allow_in_new_thread() {
    set(true);
}

/// Executes CPUID, also where it faults in this thread.
pub fn query(function: u32, index: u32) -> CpuidResult {
    let traps = TRAPS.get();
    if traps {
        set(true);
    }
    let result = __cpuid_count(function, index);
    if traps {
        set(false);
    }
    result
}

/// Leaf 1 ECX: the kernel has enabled XSAVE.
const OSXSAVE: u32 = 1 << 27;

/// The host's XCR0: the state components that the host's kernel has enabled; 0 without XSAVE. Cached.
pub fn xcr0() -> u64 {
    read_xcr0(|| query(1, 0))
}

/// As [`xcr0`], for a caller that has executed leaf 1 already: CPUID may take ten microseconds.
pub fn xcr0_by(leaf1: CpuidResult) -> u64 {
    read_xcr0(|| leaf1)
}

fn read_xcr0(leaf1: impl FnOnce() -> CpuidResult) -> u64 {
    static XCR0: OnceLock<u64> = OnceLock::new();
    *XCR0.get_or_init(|| {
        if leaf1().ecx & OSXSAVE == 0 {
            return 0;
        }
        // SAFETY: with OSXSAVE set XGETBV can be executed, and XCR0 exists.
        unsafe { _xgetbv(0) }
    })
}

/// Whether the processor is one of AMD's, or of Hygon's, which are made alike: it has SVM's instructions rather than
/// VMX's (CPUID leaf 0).
pub fn is_amd() -> bool {
    const NAMES: [&[u8; 12]; 2] = [b"AuthenticAMD", b"HygonGenuine"];
    let leaf = query(0, 0);
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    NAMES.iter().any(|wanted| name.as_flattened() == *wanted)
}

/// Whether the processor has RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE. Cached.
pub fn has_fsgsbase() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| query(0, 0).eax >= 7 && query(7, 0).ebx & 1 != 0)
}

#[cfg(test)]
mod tests {
    use crate::host::host_cpuid::*;

    #[test]
    fn the_answer_is_the_same_while_cpuid_faults() {
        let before = query(0, 0);
        assert_eq!(before, __cpuid_count(0, 0));
        let trapping = Trapping::begin();
        if trapping.is_none() {
            crate::testing::skip::skip("cpuid-faulting", "CPUID cannot be made to trap here");
        }
        assert!(Trapping::begin().is_none() && (trapping.is_none() || can_trap()));
        assert_eq!(query(0, 0), before);
        let inherited = std::thread::spawn(|| {
            allow_in_new_thread();
            __cpuid_count(0, 0)
        });
        assert_eq!(inherited.join().ok(), Some(before));
        drop(trapping);
        assert_eq!(__cpuid_count(0, 0), before);
    }
}
