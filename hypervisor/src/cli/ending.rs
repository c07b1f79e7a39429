//! Ending a run from outside: by a signal, by `--timeout`, at the keyboard, by a lost device.
//!
//! To ask means to send [`Command::Stop`]. That alone can come too late or reach the wrong thread: the vCPU's thread
//! may be just about to block in write(2). So a timer of that thread goes off again and again from then on. Each time
//! it interrupts whatever call the thread is in, and every loop around such a call asks the control channel whether to
//! stop. The same timer brings the deadline. What even that does not end (a disk that does not answer, a process that
//! somebody stopped) ends hard after [`GRACE_NS`]: the terminal is restored and the program exits. Its guest processes
//! die with it (PR_SET_PDEATHSIG).
//!
//! Before the guest runs there is nothing to end in order, so a signal or the deadline ends the program at once.
//!
//! What may not be done here: anything that is not async-signal-safe, but in [`begin`]. Most of this runs in signal
//! handlers.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::{status, terminal};
use crate::host::limit::Limited;
use crate::host::notice;
use crate::monitor::{Command, Control};

/// How often the vCPU's thread is interrupted until the run has ended.
const INSIST_NS: u64 = 10_000_000;
/// How long a run has to end in order: for its disks to finish what they have begun.
pub(super) const GRACE_NS: u64 = 5_000_000_000;

/// How far the run has come.
mod phase {
    /// Nothing of the guest's runs yet.
    pub const STARTING: u8 = 0;
    /// The guest runs, or what belongs to it is being taken down.
    pub const RUNNING: u8 = 1;
}

static PHASE: AtomicU8 = AtomicU8::new(phase::STARTING);
static CONTROL: OnceLock<Control> = OnceLock::new();
/// The kernel's number of the timer; -1: none.
static TIMER: AtomicI32 = AtomicI32::new(-1);
/// When the time of `--timeout` is up, on CLOCK_MONOTONIC in nanoseconds.
static DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);
/// When the end was asked for first, on the same clock; 0: not yet.
static ASKED: AtomicU64 = AtomicU64::new(0);
/// The exit status of whoever asked first, for a run that has to be ended hard; -1: nobody asked.
static STATUS: AtomicI32 = AtomicI32::new(-1);
/// The signal that asked for the end first; 0: none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Who asks for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A signal that somebody sent.
    Signal(libc::c_int),
    /// Ctrl-A x.
    Keyboard,
    /// A device that cannot be used after all.
    LostDevice,
    /// `--timeout`.
    Deadline,
}

impl Asker {
    fn status(self) -> libc::c_int {
        match self {
            Self::Signal(number) => libc::c_int::from(status::SIGNAL_BASE) + number,
            Self::Keyboard => 0,
            Self::LostDevice => status::HOST_ERROR.into(),
            Self::Deadline => status::TIMEOUT.into(),
        }
    }
}

/// The signal of the timer, which no engine uses.
pub(super) fn timer_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// From now on the run of this process ends by `control`, and after `timeout` at the latest. To be called by the thread
/// that is going to be the vCPU's; its `on_timer` handler is installed by the caller before.
///
/// # Errors
/// When the host has no timer left.
pub(super) fn begin(control: Control, timeout: Option<Duration>) -> Result<(), Limited> {
    CONTROL.get_or_init(|| control);
    let timer = make_timer().map_err(|error| Limited::new("make a timer", error))?;
    TIMER.store(timer, SeqCst);
    if let Some(timeout) = timeout {
        let ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        DEADLINE.store(now_ns().saturating_add(ns), SeqCst);
        set_timer(ns);
    }
    Ok(())
}

/// The guest is about to run: from here on it is ended in order.
pub(super) fn guest_runs() {
    PHASE.store(phase::RUNNING, SeqCst);
    if ASKED.load(SeqCst) != 0 {
        // What was asked for meanwhile has its time from now on.
        ASKED.store(now_ns(), SeqCst);
    }
}

