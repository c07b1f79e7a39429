//! The features that CPUID shows, and whether the processor has them: XCR0, CR4, and what CPUID shows natively.
//!
//! This group runs first, while CR4 is as at the domain's start. Properties that only some engines have are printed
//! (`features: NAME=VALUE`) for the host's side of this test, which knows the engine; all others are checked here.

use core::arch::x86_64::__cpuid_count;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use paravane_guest::abi::trap::{TRAP_GP_FAULT, TRAP_INVALID_OP};
use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::vcpu;
use paravane_guest::trap::set_handler;
use paravane_guest::{println, time};

use super::Bench;
use super::emulation::{NONE, PROTECTION, RAISED, RESUME, UNDEFINED, attempt, forced_sub, note};

const OSXSAVE: u64 = 1 << 18;
const FSGSBASE: u64 = 1 << 16;
const EXTENDED_STATE: u32 = 0xd;
/// Bits in EDX of leaf 1.
const APIC: u32 = 1 << 9;

pub(super) fn run(bench: &mut Bench) {
    for vector in [TRAP_GP_FAULT, TRAP_INVALID_OP] {
        set_handler(vector, Some(note));
    }
    hidden(bench);
    by_cr4(bench);
    by_xcr0(bench);
    for vector in [TRAP_GP_FAULT, TRAP_INVALID_OP] {
        set_handler(vector, None);
    }
}

/// Whether `shown` has any of the bits with these numbers.
fn any(shown: u32, numbers: &[u32]) -> bool {
    numbers.iter().any(|number| shown >> number & 1 != 0)
}

/// Features that no PV guest is shown, on Xen or here; and those that only CPUID without the prefix shows.
fn hidden(bench: &mut Bench) {
    let suite = &mut bench.suite;
    suite.holds("no-vmx-smx-pcid", !any(forced_sub(1, 0)[2], &[5, 6, 17]));
    let [_, b, c, d] = forced_sub(7, 0);
    suite.holds("no-sgx-smep-invpcid-mpx-smap-pt", !any(b, &[2, 7, 10, 14, 20, 25]));
    suite.holds("no-umip-pku-waitpkg-cet", !any(c, &[2, 3, 4, 5, 7]));
    suite.holds("no-ibt-amx", !any(d, &[20, 22, 24, 25]));
    suite.holds("no-svm-lwp-mwaitx", !any(forced_sub(0x8000_0001, 0)[2], &[2, 15, 29]));
    suite.holds("no-large-pages", !any(forced_sub(0x8000_0001, 0)[3], &[26]));
    suite.holds("no-xsaves", !any(forced_sub(EXTENDED_STATE, 1)[0], &[3, 4]));
    let mut more = 0;
    for (leaf, index) in [(1, 0), (7, 0), (7, 1), (EXTENDED_STATE, 0), (EXTENDED_STATE, 1), (0x8000_0001, 0)]
    {
        let native = __cpuid_count(leaf, index);
        let shown = forced_sub(leaf, index);
        let native = match (leaf, index) {
            // KVM derives the APIC's bit from APIC_BASE, which is enabled after a reset.
            (1, _) => [0, 0, native.ecx, native.edx & !APIC],
            (7, 0) => [0, native.ebx, native.ecx, native.edx],
            (0x8000_0001, _) => [0, 0, native.ecx, native.edx],
            _ => [native.eax, 0, 0, 0],
        };
        for (register, (native, shown)) in ["eax", "ebx", "ecx", "edx"].iter().zip(native.iter().zip(shown)) {
            if native & !shown != 0 {
                more += 1;
                println!("features: native-only leaf={leaf:#x}.{index} {register}={:#x}", native & !shown);
            }
        }
    }
    println!("features: native-only-registers={more}");
}

/// RDFSBASE and CR4.FSGSBASE.
fn by_cr4(bench: &mut Bench) {
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    let (mut cr4, mut base) = (0_u64, 0_u64);
    suite.equal("read-cr4", attempt!("mov {v}, cr4", v = out(reg) cr4), NONE);
    // PAE, MCE, OSFXSR and OSXMMEXCPT; none of the bits that a kernel may choose, and yet OSXSAVE in CPUID.
    suite.equal("cr4-at-first", cr4, 0x660);
    let [xsave, osxsave] = [26, 27].map(|bit| forced_sub(1, 0)[2] >> bit & 1);
    suite.equal("osxsave-goes-with-xsave", osxsave, xsave);
    let raised = attempt!("rdfsbase {v}", v = inout(reg) base);
    println!("features: rdfsbase-raises={}", raised == UNDEFINED);
    if !paravane {
        suite.equal("rdfsbase-while-clear", raised, UNDEFINED);
    }
    if !any(forced_sub(7, 0)[1], &[0]) {
        return;
    }
    suite.equal("set-fsgsbase", attempt!("mov cr4, {v}", v = in(reg) cr4 | FSGSBASE), NONE);
    suite.equal("rdfsbase-while-set", attempt!("rdfsbase {v}", v = inout(reg) base => _), NONE);
    suite.equal("clear-fsgsbase", attempt!("mov cr4, {v}", v = in(reg) cr4), NONE);
}

