use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use paravane_abi::shared_info::SharedInfo;

use crate::machine::time::NS_PER_S;
use crate::pv::wall_clock::WallClock;
use crate::testing::pv::TestDomain;

/// Version, seconds and nanoseconds of the date in the shared page.
fn told(t: &TestDomain) -> (u32, u64, u32) {
    let shared: SharedInfo = t.memory.read_obj(t.upcall().shared_info).unwrap();
    (shared.wc_version, u64::from(shared.wc_sec) | u64::from(shared.wc_sec_hi) << 32, shared.wc_nsec)
}

/// The host was suspended, or somebody set its clock.
#[test]
fn the_guest_s_date_follows_the_host_s() {
    const LATE: u64 = 5_000_000_000;
    let host = Arc::new(AtomicU64::new(LATE * NS_PER_S));
    let mut t = TestDomain::new();
    let read = host.clone();
    t.wall = WallClock::new(Box::new(move || read.load(Ordering::Relaxed)));
    t.follow_wall_clock(0).unwrap();
    assert_eq!(told(&t), (2, LATE, 0), "more seconds than 32 bits count");
    // An hour passed outside, a second in the guest.
    host.store((LATE + 3600) * NS_PER_S + 5, Ordering::Relaxed);
    t.follow_wall_clock(NS_PER_S).unwrap();
    assert_eq!(told(&t), (4, LATE + 3599, 5));
    t.follow_wall_clock(2 * NS_PER_S - 1).unwrap();
    assert_eq!(told(&t).0, 4, "looked at too often");
    // Set back.
    host.store(1000 * NS_PER_S, Ordering::Relaxed);
    t.follow_wall_clock(2 * NS_PER_S).unwrap();
    assert_eq!(told(&t), (6, 998, 0));
    assert_eq!(t.end, None);
}
