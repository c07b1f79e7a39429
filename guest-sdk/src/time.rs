//! Time: nanoseconds since boot, the time of day, and a timer.

use core::sync::atomic::{Ordering, fence};

use paravane_abi::shared_info::VcpuTimeInfo;

use crate::shared::SHARED;

pub use crate::hypercall::vcpu::{set_singleshot_timer, set_timer, stop_periodic_timer};

/// Nanoseconds since the domain was started. Makes no hypercall.
pub fn now() -> u64 {
    loop {
        let before = SHARED.time_version().load(Ordering::Acquire);
        let info = SHARED.time_copy();
        let tsc = timestamp_counter();
        fence(Ordering::Acquire);
        if before & 1 == 0 && SHARED.time_version().load(Ordering::Relaxed) == before {
            return system_time(&info, tsc);
        }
        core::hint::spin_loop();
    }
}

/// Seconds and nanoseconds since 1970-01-01 UTC. Makes no hypercall.
pub fn wall_clock() -> (u64, u32) {
    let (seconds, nanoseconds) = loop {
        let before = SHARED.wall_version().load(Ordering::Acquire);
        let low = SHARED.wall_seconds().load(Ordering::Relaxed);
        let high = SHARED.wall_seconds_high().load(Ordering::Relaxed);
        let nanoseconds = SHARED.wall_nanoseconds().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if before & 1 == 0 && SHARED.wall_version().load(Ordering::Relaxed) == before {
            break (u64::from(high) << 32 | u64::from(low), nanoseconds);
        }
        core::hint::spin_loop();
    };
    let since = now() + u64::from(nanoseconds);
    (seconds + since / 1_000_000_000, (since % 1_000_000_000) as u32)
}

/// System time at a value of the time-stamp counter, as public/xen.h defines it.
///
/// A counter that is behind the last update (as another processor's may be, slightly) counts as the update's.
pub fn system_time(info: &VcpuTimeInfo, tsc: u64) -> u64 {
    let ticks = u128::from(tsc.saturating_sub(info.tsc_timestamp));
    let shifted = match info.tsc_shift {
        left @ 0.. => ticks << u32::from(left.unsigned_abs()).min(63),
        right => ticks >> u32::from(right.unsigned_abs()).min(127),
    };
    // A difference of 64 bits after the shift covers centuries; a larger one is cut.
    let nanoseconds = ((shifted & u128::from(u64::MAX)) * u128::from(info.tsc_to_system_mul)) >> 32;
    info.system_time.wrapping_add(nanoseconds as u64)
}

fn timestamp_counter() -> u64 {
    // SAFETY: both exist on every x86-64 processor. LFENCE keeps the read after the copy (SDM vol. 2, RDTSC).
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(mul: u32, shift: i8) -> VcpuTimeInfo {
        VcpuTimeInfo {
            tsc_timestamp: 1_000,
            system_time: 7,
            tsc_to_system_mul: mul,
            tsc_shift: shift,
            ..VcpuTimeInfo::default()
        }
    }

    #[test]
    fn rates_of_real_processors() {
        // 2 GHz: half a nanosecond a tick.
        assert_eq!(system_time(&info(1 << 31, 0), 3_000), 7 + 1_000);
        // 500 MHz: two nanoseconds a tick, as a shift.
        assert_eq!(system_time(&info(1 << 31, 2), 3_000), 7 + 4_000);
        // 4 GHz with a negative shift.
        assert_eq!(system_time(&info(1 << 31, -1), 3_000), 7 + 500);
    }

    #[test]
    fn long_runs_do_not_overflow() {
        let day = 24 * 3600 * 3_000_000_000_u64;
        let mul = ((1_u128 << 32) / 3) as u32;
        let ns = system_time(&info(mul, 0), 1_000 + 365 * day) - 7;
        assert!(ns.abs_diff(365 * 24 * 3600 * 1_000_000_000) < 20_000_000, "{ns}");
    }

    #[test]
    fn nothing_that_is_read_panics() {
        for shift in [i8::MIN, -64, 63, i8::MAX] {
            let _ = system_time(&info(u32::MAX, shift), u64::MAX);
        }
        assert_eq!(system_time(&info(u32::MAX, 0), 0), 7, "a counter from the past adds nothing");
    }
}