/// The number of words in the widest registers.
const WORDS: usize = 32 * 8;
static ARRIVED: AtomicU32 = AtomicU32::new(0);

fn arrived(_: Port) {
    ARRIVED.store(1, Ordering::Relaxed);
}

/// Every vector register keeps its value across an upcall, and the hypercalls of its handler.
fn vectors(bench: &mut Bench, state: u64) {
    let (hold, words): (unsafe extern "C" fn(_, _), usize) = match state {
        _ if state & 0xe0 != 0 => (hold_zmm, WORDS),
        _ if state & 4 != 0 => (hold_ymm, 16 * 4),
        _ => return,
    };
    let mut values: [u64; WORDS] =
        core::array::from_fn(|n| (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let before = values;
    let timer = event::handle_virq(VIRQ_TIMER, arrived);
    let set = vcpu::set_singleshot_timer(0, time::now() + 2_000_000, false);
    event::enable();
    bench.suite.holds("vector-timer", timer.is_ok() && set.is_ok());
    if let (Ok(port), Ok(())) = (timer, set) {
        // SAFETY: the array has room for the registers, which exist and are enabled; the timer is set.
        unsafe { hold(values.as_mut_ptr(), ARRIVED.as_ptr()) };
        let _ = event::close(port);
    }
    let same = values.iter().zip(&before).take(words).filter(|(a, b)| a == b).count();
    bench.suite.equal("vector-words-kept", same, words);
}

/// Loads all registers, clears the memory that they were loaded from, waits for a word to change, and stores them.
#[unsafe(naked)]
unsafe extern "C" fn hold_zmm(_values: *mut u64, _until: *mut u32) {
    naked_asm!(
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 zmm\\n, [rdi + \\n * 64]",
        ".endr",
        "mov rdx, rdi",
        "mov ecx, 256",
        "xor eax, eax",
        "rep stosq",
        "22: cmp dword ptr [rsi], 0",
        "je 22b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 [rdx + \\n * 64], zmm\\n",
        ".endr",
        "vzeroupper",
        "ret",
    )
}

/// Like [`hold_zmm`], with half as many registers of half the width.
#[unsafe(naked)]
unsafe extern "C" fn hold_ymm(_values: *mut u64, _until: *mut u32) {
    naked_asm!(
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu ymm\\n, [rdi + \\n * 32]",
        ".endr",
        "mov rdx, rdi",
        "mov ecx, 64",
        "xor eax, eax",
        "rep stosq",
        "22: cmp dword ptr [rsi], 0",
        "je 22b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu [rdx + \\n * 32], ymm\\n",
        ".endr",
        "vzeroupper",
        "ret",
    )
}

fn read_xcr0() -> (u64, u64) {
    let (low, high): (u32, u32);
    let raised = attempt!("xor eax, eax; xor edx, edx; xgetbv", in("ecx") 0, out("eax") low, out("edx") high);
    (raised, u64::from(high) << 32 | u64::from(low))
}

fn write_xcr0(value: u64) -> u64 {
    attempt!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// XCR0, the sizes that CPUID reports for it, and the rules of XSETBV.
fn by_xcr0(bench: &mut Bench) {
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    if !any(forced_sub(1, 0)[2], &[26]) {
        return;
    }
    let [low, size, largest, high] = forced_sub(EXTENDED_STATE, 0);
    let all = u64::from(high) << 32 | u64::from(low);
    suite.equal("state-components", all & !0xe7, 0);
    suite.equal("size-at-first", size, 576);
    let osxsave = __cpuid_count(1, 0).ecx >> 27 & 1;
    let (raised, first) = read_xcr0();
    suite.equal("xgetbv-without-osxsave", raised, NONE);
    suite.equal("xsetbv-without-osxsave", write_xcr0(all), UNDEFINED);
    let mut cr4 = 0_u64;
    suite.equal("read-cr4-again", attempt!("mov {v}, cr4", v = out(reg) cr4), NONE);
    suite.equal("set-osxsave", attempt!("mov cr4, {v}", v = in(reg) cr4 | OSXSAVE), NONE);
    for (name, value) in [("xsetbv-nothing", 0), ("xsetbv-avx-alone", 5), ("xsetbv-pkru", 1 << 9 | 3)] {
        suite.equal(name, write_xcr0(value), PROTECTION);
    }
    suite.equal("xsetbv", write_xcr0(all), NONE);
    let (raised, second) = read_xcr0();
    suite.equal("xgetbv", (raised, second & all), (NONE, all));
    suite.equal("size-of-all", forced_sub(EXTENDED_STATE, 0)[1], largest);
    vectors(bench, all);
    let suite = &mut bench.suite;
    suite.equal("clear-osxsave", attempt!("mov cr4, {v}", v = in(reg) cr4), NONE);
    println!("features: osxsave-at-first={osxsave} xcr0-at-first={first:#x} xcr0={second:#x} all={all:#x}");
    if !paravane {
        suite.equal("xcr0-at-first", first, 3);
        suite.equal("xcr0-as-set", second, all);
    }
}
