//! What a guest may know of the processor: the host's CPUID with the rest masked out.
//!
//! A guest at CPL 3 without APIC, MTRRs or devices needs only what user-mode code may use: everything that is
//! privileged, virtual or of no use here is masked. The masks keep features that exist purely as instructions
//! and registers; a new CPU's unknown bits stay off. Pure functions of what CPUID said: who executes it, and
//! how the answer reaches the guest, is not known here. Facts: SDM vol. 2, CPUID; AMD APM vol. 3, appendix E.

use std::arch::x86_64::CpuidResult;

/// The highest basic leaf.
pub const MAX_BASIC: u32 = 0xd;
/// The highest extended leaf.
pub const MAX_EXTENDED: u32 = 0x8000_0008;

/// Leaf 1 EDX: FPU TSC MSR PAE CX8 SEP CMOV CLFSH MMX FXSR SSE SSE2 (and PGE PSE PAT for completeness).
const LEAF1_EDX: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 11 | 1 << 15 | 1 << 19 | 0b1111 << 23;
/// Leaf 1 ECX: SSE3 PCLMUL SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
const LEAF1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// The bit that says "running under a hypervisor".
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7 EBX: FSGSBASE BMI1 AVX2 BMI2 ERMS AVX512{F,DQ} RDSEED ADX AVX512IFMA CLFLUSHOPT CLWB AVX512CD SHA
/// AVX512{BW,VL}.
const LEAF7_EBX: u32 = 1
    | 1 << 3
    | 1 << 5
    | 1 << 8
    | 1 << 9
    | 1 << 16
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 21
    | 1 << 23
    | 1 << 24
    | 1 << 28
    | 1 << 29
    | 1 << 30
    | 1 << 31;
/// Leaf 7 ECX: AVX512VBMI VBMI2 GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ RDPID.
const LEAF7_ECX: u32 = 1 << 1 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 22;
/// Leaf 7 EDX: FSRM.
const LEAF7_EDX: u32 = 1 << 4;
/// Leaf 0x80000001 EDX beyond leaf 1's twins: SYSCALL NX RDTSCP LM.
const EXT1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29;
/// Leaf 0x80000001 ECX: LAHF ABM SSE4A MISALIGNSSE 3DNOWPREFETCH.
const EXT1_ECX: u32 = 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
/// State components that a guest may use: x87, SSE, AVX and the three of AVX-512.
pub const XCR0_MASK: u64 = 0xe7;

/// What the guest sees of `host`, the host's answer for this leaf. Leaf 0x80000000 takes that for leaf 0.
pub fn filter(function: u32, index: u32, host: CpuidResult) -> CpuidResult {
    let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    match (function, index) {
        (0, _) => CpuidResult { eax: MAX_BASIC, ..host },
        (1, _) => CpuidResult {
            eax: host.eax,
            // One processor, with number 0, and the line size of CLFLUSH.
            ebx: 1 << 16 | host.ebx & 0xff00,
            ecx: host.ecx & LEAF1_ECX | HYPERVISOR,
            edx: host.edx & LEAF1_EDX,
        },
        (7, 0) => CpuidResult {
            eax: 0,
            ebx: host.ebx & LEAF7_EBX,
            ecx: host.ecx & LEAF7_ECX,
            edx: host.edx & LEAF7_EDX,
        },
        (MAX_BASIC, 0) => CpuidResult { eax: host.eax & XCR0_MASK as u32, edx: 0, ..host },
        (MAX_BASIC, component @ 2..=7) if XCR0_MASK & 1 << component != 0 => host,
        (0x8000_0000, _) => CpuidResult { eax: MAX_EXTENDED, ..host },
        (0x8000_0001, _) => {
            CpuidResult { eax: host.eax, ebx: 0, ecx: host.ecx & EXT1_ECX, edx: host.edx & EXT1_EDX }
        }
        // The processor's name.
        (0x8000_0002..=0x8000_0004, _) => host,
        (MAX_EXTENDED, _) => CpuidResult { eax: host.eax & 0xffff, ..none },
        _ => none,
    }
}
