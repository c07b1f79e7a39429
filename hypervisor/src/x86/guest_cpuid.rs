//! The CPUID that guests see: the host's, with everything masked out that they cannot use.
//!
//! The masks are those of Xen's default policy for PV guests (the letter `A` in public/arch-x86/cpufeatureset.h),
//! without what is not supported here: registers that no engine switches, MSRs that are not emulated, memory types,
//! the host's topology and caches. `docs/abi.md` lists the differences. Bits that are not listed are 0, so that
//! features of new processors stay hidden. All functions are pure; the caller executes CPUID. Facts: SDM vol. 2, CPUID;
//! AMD APM vol. 3, appendix E.

use std::arch::x86_64::CpuidResult;

/// The highest basic leaf.
pub const MAX_BASIC: u32 = 0xd;
/// The highest extended leaf.
pub const MAX_EXTENDED: u32 = 0x8000_0008;
/// The highest sub-leaf of leaf 7.
const MAX_LEAF7: u32 = 1;

/// A mask of the bits with these numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let (mut mask, mut n) = (0, 0);
    while n < numbers.len() {
        mask |= 1 << numbers[n];
        n += 1;
    }
    mask
}

/// FPU DE TSC MSR PAE CX8 SEP CMOV PSE36 CLFLUSH MMX FXSR SSE SSE2 SS.
const LEAF1_EDX: u32 = bits(&[0, 2, 4, 5, 6, 8, 11, 15, 17, 19, 23, 24, 25, 26, 27]);
/// MCE MCA: only for guests whose machine-check registers are emulated.
pub const LEAF1_EDX_MACHINE_CHECKS: u32 = bits(&[7, 14]);
/// SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, XSAVE, AVX, 29, 30]);
const XSAVE: u32 = 26;
const OSXSAVE: u32 = 27;
const AVX: u32 = 28;
/// FMA AVX F16C.
const LEAF1_ECX_YMM: u32 = bits(&[12, AVX, 29]);
/// The bit that says "running under a hypervisor".
const HYPERVISOR: u32 = 1 << 31;
/// FSGSBASE BMI1 AVX2 FDP_EXCPTN_ONLY BMI2 ERMS NO_FPU_SEL AVX512F AVX512DQ RDSEED ADX AVX512_IFMA CLFLUSHOPT CLWB
/// AVX512PF AVX512ER AVX512CD SHA AVX512BW AVX512VL.
const LEAF7_EBX: u32 = bits(&[0, 3, 5, 6, 8, 9, 13, 16, 17, 18, 19, 21, 23, 24, 26, 27, 28, 29, 30, 31]);
/// AVX2.
const LEAF7_EBX_YMM: u32 = bits(&[5]);
/// AVX512 F DQ IFMA PF ER CD BW VL.
const LEAF7_EBX_ZMM: u32 = bits(&[16, 17, 21, 26, 27, 28, 30, 31]);
/// PREFETCHWT1 AVX512_VBMI AVX512_VBMI2 GFNI VAES VPCLMULQDQ AVX512_VNNI AVX512_BITALG AVX512_VPOPCNTDQ RDPID CLDEMOTE.
const LEAF7_ECX: u32 = bits(&[0, 1, 6, 8, 9, 10, 11, 12, 14, 22, 25]);
/// VAES VPCLMULQDQ.
const LEAF7_ECX_YMM: u32 = bits(&[9, 10]);
/// AVX512_VBMI AVX512_VBMI2 AVX512_VNNI AVX512_BITALG AVX512_VPOPCNTDQ.
const LEAF7_ECX_ZMM: u32 = bits(&[1, 6, 11, 12, 14]);
/// AVX512_4VNNIW AVX512_4FMAPS FSRM MD_CLEAR SERIALIZE.
const LEAF7_EDX: u32 = bits(&[2, 3, 4, 10, 14]);
/// AVX512_4VNNIW AVX512_4FMAPS.
const LEAF7_EDX_ZMM: u32 = bits(&[2, 3]);
/// AVX_VNNI AVX512_BF16 FZRM FSRS FSRCS.
const LEAF7_1_EAX: u32 = bits(&[4, 5, 10, 11, 12]);
/// AVX_VNNI.
const LEAF7_1_EAX_YMM: u32 = bits(&[4]);
/// AVX512_BF16.
const LEAF7_1_EAX_ZMM: u32 = bits(&[5]);
/// XSAVEOPT XSAVEC XGETBV with ECX 1. Not XSAVES, which is privileged.
const LEAF_D_1_EAX: u32 = bits(&[0, XSAVEC, 2]);
const XSAVEC: u32 = 1;
/// SYSCALL NX MMXEXT FFXSR RDTSCP LM 3DNOWEXT 3DNOW, and the twins of leaf 1's that AMD's processors have.
const EXT1_EDX: u32 = bits(&[11, 20, 22, 25, 27, 29, 30, 31]) | LEAF1_EDX & TWINS;
/// Bits of leaf 1's EDX that AMD's processors repeat in EDX of leaf 0x80000001. Intel's do not.
const TWINS: u32 = 0x0183_f3ff;
/// LAHF ABM SSE4A MISALIGNSSE 3DNOWPREFETCH XOP FMA4 TBM.
const EXT1_ECX: u32 = bits(&[0, 5, 6, 7, 8, 11, 16, 21]);
/// XOP FMA4.
const EXT1_ECX_YMM: u32 = bits(&[11, 16]);
/// CLZERO RSTR_FP_ERR_PTRS SSB_NO BTC_NO.
const EXT8_EBX: u32 = bits(&[0, 2, 26, 29]);

