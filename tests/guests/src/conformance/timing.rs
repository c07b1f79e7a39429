//! Clocks and timers. Nothing here depends on how fast the host is.

use core::sync::atomic::{AtomicU32, Ordering};

use paravane_guest::abi::Errno;
use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::vcpu;
use paravane_guest::time;

use super::Bench;

/// Seconds from 1970 to 2020.
const YEAR_2020: u64 = 1_577_836_800;
const MILLISECOND: u64 = 1_000_000;

static FIRED: AtomicU32 = AtomicU32::new(0);

fn fire(_: Port) {
    FIRED.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn run(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let backwards = (0..10_000).scan(0, |last, _| {
        let now = time::now();
        Some(core::mem::replace(last, now) > now)
    });
    suite.equal("never-backwards", backwards.filter(|b| *b).count(), 0);
    suite.holds("wall-clock-is-set", time::wall_clock().0 > YEAR_2020);
    suite.equal("vcpu-0-is-up", vcpu::is_up(0), Ok(true));
    suite.equal("vcpu-8191", vcpu::is_up(8191), Err(Errno::ENOENT));
    let past = vcpu::set_singleshot_timer(0, 1, true);
    // Newer versions of Xen ignore the flag.
    suite.holds("past-when-asked", matches!(past, Ok(()) | Err(Errno::ETIME)));
    suite.refused("of-another-vcpu", vcpu::set_singleshot_timer(1, 1, false));
    suite.equal("stop-periodic", vcpu::stop_periodic_timer(0), Ok(()));
    let timer = event::handle_virq(VIRQ_TIMER, fire);
    suite.holds("bind", timer.is_ok());
    fires(bench, "set-timer", vcpu::set_timer);
    fires(bench, "singleshot", |deadline| vcpu::set_singleshot_timer(0, deadline, false));
    fires(bench, "set-timer-in-the-past", |_| vcpu::set_timer(1));
    stopped(bench);
    if let Ok(port) = timer {
        let _ = event::close(port);
    }
}

/// Sets a timer that fires after a millisecond, and waits for it.
fn fires(bench: &mut Bench, name: &str, set: impl Fn(u64) -> Result<(), Errno>) {
    FIRED.store(0, Ordering::Relaxed);
    event::disable();
    let deadline = time::now() + MILLISECOND;
    let past = name.ends_with("past");
    let outcome = set(deadline);
    while outcome.is_ok() && FIRED.load(Ordering::Relaxed) == 0 {
        let _ = event::block();
    }
    let on_time = past || time::now() >= deadline;
    bench.suite.equal(name, (outcome, FIRED.load(Ordering::Relaxed), on_time), (Ok(()), 1, true));
}

/// A stopped timer does not fire while the guest waits for a later one.
fn stopped(bench: &mut Bench) {
    // If a busy host delayed the stop too long, the check shows nothing: it is repeated with more time.
    for patience in [50, 500, 5000].map(|ms| ms * MILLISECOND) {
        FIRED.store(0, Ordering::Relaxed);
        let deadline = time::now() + patience;
        let set = vcpu::set_singleshot_timer(0, deadline, false);
        let stop = vcpu::stop_singleshot_timer(0);
        if time::now() >= deadline {
            continue;
        }
        let wait = paravane_guest::hypercall::sched::poll(&[], deadline + 10 * MILLISECOND);
        let fired = FIRED.load(Ordering::Relaxed);
        return bench.suite.equal("stopped", (set, stop, wait, fired), (Ok(()), Ok(()), Ok(()), 0));
    }
    bench.suite.holds("stopped", false);
}
