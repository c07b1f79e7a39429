//! CPUID: one of its answers shows what the kernel itself has set.

use core::arch::naked_asm;

use super::Answer;
use super::guard::attempt;

/// OSXSAVE shows CR4.OSXSAVE (SDM vol. 2, CPUID, leaf 1), which this kernel never sets.
pub(super) fn cpuid() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(_: u64, _: u64) -> u64 {
        naked_asm!(
            "mov rax, cr4",
            "and eax, ~(1 << 18)",
            "mov cr4, rax",
            "mov eax, 1",
            "xor ecx, ecx",
            "cpuid",
            "mov eax, ecx",
            "shr eax, 27",
            "and eax, 1",
            "ret",
        )
    }
    let clear = Answer::Effect("osxsave-clear");
    let here = match attempt(read, 0, 0) {
        Answer::Value(0) => clear,
        Answer::Value(_) => Answer::Effect("osxsave-set"),
        other => other,
    };
    (clear, here)
}
