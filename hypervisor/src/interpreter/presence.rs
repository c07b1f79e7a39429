//! Which processor the interpreter is: the features that its CPUID shows.
//!
//! A kernel that asks CPUID finds what is implemented here. An instruction of a feature that is not shown raises #UD, as
//! on a processor without it; one of a feature that is shown but not implemented (floating point) ends the guest with
//! its name.

use std::arch::x86_64::CpuidResult;

use iced_x86::{CpuidFeature, Instruction};

/// A mask of the bits with these numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let (mut mask, mut n) = (0, 0);
    while n < numbers.len() {
        mask |= 1 << numbers[n];
        n += 1;
    }
    mask
}

/// Not SSE3, PCLMULQDQ, SSSE3, FMA, SSE4.1, SSE4.2, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND.
const HIDDEN_LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 19, 20, 25, 26, 27, 28, 29, 30]);
/// FSGSBASE BMI1 BMI2 ERMS ADX CLFLUSHOPT CLWB.
const SHOWN_LEAF7_EBX: u32 = bits(&[0, 3, 8, 9, 19, 23, 24]);
/// RDPID.
const SHOWN_LEAF7_ECX: u32 = bits(&[22]);
/// FSRM MD_CLEAR.
const SHOWN_LEAF7_EDX: u32 = bits(&[4, 10]);
/// Not SSE4A, XOP, FMA4, TBM.
const HIDDEN_EXT1_ECX: u32 = bits(&[6, 11, 16, 21]);
/// Not 3DNOW and its extension, FFXSR.
const HIDDEN_EXT1_EDX: u32 = bits(&[25, 30, 31]);

/// What CPUID says, from what it says to guests that the processor itself runs.
pub(crate) fn shown(function: u32, index: u32, native: CpuidResult) -> CpuidResult {
    match (function, index) {
        (1, _) => CpuidResult { ecx: native.ecx & !HIDDEN_LEAF1_ECX, ..native },
        (7, 0) => CpuidResult {
            eax: 0,
            ebx: native.ebx & SHOWN_LEAF7_EBX,
            ecx: native.ecx & SHOWN_LEAF7_ECX,
            edx: native.edx & SHOWN_LEAF7_EDX,
        },
        // No XSAVE.
        (7 | 0xd, _) => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        (0x8000_0001, _) => {
            CpuidResult { ecx: native.ecx & !HIDDEN_EXT1_ECX, edx: native.edx & !HIDDEN_EXT1_EDX, ..native }
        }
        _ => native,
    }
}

/// Whether the machine has this instruction, as far as CPUID says.
pub(super) fn is_present(insn: &Instruction) -> bool {
    use CpuidFeature::*;
    let undefined = matches!(
        insn.mnemonic(),
        iced_x86::Mnemonic::Ud0 | iced_x86::Mnemonic::Ud1 | iced_x86::Mnemonic::Ud2
    );
    let has = |feature: &CpuidFeature| {
        matches!(
            feature,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | CPUID
                | TSC
                | MSR
                | CX8
                | CMOV
                | FXSR
                | MMX
                | SSE
                | SSE2
                | FPU
                | FPU287
                | FPU387
                | SEP
                | SYSCALL
                | PAUSE
                | MULTIBYTENOP
                | CLFSH
        )
    };
    !undefined && insn.cpuid_features().iter().all(has)
}
