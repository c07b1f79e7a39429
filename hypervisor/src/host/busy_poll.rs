//! Busy polling: a thread polls for a short time before it sleeps.
//!
//! Waking a thread from another CPU takes 50 to 300 us, much longer than most events take that a guest or a device
//! waits for. Two kinds of threads therefore poll first: a vCPU that blocks (like `halt_poll_ns` of Linux's KVM), and
//! a device's worker whose queue is empty (like `busyloop_timeout` of vhost-net). While a thread polls, the other
//! side does not have to notify it, which saves the exit of a kick, a system call and an interrupt between CPUs.
//!
//! The polling time adapts: a wait that polling would have shortened doubles it, a long wait halves it, down to zero.
//! An idle guest thus costs [`longest_us`] once, and a short poll now and then. Where more threads are runnable than
//! there are CPUs, a thread that polled in vain stops polling for a while, because it may have occupied the CPU that
//! the other side needed. On a host with one CPU nothing polls: the awaited event could not happen meanwhile.
//!
//! What may not be done here: letting a guest decide whether, or for how long, a thread of the host polls. It only
//! influences whether polling succeeds. Each thread owns its [`BusyPoll`]; nothing here is async-signal-safe.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::threads;

/// The longest polling time in microseconds, unless [`set_longest_us`] changes it. Linux's KVM has the same.
const LONGEST_US: u64 = 200;
/// The first polling time: about as long as the shortest sleep.
const FIRST_NS: u64 = 25_000;
/// How long a thread does not poll after it polled in vain while others wanted the CPU. Each further time doubles it.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(80);
/// The value of [`LONGEST_NS`] before it is first used.
const UNKNOWN: u64 = u64::MAX;

static LONGEST_NS: AtomicU64 = AtomicU64::new(UNKNOWN);

/// Sets the longest polling time of threads that start later, in microseconds; 0 turns polling off.
pub fn set_longest_us(us: u32) {
    LONGEST_NS.store(u64::from(us) * 1000, Ordering::Relaxed);
}

/// The longest time that threads of this program poll before they sleep, in microseconds.
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

/// One thread's polling, with what it has learnt from earlier waits.
#[derive(Debug)]
pub struct BusyPoll {
    /// The next polling time, in nanoseconds.
    window: u64,
    longest: u64,
    began: Option<Instant>,
    /// No polling before this time, because others wanted the CPU.
    paused: Option<Instant>,
    /// The length of the next pause.
    pause: Duration,
    is_crowded: fn() -> bool,
}

impl Default for BusyPoll {
    fn default() -> Self {
        Self::new(longest_ns(), is_crowded)
    }
}

impl BusyPoll {
    /// Polls for at most `longest` nanoseconds, and pauses while `is_crowded` returns true.
    fn new(longest: u64, is_crowded: fn() -> bool) -> Self {
        Self { window: longest, longest, began: None, paused: None, pause: SHORTEST_PAUSE, is_crowded }
    }

    /// Begins a wait: polls until `ready` returns true or the polling time is over. Returns whether `ready` did.
    ///
    /// After false the caller checks once more whether it may sleep, sleeps, and calls [`BusyPoll::slept`].
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

    /// Pauses polling if this thread may have occupied the CPU that another one needed.
    fn looked_in_vain(&mut self) {
        if (self.is_crowded)() {
            self.paused = Instant::now().checked_add(self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            (self.paused, self.pause) = (None, SHORTEST_PAUSE);
        }
    }

    /// Ends the wait that [`BusyPoll::look`] began: adapts the polling time to the length of the wait.
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

/// Whether more threads are runnable than there are CPUs, by Linux's current count (proc_loadavg(5), the fourth field).
/// KVM asks the scheduler the same question before it goes on polling.
fn is_crowded() -> bool {
    // The file is opened once: opening takes longer than reading.
    static ASKED: OnceLock<Option<(File, i64)>> = OnceLock::new();
    let Some((file, cpus)) = ASKED.get_or_init(|| Some((File::open("/proc/loadavg").ok()?, online()?)))
    else {
        return false;
    };
    let mut text = [0; 64];
    let running = file.read_at(&mut text, 0).ok().and_then(|len| running(text.get(..len)?));
    running.is_some_and(|running| running > *cpus)
}

/// The number of the host's CPUs. Not those that this program may use: [`is_crowded`] counts the threads of all
/// programs.
fn online() -> Option<i64> {
    // SAFETY: sysconf takes no pointer.
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
    fn an_event_within_the_polling_time_is_seen_and_does_not_adapt_it() {
        let mut habit = BusyPoll::new(u64::MAX, || false);
        let mut looks = 0;
        let seen = habit.look(|| {
            looks += 1;
            looks == 100
        });
        assert_eq!((seen, looks, habit.window), (true, 100, u64::MAX));
    }

    #[test]
    fn polling_ends() {
        let mut habit = BusyPoll::new(10 * US, || false);
        assert!(!habit.look(|| false));
        habit.slept();
        assert!(habit.window <= 10 * US);
    }

    #[test]
    fn long_waits_end_polling_and_short_waits_start_it_again() {
        let mut habit = BusyPoll::new(200 * US, || false);
        let mut windows = Vec::new();
        for waited in [300, 300, 300, 300, 300, 150, 150, 150, 150, 150, 300] {
            habit.learn(waited * US);
            windows.push(habit.window / US);
        }
        assert_eq!(windows, [100, 50, 25, 0, 0, 25, 50, 100, 200, 200, 100]);
    }

    #[test]
    fn polling_pauses_while_others_want_the_cpu() {
        let mut habit = BusyPoll::new(US, || true);
        assert!(!habit.look(|| false));
        habit.slept();
        let until = habit.paused.expect("a pause");
        if !habit.look(|| true) {
            assert_eq!(habit.pause, SHORTEST_PAUSE * 2, "a paused thread has not polled in vain");
        } else {
            assert!(Instant::now() >= until, "the pause was over before the second look");
        }
        habit.is_crowded = || false;
        (habit.paused, habit.window) = (None, US);
        assert!(!habit.look(|| false));
        assert_eq!((habit.paused, habit.pause), (None, SHORTEST_PAUSE));
    }

    #[test]
    fn the_count_of_runnable_threads_is_read() {
        assert_eq!(running(b"0.42 0.35 0.30 3/127 4711\n"), Some(3));
        assert_eq!([&b""[..], b"0.42 0.35 0.30", b"0 0 0 x/y 1"].map(running), [None; 3]);
        assert!(
            File::open("/proc/loadavg").is_err()
                || running(&std::fs::read("/proc/loadavg").unwrap()).is_some()
        );
    }

    #[test]
    fn a_longest_time_of_zero_turns_polling_off() {
        let mut habit = BusyPoll::new(0, || false);
        assert!(!habit.look(|| panic!("it looked")));
        habit.slept();
        assert!(!habit.look(|| panic!("it looked")));
    }
}
