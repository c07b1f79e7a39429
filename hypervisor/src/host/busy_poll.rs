//! Looking a little longer before sleeping.
//!
//! A thread that sleeps is woken by another CPU in 50 to 300 us, much longer than most things take that a guest or a
//! device waits for. So whoever is about to sleep first looks for a while whether what it waits for has come: a vCPU that blocks
//! (as `halt_poll_ns` of Linux's KVM), a device's worker whose queue is empty (as `busyloop_timeout` of its
//! vhost-net). Meanwhile the other side need not ring: no kick's exit, no system call, no interrupt between CPUs.
//!
//! How long is learnt: a wait that looking would have shortened doubles it, a long one ends it. An idle guest costs
//! [`longest_us`] once, then a look now and then. Where more threads want to run than there are CPUs, whoever looked in vain
//! pauses: it may have held the CPU that the other side needed. On one CPU nobody looks: what is awaited could not happen.
//!
//! What may not be done here: waiting for a guest's word. A guest decides neither that nor how long a host's thread looks, only
//! whether it looks in vain.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::threads;

/// How long anybody looks at most, unless [`set_longest_us`] says otherwise: as long as Linux's KVM.
const LONGEST_US: u64 = 200;
/// The first attempt: about as long as the shortest sleep.
const FIRST_NS: u64 = 25_000;
/// How long a thread does not look that has looked in vain where others wanted the CPU: doubled each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(80);
/// Not yet known.
const UNKNOWN: u64 = u64::MAX;

static LONGEST_NS: AtomicU64 = AtomicU64::new(UNKNOWN);

/// Sets how many microseconds this program's threads look before they sleep; 0: not at all. For those that start later.
pub fn set_longest_us(us: u32) {
    LONGEST_NS.store(u64::from(us) * 1000, Ordering::Relaxed);
}

/// How long this program's threads look before they sleep, at most, in microseconds.
pub fn longest_us() -> u64 {
    longest_ns() / 1000
}

fn longest_ns() -> u64 {
    match LONGEST_NS.load(Ordering::Relaxed) {
        UNKNOWN => {
            let ns = if threads::cpus() > 1 { LONGEST_US * 1000 } else { 0 };
            LONGEST_NS.store(ns, Ordering::Relaxed);
            ns
        }
        ns => ns,
    }
}

/// One thread's habit of looking before it sleeps.
#[derive(Debug)]
pub struct BusyPoll {
    /// How long to look the next time, in nanoseconds.
    window: u64,
    longest: u64,
    began: Option<Instant>,
    /// No looking before this: others want the CPU.
    paused: Option<Instant>,
    /// How long the next pause is.
    pause: Duration,
    is_crowded: fn() -> bool,
}

impl Default for BusyPoll {
    fn default() -> Self {
        Self::new(longest_ns(), is_crowded)
    }
}

impl BusyPoll {
    /// One that looks for at most `longest` nanoseconds, and not where `is_crowded`.
    fn new(longest: u64, is_crowded: fn() -> bool) -> Self {
        Self { window: longest, longest, began: None, paused: None, pause: SHORTEST_PAUSE, is_crowded }
    }