/// State components that a guest may use: x87, SSE, AVX and the three of AVX-512. Every engine
/// saves and restores these.
pub const XCR0_MASK: u64 = 0xe7;
/// XCR0 at start: x87 and SSE, as on Xen.
pub const XCR0_FIRST: u64 = 0b11;
const XCR0_YMM: u64 = 0b100;
const XCR0_ZMM: u64 = 0xe0;
/// Components that have a sub-leaf of leaf 0xd.
pub const COMPONENTS: [u32; 4] = [2, 5, 6, 7];

/// The state components of `host`, the host's XCR0, that a guest may use; 0 where there is no XSAVE.
pub const fn available(host: u64) -> u64 {
    let mut all = host & XCR0_MASK;
    if all & XCR0_ZMM != XCR0_ZMM || all & XCR0_YMM == 0 {
        all &= !XCR0_ZMM;
    }
    all
}

/// Whether `xcr0` is a valid value of XCR0 (SDM vol. 1, 13.3): x87 always, AVX with SSE, the three parts of AVX-512
/// with AVX.
pub const fn is_consistent(xcr0: u64) -> bool {
    const SSE: u64 = 0b10;
    let zmm = xcr0 & XCR0_ZMM;
    xcr0 & 1 != 0
        && (xcr0 & XCR0_YMM == 0 || xcr0 & SSE != 0)
        && (zmm == 0 || zmm == XCR0_ZMM && xcr0 & XCR0_YMM != 0)
}

/// The guest's answer for a leaf, from `host`, the host's answer for it; for leaf 0x80000000, from that for leaf 0.
///
/// `available` are the state components that the guest can use (see [`available`]): features that need others are
/// hidden. EBX and ECX of leaf 0xd's first two sub-leaves are sizes, which [`area_size`] computes.
pub fn filter(function: u32, index: u32, host: CpuidResult, available: u64) -> CpuidResult {
    let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    // `all` without the features whose vector state is not available.
    let usable = |all: u32, ymm: u32, zmm: u32| {
        let without = |needs: u32, state: u64| if available & state == state { 0 } else { needs };
        all & !without(ymm, XCR0_YMM) & !without(zmm, XCR0_ZMM)
    };
    match (function, index) {
        (0, _) => CpuidResult { eax: MAX_BASIC, ..host },
        (1, _) => {
            let xsave = if available == 0 { 1 << XSAVE } else { 0 };
            CpuidResult {
                eax: host.eax,
                // One processor, with number 0, and the line size of CLFLUSH.
                ebx: 1 << 16 | host.ebx & 0xff00,
                ecx: host.ecx & usable(LEAF1_ECX, LEAF1_ECX_YMM, 0) & !xsave | HYPERVISOR,
                edx: host.edx & LEAF1_EDX,
            }
        }
        (7, 0) => CpuidResult {
            eax: host.eax.min(MAX_LEAF7),
            ebx: host.ebx & usable(LEAF7_EBX, LEAF7_EBX_YMM, LEAF7_EBX_ZMM),
            ecx: host.ecx & usable(LEAF7_ECX, LEAF7_ECX_YMM, LEAF7_ECX_ZMM),
            edx: host.edx & usable(LEAF7_EDX, 0, LEAF7_EDX_ZMM),
        },
        (7, 1) => {
            CpuidResult { eax: host.eax & usable(LEAF7_1_EAX, LEAF7_1_EAX_YMM, LEAF7_1_EAX_ZMM), ..none }
        }
        (MAX_BASIC, 0) if available != 0 => CpuidResult { eax: available as u32, ..none },
        (MAX_BASIC, 1) if available != 0 => CpuidResult { eax: host.eax & LEAF_D_1_EAX, ..none },
        (MAX_BASIC, component @ 2..=7) if available & 1 << component != 0 => {
            // Whether the component is aligned to 64 bytes in the compacted form.
            CpuidResult { ecx: host.ecx & 0b10, edx: 0, ..host }
        }
        (0x8000_0000, _) => CpuidResult { eax: MAX_EXTENDED, ..host },
        (0x8000_0001, _) => CpuidResult {
            eax: host.eax,
            ebx: 0,
            ecx: host.ecx & usable(EXT1_ECX, EXT1_ECX_YMM, 0),
            edx: host.edx & EXT1_EDX,
        },
        // The processor's name.
        (0x8000_0002..=0x8000_0004, _) => host,
        (MAX_EXTENDED, _) => CpuidResult { eax: host.eax & 0xffff, ebx: host.ebx & EXT8_EBX, ..none },
        _ => none,
    }
}