/// The signal that asked for the end, if one did.
pub(super) fn signal() -> Option<u8> {
    u8::try_from(SIGNAL.load(SeqCst)).ok().filter(|number| *number != 0)
}

/// Asks for the end of the run. Any thread may, and a signal handler.
///
/// Does not return where there is nothing to end in order, nor for a second signal.
pub(super) fn ask(asker: Asker) {
    let (mut impatient, mut starting) = (false, false);
    if let Asker::Signal(number) = asker {
        let first = SIGNAL.compare_exchange(0, number, SeqCst, SeqCst).is_ok();
        // Every write to a closed pipe raises SIGPIPE again; only a repeated request is impatience.
        impatient = !first && number != libc::SIGPIPE;
        starting = PHASE.load(SeqCst) == phase::STARTING;
    }
    if impatient || starting {
        end_now(asker.status(), b"");
    }
    let _ = STATUS.compare_exchange(-1, asker.status(), SeqCst, SeqCst);
    let _ = ASKED.compare_exchange(0, now_ns().max(1), SeqCst, SeqCst);
    stop_the_guest();
    set_timer(INSIST_NS);
}

/// The timer has gone off, in the thread of the vCPU: the deadline has come, or the end was asked for and is not here.
pub(super) fn on_timer() {
    let now = now_ns();
    if now >= DEADLINE.load(SeqCst) {
        if PHASE.load(SeqCst) == phase::STARTING {
            end_now(Asker::Deadline.status(), b"paravane: timed out before the guest ran\n");
        }
        let _ = STATUS.compare_exchange(-1, Asker::Deadline.status(), SeqCst, SeqCst);
        let _ = ASKED.compare_exchange(0, now, SeqCst, SeqCst);
    }
    let asked = ASKED.load(SeqCst);
    if asked == 0 || PHASE.load(SeqCst) == phase::STARTING {
        return;
    }
    stop_the_guest();
    if now.saturating_sub(asked) >= GRACE_NS {
        const TOO_LONG: &[u8] =
            b"paravane: ended hard: something on the host has kept the run from ending for 5 seconds\n";
        end_now(STATUS.load(SeqCst).max(0), TOO_LONG);
    }
}

fn stop_the_guest() {
    notice::stop_waiting();
    if let Some(control) = CONTROL.get() {
        control.send(Command::Stop);
    }
}

/// Ends the program without waiting for anything.
fn end_now(status: libc::c_int, why: &[u8]) -> ! {
    terminal::restore();
    let stderr = io::stderr();
    if !why.is_empty() && notice::has_room(stderr.as_fd(), 0) {
        // SAFETY: `why` is live and as long as it says.
        unsafe { libc::write(libc::STDERR_FILENO, why.as_ptr().cast(), why.len()) };
    }
    // SAFETY: async-signal-safe, does not return.
    unsafe { libc::_exit(status) }
}

/// A timer on the monotonic clock whose signal goes to the calling thread. The kernel's own number: libc's type may not
/// be used in a signal handler.
fn make_timer() -> io::Result<i32> {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut event: libc::sigevent = unsafe { zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = timer_signal();
    // SAFETY: has no precondition.
    event.sigev_notify_thread_id = unsafe { libc::gettid() };
    let mut timer = -1i32;
    // SAFETY: both pointers are to live locals; the kernel stores an int.
    let answer = unsafe {
        libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(timer) }
}

/// Lets the timer go off in `ns`, and then again and again.
fn set_timer(ns: u64) {
    const NS_PER_S: u64 = 1_000_000_000;
    let time = |ns: u64| libc::timespec {
        tv_sec: i64::try_from(ns / NS_PER_S).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % NS_PER_S).unwrap_or(0),
    };
    let when = libc::itimerspec { it_interval: time(INSIST_NS), it_value: time(ns.max(1)) };
    // SAFETY: `when` is a live local; the kernel refuses a number that does not name a timer.
    unsafe { libc::syscall(libc::SYS_timer_settime, TIMER.load(SeqCst), 0, &raw const when, 0) };
}

fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for one timespec; clock_gettime is async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.unsigned_abs())
}