    /// Begins to wait: looks until `ready`, but not past the window. Whether it was.
    ///
    /// After false the caller sleeps, unless it finds that it must not, and then calls [`BusyPoll::slept`].
    pub fn look(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        if self.longest == 0 {
            return false;
        }
        let began = Instant::now();
        self.began = Some(began);
        if self.window == 0 || self.paused.is_some_and(|until| began < until) {
            return false;
        }
        while elapsed(began) < self.window {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        self.looked_in_vain();
        false
    }

    /// Maybe because this thread held the CPU that another needed: then it gives way for a while.
    fn looked_in_vain(&mut self) {
        if (self.is_crowded)() {
            self.paused = Instant::now().checked_add(self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            (self.paused, self.pause) = (None, SHORTEST_PAUSE);
        }
    }

    /// The wait that [`BusyPoll::look`] began is over: learns from how long it was.
    pub fn slept(&mut self) {
        let Some(began) = self.began.take() else { return };
        self.learn(elapsed(began));
    }

    fn learn(&mut self, waited: u64) {
        self.window = if waited > self.longest {
            self.window / 2
        } else {
            self.window.saturating_mul(2).clamp(FIRST_NS.min(self.longest), self.longest)
        };
        if self.window < FIRST_NS {
            self.window = 0;
        }
    }
}

/// Whether more threads want to run than there are CPUs, by Linux's own count of this moment (proc_loadavg(5), the
/// fourth field). KVM asks the scheduler the same before it polls on.
fn is_crowded() -> bool {
    // Both are asked for once: opening a file takes longer than the question.
    static ASKED: OnceLock<Option<(File, i64)>> = OnceLock::new();
    let Some((file, cpus)) = ASKED.get_or_init(|| Some((File::open("/proc/loadavg").ok()?, online()?)))
    else {
        return false;
    };
    let mut text = [0; 64];
    let running = file.read_at(&mut text, 0).ok().and_then(|len| running(text.get(..len)?));
    running.is_some_and(|running| running > *cpus)
}

/// How many CPUs the host has; not those that this program may use, as the host's threads are counted.
fn online() -> Option<i64> {
    // SAFETY: a question that takes no pointer.
    Some(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).filter(|cpus| *cpus > 0)
}

fn running(loadavg: &[u8]) -> Option<i64> {
    let (running, _all) = std::str::from_utf8(loadavg).ok()?.split(' ').nth(3)?.split_once('/')?;
    running.parse().ok()
}

fn elapsed(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use crate::host::busy_poll::*;

    const US: u64 = 1000;

    #[test]
    fn what_comes_in_time_is_seen_and_no_sleep_is_learnt_from() {
        let mut habit = BusyPoll::new(u64::MAX, || false);
        let mut looks = 0;
        let seen = habit.look(|| {
            looks += 1;
            looks == 100
        });
        assert_eq!((seen, looks, habit.window), (true, 100, u64::MAX));
    }

    #[test]
    fn looking_ends() {
        let mut habit = BusyPoll::new(10 * US, || false);
        assert!(!habit.look(|| false));
        habit.slept();
        assert!(habit.window <= 10 * US);
    }

    #[test]
    fn who_waits_for_long_stops_looking_and_who_waits_shortly_begins_again() {
        let mut habit = BusyPoll::new(200 * US, || false);
        let mut windows = Vec::new();
        for waited in [300, 300, 300, 300, 300, 150, 150, 150, 150, 150, 300] {
            habit.learn(waited * US);
            windows.push(habit.window / US);
        }
        assert_eq!(windows, [100, 50, 25, 0, 0, 25, 50, 100, 200, 200, 100]);
    }

    #[test]
    fn where_others_want_the_cpu_it_gives_way() {
        let mut habit = BusyPoll::new(US, || true);
        assert!(!habit.look(|| false));
        habit.slept();
        let until = habit.paused.expect("a pause");
        if !habit.look(|| true) {
            assert_eq!(habit.pause, SHORTEST_PAUSE * 2, "no look, and so none in vain");
        } else {
            assert!(Instant::now() >= until, "this thread itself had to give way");
        }
        habit.is_crowded = || false;
        (habit.paused, habit.window) = (None, US);
        assert!(!habit.look(|| false));
        assert_eq!((habit.paused, habit.pause), (None, SHORTEST_PAUSE));
    }

    #[test]
    fn who_wants_to_run() {
        assert_eq!(running(b"0.42 0.35 0.30 3/127 4711\n"), Some(3));
        assert_eq!([&b""[..], b"0.42 0.35 0.30", b"0 0 0 x/y 1"].map(running), [None; 3]);
        assert!(
            File::open("/proc/loadavg").is_err()
                || running(&std::fs::read("/proc/loadavg").unwrap()).is_some()
        );
    }

    #[test]
    fn nobody_looks_who_is_not_to() {
        let mut habit = BusyPoll::new(0, || false);
        assert!(!habit.look(|| panic!("it looked")));
        habit.slept();
        assert!(!habit.look(|| panic!("it looked")));
    }
}