/// Whether leaf 0xd's second sub-leaf announces the compacted form.
pub const fn has_xsavec(leaf: CpuidResult) -> bool {
    leaf.eax >> XSAVEC & 1 != 0
}

/// Bytes of an XSAVE area with the state components `xcr0`, in the standard form or compacted (SDM vol. 1, 13.4);
/// `leaf` gives leaf 0xd's sub-leaf of a component.
pub fn area_size(xcr0: u64, compacted: bool, leaf: impl Fn(u32) -> CpuidResult) -> u32 {
    /// The legacy region, with x87 and SSE, and the header.
    const FIRST: u32 = 576;
    COMPONENTS.into_iter().filter(|component| xcr0 & 1 << component != 0).map(leaf).fold(
        FIRST,
        |end, leaf| {
            let aligned = if leaf.ecx & 0b10 != 0 { end.next_multiple_of(64) } else { end };
            let start = if compacted { aligned } else { leaf.ebx };
            end.max(start.saturating_add(leaf.eax))
        },
    )
}

/// The state of a guest that CPUID's answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Dynamic {
    /// Whether leaf 1 says OSXSAVE.
    pub osxsave: bool,
    /// XCR0, which decides the size of an XSAVE area in leaf 0xd.
    pub xcr0: u64,
}

/// What CPUID answers a guest, on whatever engine. `host_xcr0` is the host's XCR0, `query` executes CPUID.
pub fn for_guest(
    function: u32,
    index: u32,
    dynamic: Dynamic,
    host_xcr0: u64,
    query: impl Fn(u32, u32) -> CpuidResult,
) -> CpuidResult {
    let state = available(host_xcr0);
    let host = |index| filter(function, index, query(function, index), state);
    match function {
        // See `filter`.
        0x8000_0000 => filter(function, index, query(0, 0), state),
        1 => {
            let mut answer = host(0);
            if dynamic.osxsave && answer.ecx & 1 << XSAVE != 0 {
                answer.ecx |= 1 << OSXSAVE;
            }
            answer
        }
        // A processor answers for a basic leaf that it does not have with the data of another leaf.
        2..=MAX_BASIC if query(0, 0).eax < function => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        // It has no sub-leaves of leaf 7 beyond the last that it names.
        7 if index != 0 && query(7, 0).eax < index => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        MAX_BASIC => with_sizes(index, host(index), dynamic.xcr0 & state, state, host),
        _ => host(index),
    }
}

