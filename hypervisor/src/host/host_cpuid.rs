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

use crate::x86::guest_cpuid::{MAX_BASIC, area_size, available, filter, has_xsavec};

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

/// Leaf 1 ECX.
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;

/// The state components that a guest can have on this host: those of [`available`] that the host's kernel has switched
/// on. 0 where there is no XSAVE.
pub fn available_state() -> u64 {
    available(state(|| query(1, 0)))
}

/// As [`available_state`], for who has leaf 1's answer already: CPUID may cost ten microseconds.
pub fn available_state_by(leaf1: CpuidResult) -> u64 {
    available(state(|| leaf1))
}

/// The state components that the host's kernel has switched on and a guest cannot have.
pub fn other_state() -> u64 {
    let state = state(|| query(1, 0));
    state & !available(state)
}

/// The host's XCR0; 0 where there is none. Asked for once.
fn state(leaf1: impl FnOnce() -> CpuidResult) -> u64 {
    static STATE: OnceLock<u64> = OnceLock::new();
    *STATE.get_or_init(|| {
        if leaf1().ecx & OSXSAVE == 0 {
            return 0;
        }
        // SAFETY: OSXSAVE says that XGETBV can be executed; XCR0 always exists.
        unsafe { _xgetbv(0) }
    })
}

/// Whether RDFSBASE and its kin can be executed here, and so are shown. Asked for once.
pub fn has_fsgsbase() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| query(0, 0).eax >= 7 && query(7, 0).ebx & 1 != 0)
}

/// What a guest's registers add to what CPUID says.
#[derive(Clone, Copy, Debug)]
pub struct Dynamic {
    /// Whether leaf 1 says OSXSAVE.
    pub osxsave: bool,
    /// XCR0, by which leaf 0xd tells the size of an XSAVE area.
    pub xcr0: u64,
}

/// What CPUID is to say to a guest, on whatever engine.
pub fn for_guest(function: u32, index: u32, dynamic: Dynamic) -> CpuidResult {
    let state = available_state();
    let host = |index| filter(function, index, query(function, index), state);
    match function {
        // See `filter`.
        0x8000_0000 => filter(function, index, query(0, 0), state),
        1 => {
            let mut answer = host(0);
            if dynamic.osxsave && answer.ecx & XSAVE != 0 {
                answer.ecx |= OSXSAVE;
            }
            answer
        }
        // A processor that has no such leaf answers with another's.
        2..=MAX_BASIC if query(0, 0).eax < function => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        // Nor does it have sub-leaves beyond the last that it names.
        7 if index != 0 && query(7, 0).eax < index => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        MAX_BASIC => sizes(index, host(index), dynamic.xcr0 & state, state, host),
        _ => host(index),
    }
}

/// Adds the sizes to an answer of leaf 0xd: of the area that `xcr0` asks for, and of that with all that is available.
fn sizes(
    index: u32,
    answer: CpuidResult,
    xcr0: u64,
    state: u64,
    leaf: impl Fn(u32) -> CpuidResult,
) -> CpuidResult {
    match index {
        0 if state != 0 => {
            CpuidResult { ebx: area_size(xcr0, false, &leaf), ecx: area_size(state, false, &leaf), ..answer }
        }
        1 if has_xsavec(answer) => CpuidResult { ebx: area_size(xcr0, true, &leaf), ..answer },
        _ => answer,
    }
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
