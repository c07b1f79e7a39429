//! The clock: the time stamp counter.

use core::arch::x86_64::{__cpuid, _rdtsc};
use core::sync::atomic::{AtomicU64, Ordering};

use super::pit;
use crate::rate::{self, Sample};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds per tick, in units of 2^-32.
static SCALE: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds since the counter started.
pub fn nanoseconds() -> u64 {
    ((u128::from(ticks()) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
}

/// Determines the counter's rate. Interrupts are off.
pub fn calibrate() {
    let hz = rate_from_cpuid().unwrap_or_else(rate_from_pit);
    SCALE.store((NS_PER_SECOND << 32) / hz, Ordering::Relaxed);
}

fn ticks() -> u64 {
    // SAFETY: every processor with long mode has the counter, and CR4.TSD is off.
    unsafe { _rdtsc() }
}

/// The rate that the processor states (SDM vol. 3, 18.7.3), or that a hypervisor states in the leaf that is customary
/// for it.
fn rate_from_cpuid() -> Option<u64> {
    const TSC_RATIO: u32 = 0x15;
    const HYPERVISOR: u32 = 0x4000_0000;
    const HYPERVISOR_TIMING: u32 = 0x4000_0010;
    if __cpuid(0).eax >= TSC_RATIO {
        let leaf = __cpuid(TSC_RATIO);
        let hz = (u64::from(leaf.ecx) * u64::from(leaf.ebx)).checked_div(u64::from(leaf.eax));
        if let Some(hz) = hz.filter(|&hz| hz > 0) {
            return Some(hz);
        }
    }
    let under_hypervisor = __cpuid(1).ecx & 1 << 31 != 0;
    if under_hypervisor && __cpuid(HYPERVISOR).eax >= HYPERVISOR_TIMING {
        let khz = __cpuid(HYPERVISOR_TIMING).eax;
        return (khz > 0).then(|| u64::from(khz) * 1000);
    }
    None
}

/// The rate, measured over about 10 ms of the 8254's time.
fn rate_from_pit() -> u64 {
    let hz = rate::measure(pit::HZ, pit::HZ / 100, || pit::start(pit::MAX_TICKS), sample);
    pit::stop();
    hz
}

/// Both counters at one moment: the shortest of a few attempts.
fn sample() -> Sample {
    let attempt = || {
        let before = ticks();
        pit::latch();
        let took = ticks() - before;
        (took, Sample { ticks: before + took / 2, left: pit::latched() })
    };
    (1..4).fold(attempt(), |best, _| best.min(attempt())).1
}