/// Adds to an answer of leaf 0xd the sizes of two XSAVE areas: with the components of `xcr0`, and with all of `state`.
fn with_sizes(
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
    use crate::x86::guest_cpuid::*;

    const ALL: CpuidResult = CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };

    /// Features whose registers no engine switches, or that only a kernel at CPL 0 can use.
    #[test]
    fn what_is_not_switched_is_not_shown() {
        let leaf = |function, index| filter(function, index, ALL, XCR0_MASK);
        let hidden = |shown: u32, numbers: &[u32], what: &str| {
            assert_eq!(shown & bits(numbers), 0, "{what}: {:x}", shown & bits(numbers));
        };
        hidden(
            leaf(1, 0).ecx,
            &[2, 3, 5, 6, 15, 17, 21, 24, 27],
            "MONITOR VMX SMX PDCM PCID x2APIC deadline OSXSAVE",
        );
        hidden(leaf(1, 0).edx, &[1, 3, 7, 9, 12, 13, 14, 16, 21, 28], "VME PSE MCE APIC MTRR PGE PAT DS HTT");
        hidden(leaf(7, 0).ebx, &[1, 2, 4, 7, 10, 11, 12, 14, 15, 20, 25], "SGX TSX SMEP INVPCID MPX SMAP PT");
        hidden(
            leaf(7, 0).ecx,
            &[2, 3, 4, 5, 7, 13, 16, 23, 24, 27, 28, 29, 30],
            "UMIP PKU WAITPKG CET LA57 KL ENQCMD",
        );
        hidden(
            leaf(7, 0).edx,
            &[5, 16, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31],
            "UINTR TSXLDTRK CET AMX SPEC_CTRL",
        );
        hidden(leaf(MAX_BASIC, 1).eax, &[3, 4], "XSAVES XFD");
        hidden(leaf(0x8000_0001, 0).ecx, &[1, 2, 3, 9, 10, 12, 13, 15, 22, 26, 29], "SVM IBS LWP MWAITX");
        hidden(leaf(0x8000_0001, 0).edx, &[26], "pages of 1 GiB");
        hidden(leaf(MAX_EXTENDED, 0).ebx, &[9, 12, 14, 15, 24, 25], "WBNOINVD IBPB IBRS STIBP SSBD");
        for component in [3, 4, 8, 9, 11, 12, 17, 18] {
            assert_eq!(leaf(MAX_BASIC, component).eax, 0, "MPX, PT, PKRU, CET or AMX: {component}");
        }
    }

    #[test]
    fn what_needs_vector_state_goes_with_it() {
        let (sse, avx) = (XCR0_FIRST, XCR0_FIRST | XCR0_YMM);
        let leaf = |function, index, available| filter(function, index, ALL, available);
        assert_eq!(leaf(1, 0, sse).ecx & (1 << AVX | 1 << XSAVE), 1 << XSAVE);
        assert_eq!(leaf(1, 0, avx).ecx & 1 << AVX, 1 << AVX);
        assert_eq!(leaf(1, 0, 0).ecx & (1 << AVX | 1 << XSAVE), 0, "a host without XSAVE");
        assert_eq!(leaf(MAX_BASIC, 0, 0).eax, 0);
        let (avx2, avx512f) = (1 << 5, 1 << 16);
        assert_eq!(leaf(7, 0, sse).ebx & (avx2 | avx512f), 0);
        assert_eq!(leaf(7, 0, avx).ebx & (avx2 | avx512f), avx2);
        assert_eq!(leaf(7, 0, XCR0_MASK).ebx & (avx2 | avx512f), avx2 | avx512f);
        assert_eq!(leaf(7, 1, avx).eax & 0b11_0000, 0b01_0000);
        assert_eq!(available(0x6_02e7), XCR0_MASK, "not AMX, not PKRU");
        assert_eq!(available(0x27), avx, "AVX-512 is whole or not there");
        assert_eq!(available(0), 0);
    }

    #[test]
    fn state_components_come_in_order() {
        for (value, fine) in [
            (1, true),
            (3, true),
            (7, true),
            (0xe7, true),
            (0, false),
            (5, false),
            (0x27, false),
            (0xe3, false),
        ] {
            assert_eq!(is_consistent(value), fine, "{value:#x}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_components_in_use() {
        let leaf = |component| {
            let (eax, ebx) = match component {
                2 => (0x100, 0x240),
                5 => (0x40, 0x440),
                6 => (0x200, 0x480),
                _ => (0x400, 0x680),
            };
            CpuidResult { eax, ebx, ecx: 0b10, edx: 0 }
        };
        assert_eq!(area_size(XCR0_FIRST, false, leaf), 576);
        assert_eq!(area_size(7, false, leaf), 0x340);
        assert_eq!(area_size(XCR0_MASK, false, leaf), 0xa80);
        assert_eq!(area_size(XCR0_MASK, true, leaf), 0x240 + 0x100 + 0x40 + 0x200 + 0x400);
    }
}
