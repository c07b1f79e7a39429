//! Kicks: making the guest thread stop, from any thread, from a signal handler, or at a deadline.
//!
//! A kick marks itself pending and signals the guest's thread. The stub turns the signal into a hand-over;
//! where it is in our own code it leaves a mark for its way back into the guest and goes on. A guest that
//! hides in our code could so outlast a kick, which is why kicks *insist*: until one is answered the signal
//! comes again every millisecond, and a process whose thread used [`PATIENCE_NS`] of CPU time meanwhile is killed.
//!
//! A target is a thread's number in a process's. Both are its own for as long as the process is not reaped, and whoever
//! reaps it takes the aim away first.
//!
//! Deadlines and insistence are POSIX timers whose signal goes to the vCPU's own thread: nothing on the exit
//! path. Their handler may run late, even after its virtual CPU is gone, so what it touches is static.
//! What may not be done here: locks, allocation, waiting (but for kicks under way, before a process is reaped).

use std::io;
use std::mem::zeroed;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::stub::KICK_SIGNAL;
use super::sys;
use crate::host::threads;
use crate::machine::kick::Kick;

/// How often an unanswered kick is repeated.
const INSIST_NS: i64 = 1_000_000;
/// CPU time that a process may use before it answers a kick.
const PATIENCE_NS: u64 = 300_000_000;
/// How many virtual CPUs one program can have at a time.
const SLOTS: usize = 256;
const NOBODY: u64 = 0;

/// A thread of a process, in one word.
fn target(process: u32, thread: u32) -> u64 {
    u64::from(process) << 32 | u64::from(thread)
}

/// Process and thread of a target.
fn parts(target: u64) -> (u32, u32) {
    ((target >> 32) as u32, target as u32)
}

/// One virtual CPU's kick state.
#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    pending: AtomicBool,
    /// The thread that runs guest code now, or [`NOBODY`].
    target: AtomicU64,
    /// How many guest threads its process has.
    threads: AtomicU32,
    /// The thread's CPU time when a kick was first repeated; 0 before that.
    since: AtomicU64,
    /// The process that was killed for not answering, or 0.
    killed: AtomicU32,
    /// The kernel's id of the timer that repeats.
    insist: AtomicI32,
    /// How many kicks may be using the target: its process is not reaped before they are done.
    users: AtomicU32,
}

static ALL: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        pending: AtomicBool::new(false),
        target: AtomicU64::new(NOBODY),
        threads: AtomicU32::new(1),
        since: AtomicU64::new(0),
        killed: AtomicU32::new(0),
        insist: AtomicI32::new(-1),
        users: AtomicU32::new(0),
    }
}; SLOTS];

impl Slot {
    fn kick(&self) {
        if self.pending.swap(true, SeqCst) {
            // Whoever kicked first has signalled, and insists.
            return;
        }
        self.users.fetch_add(1, SeqCst);
        self.signal();
        self.users.fetch_sub(1, SeqCst);
    }

    /// The rest of a kick that marked itself pending. It may have been answered meanwhile.
    fn signal(&self) {
        let target = self.target.load(SeqCst);
        if target != NOBODY {
            let (process, thread) = parts(target);
            sys::signal_thread(process, thread, KICK_SIGNAL);
            sys::set_timer(self.insist.load(SeqCst), INSIST_NS, INSIST_NS);
        }
    }

    /// Repeats a kick that was not answered yet. Runs in the vCPU's thread.
    fn insist(&self) {
        if !self.pending.load(SeqCst) {
            return self.calm_down();
        }
        let target = self.target.load(SeqCst);
        if target == NOBODY {
            return;
        }
        let (process, thread) = parts(target);
        let used = match self.threads.load(SeqCst) {
            1 => sys::cpu_time_ns(process),
            // Linux lets nobody read the clock of another process's thread. Its share of the process's is what is left.
            threads => sys::thread_time_ns(process, thread)
                .unwrap_or_else(|| sys::cpu_time_ns(process) / u64::from(threads.max(1))),
        };
        let since = self.since.load(SeqCst);
        if since == 0 {
            self.since.store(used.max(1), SeqCst);
        }
        let patience_is_over = since != 0 && used.saturating_sub(since) > PATIENCE_NS;
        if patience_is_over {
            self.killed.store(process, SeqCst);
        }
        sys::signal_thread(process, thread, if patience_is_over { libc::SIGKILL } else { KICK_SIGNAL });
    }

    /// Ends the repetition of a kick that was answered before its thread came to set the timer: nobody else would, and
    /// a vCPU that sleeps would be woken every millisecond. One that is pending by the second look has set the timer
    /// before this cleared it, or sets it later.
    fn calm_down(&self) {
        let insist = self.insist.load(SeqCst);
        sys::set_timer(insist, 0, 0);
        if self.pending.load(SeqCst) {
            sys::set_timer(insist, INSIST_NS, INSIST_NS);
        }
    }
}

/// The signal of the timers: one of the real-time signals, unused by Rust and by libc.
fn timer_signal() -> i32 {
    libc::SIGRTMIN() + 6
}

/// What a timer's signal carries: which slot, and which of its two timers.
fn value(slot: usize, insists: bool) -> usize {
    slot << 1 | usize::from(insists)
}

extern "C" fn on_timer(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, and its value is only read as a number; errno is this
    // thread's own.
    unsafe {
        let value = (*info).si_value().sival_ptr.addr();
        if let (libc::SI_TIMER, Some(slot)) = ((*info).si_code, ALL.get(value >> 1)) {
            let errno = *libc::__errno_location();
            if value & 1 == 1 {
                slot.insist()
            } else {
                slot.kick()
            }
            *libc::__errno_location() = errno;
        }
    }
}

