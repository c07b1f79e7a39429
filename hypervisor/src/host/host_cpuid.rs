//! The host's CPUID, also for a thread that may not execute the instruction.
//!
//! Where processor and kernel can make CPUID trap (arch_prctl, ARCH_SET_CPUID), the guest threads of the process engine run
//! so. The setting is one of each thread, and every switch between two threads that differ in it writes an MSR: 8
//! microseconds where a hypervisor traps that, several times a whole hand-over. So the vCPU's thread, which alternates
//! with its guest's, has the same setting. What may not be done there: executing CPUID other than by [`query`].
//!
//! Source: arch_prctl(2), Linux's arch/x86/kernel/process.c.

use std::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};
use std::cell::Cell;
use std::sync::OnceLock;

/// ARCH_SET_CPUID: 1 lets the thread execute CPUID, 0 makes it #GP.
pub const ARCH_SET_CPUID: u64 = 0x1012;

thread_local! {
    static TRAPS: Cell<bool> = const { Cell::new(false) };
}

/// Sets whether this thread may execute CPUID; whether that was possible.
fn set(allowed: bool) -> bool {
    // SAFETY: changes nothing but what CPUID does in this thread, and those who execute it go through `query`.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, u64::from(allowed)) == 0 }
}

/// Whether CPUID can be made to trap on this host.
pub fn can_trap() -> bool {
    // What a thread is allowed already changes nothing, and is refused where there is no such setting.
    TRAPS.get() || set(true)
}

/// CPUID traps in the calling thread until this is dropped, which must happen in that thread.
#[derive(Debug)]
pub struct Trapping(std::marker::PhantomData<*const ()>);

impl Trapping {
    /// `None` where it cannot be, or is so already.
    pub fn begin() -> Option<Self> {
        // The standard library looks at the processor once, for all threads.
        let _ = std::arch::is_x86_feature_detected!("avx");
        let began = !TRAPS.get() && set(false);
        began.then(|| {
            TRAPS.set(true);
            Self(std::marker::PhantomData)
        })
    }
}

impl Drop for Trapping {
    fn drop(&mut self) {
        TRAPS.set(false);
        set(true);
    }
}

/// Lets a thread execute CPUID that was started by one that may not, and so inherited that.
pub fn allow_in_new_thread() {
    set(true);
}

/// CPUID, whatever this thread may do.
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

/// The host's XCR0: the state components that the host's kernel has enabled; 0 without XSAVE. Read once.
pub fn xcr0() -> u64 {
    read_xcr0(|| query(1, 0))
}

/// As [`xcr0`], for a caller that has leaf 1's answer already: CPUID may cost ten microseconds.
pub fn xcr0_by(leaf1: CpuidResult) -> u64 {
    read_xcr0(|| leaf1)
}

fn read_xcr0(leaf1: impl FnOnce() -> CpuidResult) -> u64 {
    static XCR0: OnceLock<u64> = OnceLock::new();
    *XCR0.get_or_init(|| {
        if leaf1().ecx & OSXSAVE == 0 {
            return 0;
        }
        // SAFETY: OSXSAVE says that XGETBV can be executed; XCR0 always exists.
        unsafe { _xgetbv(0) }
    })
}

/// Whether the host has RDFSBASE and the instructions like it. Asked once.
pub fn has_fsgsbase() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| query(0, 0).eax >= 7 && query(7, 0).ebx & 1 != 0)
}

#[cfg(test)]
mod tests {
    use crate::host::host_cpuid::*;

    #[test]
    fn the_answer_is_the_same_while_it_traps() {
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
