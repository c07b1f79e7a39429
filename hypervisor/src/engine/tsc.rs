//! The rate of the time-stamp counter, which the guest reads natively.
//!
//! The processor or an outer hypervisor may tell it; otherwise it is measured against the host's clock over
//! the time that making the first guest process takes anyway. No waiting here.

use std::arch::x86_64::_rdtsc;

use crate::host::host_cpuid;

/// One instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instant {
    tsc: u64,
    ns: u64,
}

/// Shortest span that gives a usable rate: the readings' error of some 30 ns is 150 ppm of it.
const SHORTEST_NS: u64 = 200_000;

fn rdtsc() -> u64 {
    // SAFETY: RDTSC has no precondition; Linux leaves it to programs.
    unsafe { _rdtsc() }
}

fn clock_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live local.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut t) };
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

impl Instant {
    /// Now: of a few readings, the one that took least between the two clocks.
    pub fn now() -> Self {
        let read = |_| {
            let before = rdtsc();
            let ns = clock_ns();
            let after = rdtsc();
            (
                after.wrapping_sub(before),
                Self { tsc: before.wrapping_add(after.wrapping_sub(before) / 2), ns },
            )
        };
        (0..6).map(read).min_by_key(|(width, _)| *width).map_or(Self { tsc: 0, ns: 0 }, |(_, now)| now)
    }

    /// The counter's rate in kHz, measured since `self`.
    pub fn khz_since(self) -> u64 {
        let mut now = Self::now();
        while now.ns.saturating_sub(self.ns) < SHORTEST_NS {
            now = Self::now();
        }
        let ticks = u128::from(now.tsc.wrapping_sub(self.tsc));
        let ns = u128::from(now.ns.saturating_sub(self.ns).max(1));
        u64::try_from(ticks * 1_000_000 / ns).unwrap_or(u64::MAX)
    }
}

/// What CPUID says of the rate: leaf 0x15 (SDM vol. 3, 20.7.3), or the timing leaf that hypervisors agreed on.
pub(super) fn told_khz() -> Option<u64> {
    if host_cpuid::query(0, 0).eax >= 0x15 {
        let ratio = host_cpuid::query(0x15, 0);
        if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            return Some(u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax) / 1000);
        }
    }
    let has_hypervisor = host_cpuid::query(1, 0).ecx >> 31 == 1;
    let khz = (has_hypervisor && host_cpuid::query(0x4000_0000, 0).eax >= 0x4000_0010)
        .then(|| host_cpuid::query(0x4000_0010, 0).eax);
    khz.filter(|khz| *khz != 0).map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_found_and_plausible() {
        let khz = Instant::now().khz_since();
        assert!((100_000..20_000_000).contains(&khz), "{khz} kHz");
        if let Some(told) = told_khz() {
            assert!(told.abs_diff(khz) < told / 20, "{khz} kHz, told {told}");
        }
    }
}