fn install_handler() -> io::Result<()> {
    static RESULT: OnceLock<i32> = OnceLock::new();
    let errno = *RESULT.get_or_init(|| {
        // SAFETY: plain data, for which all zeroes is a value.
        let mut action: libc::sigaction = unsafe { zeroed() };
        action.sa_sigaction = on_timer as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: the handler only touches atomics and makes system calls, and keeps errno.
        match unsafe { libc::sigaction(timer_signal(), &raw const action, std::ptr::null_mut()) } {
            0 => 0,
            _ => io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL),
        }
    });
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// The handle that other threads hold.
#[derive(Debug)]
pub(super) struct ProcessKick {
    index: usize,
    slot: &'static Slot,
    deadline: AtomicI32,
    /// The thread that its timers signal, or 0 while there are none.
    settled: AtomicU32,
}

impl ProcessKick {
    /// For a virtual CPU whose process has so many guest threads. It has to [settle](Self::settle).
    pub fn new(threads: u8) -> io::Result<Self> {
        install_handler()?;
        let free = |(_, slot): &(usize, &'static Slot)| !slot.taken.swap(true, SeqCst);
        let Some((index, slot)) = ALL.iter().enumerate().find(free) else {
            return Err(io::Error::from_raw_os_error(libc::EUSERS));
        };
        slot.pending.store(false, SeqCst);
        slot.killed.store(0, SeqCst);
        slot.threads.store(threads.into(), SeqCst);
        // From here on dropping it gives the slot back.
        Ok(Self { index, slot, deadline: AtomicI32::new(-1), settled: AtomicU32::new(0) })
    }
    /// The calling thread is the one that runs the vCPU: it gets the timers' signals.
    pub fn settle(&self) -> io::Result<()> {
        let thread = sys::this_thread();
        if self.settled.load(SeqCst) == thread {
            return Ok(());
        }
        threads::unblock_signal(timer_signal());
        self.delete_timers();
        self.slot.insist.store(sys::make_timer(timer_signal(), value(self.index, true))?, SeqCst);
        self.deadline.store(sys::make_timer(timer_signal(), value(self.index, false))?, SeqCst);
        self.settled.store(thread, SeqCst);
        Ok(())
    }
    fn delete_timers(&self) {
        for timer in [&self.deadline, &self.slot.insist] {
            let timer = timer.swap(-1, SeqCst);
            if timer >= 0 {
                sys::delete_timer(timer);
            }
        }
    }
    /// Whether a kick waits; takes it.
    pub fn take(&self) -> bool {
        if !self.slot.pending.load(SeqCst) {
            return false;
        }
        sys::set_timer(self.slot.insist.load(SeqCst), 0, 0);
        self.slot.since.store(0, SeqCst);
        self.slot.pending.swap(false, SeqCst)
    }
    /// Whether `process` was killed because it did not answer a kick, this virtual CPU's or another's.
    pub fn lost_patience(&self, process: u32) -> bool {
        ALL.iter().any(|slot| slot.killed.load(SeqCst) == process)
    }
    /// Says whom a kick must signal from now on. Ask [`ProcessKick::take`] after this and before entering.
    pub fn aim(&self, process: u32, thread: u32) {
        self.slot.target.store(target(process, thread), SeqCst);
    }
    /// Takes the aim away.
    pub fn rest(&self) {
        self.slot.target.store(NOBODY, SeqCst);
    }
    /// The same for good: when this returns nobody is about to signal a thread any more, and processes may be reaped.
    pub fn retire(&self) {
        self.rest();
        while self.slot.users.load(SeqCst) != 0 {
            // A kick under way may be that of a thread that waits for this CPU.
            std::thread::yield_now();
        }
        self.slot.killed.store(0, SeqCst);
    }
}

impl Kick for ProcessKick {
    fn kick(&self) {
        self.slot.kick();
    }
    fn arm(&self, ns: u64) {
        sys::set_timer(self.deadline.load(SeqCst), i64::try_from(ns).unwrap_or(i64::MAX), 0);
    }
}

impl Drop for ProcessKick {
    fn drop(&mut self) {
        self.delete_timers();
        self.slot.killed.store(0, SeqCst);
        self.slot.target.store(NOBODY, SeqCst);
        self.slot.taken.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_armed(timer: i32) -> bool {
        // SAFETY: plain data, for which all zeroes is a value.
        let mut left: libc::itimerspec = unsafe { zeroed() };
        // SAFETY: `left` is a live local; the kernel refuses an id that does not name a timer.
        assert_eq!(unsafe { libc::syscall(libc::SYS_timer_gettime, timer, &raw mut left) }, 0);
        (left.it_value.tv_sec, left.it_value.tv_nsec) != (0, 0)
    }

    /// The kicking thread was held up between its two halves: the vCPU has left the guest for it, and entered again.
    #[test]
    fn nobody_insists_on_a_kick_that_was_answered_before_it_was_made() {
        let kick = ProcessKick::new(1).unwrap();
        kick.settle().unwrap();
        let insist = kick.slot.insist.load(SeqCst);
        // No process has this number: signals go nowhere.
        kick.aim(i32::MAX.unsigned_abs(), 1);
        kick.slot.pending.store(true, SeqCst);
        assert!(kick.take());
        kick.slot.signal();
        kick.slot.insist();
        assert!(!is_armed(insist), "the vCPU would be woken for nothing for as long as nobody kicks it");
        kick.kick();
        kick.slot.insist();
        assert!(is_armed(insist), "one that was not answered is repeated");
        assert!(kick.take() && !is_armed(insist));
    }
}
