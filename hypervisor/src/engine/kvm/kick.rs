//! Making a vCPU leave the guest: a signal to its thread, now or at a deadline.
//!
//! The handler sets `kvm_run.immediate_exit`, which closes the race of a signal that comes just before
//! KVM_RUN (KVM API documentation, "immediate_exit"). It does nothing else, and nothing else may be added:
//! it runs between any two instructions of the vCPU's thread.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

use kvm_bindings::kvm_run;

use crate::host::threads;
use crate::machine::kick::Kick;

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs; null when it runs none.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_signal(_: libc::c_int) {
    // `const` initialisation and no destructor: no allocation and no registration happens here.
    let _ = IMMEDIATE_EXIT.try_with(|cell| {
        let byte = cell.get();
        if !byte.is_null() {
            // SAFETY: non-null only between `KvmKick::new` and `detach`, while the vCPU's shared page is mapped;
            // KVM reads the byte, nothing else writes it except this same thread.
            unsafe { byte.write_volatile(1) }
        }
    });
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid value; the handler is async-signal-safe (see its comment).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal(), &action, ptr::null_mut());
        }
    });
}

/// Kicks a vCPU, once a thread runs it.
#[derive(Debug, Default)]
pub struct KvmKick {
    thread: AtomicI32,
    timer: AtomicPtr<libc::c_void>,
    attached: AtomicBool,
    /// A signal is on its way and was not answered yet: another would only take up room in the host's queue of
    /// them, which all processes of a user share.
    pending: AtomicBool,
}

impl KvmKick {
    /// Attaches the calling thread to the vCPU whose shared page is `run`.
    pub fn new(run: &mut kvm_run) -> io::Result<Self> {
        let kick = Self::default();
        kick.attach(run)?;
        Ok(kick)
    }

    /// The same for one that no thread has been attached to: until then its kicks do nothing.
    pub fn attach(&self, run: &mut kvm_run) -> io::Result<()> {
        install_handler();
        threads::unblock_signal(signal());
        IMMEDIATE_EXIT.with(|cell| cell.set(&raw mut run.immediate_exit));
        // SAFETY: no arguments, cannot fail.
        let thread = unsafe { libc::gettid() };
        // SAFETY: a zeroed sigevent is a valid value, then filled for SIGEV_THREAD_ID (timer_create(2)).
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to live locals of the right type.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.thread.store(thread, Ordering::Relaxed);
        self.timer.store(timer, Ordering::Relaxed);
        self.attached.store(true, Ordering::Release);
        Ok(())
    }

    /// For the vCPU, once `immediate_exit` is clear again and before it returns for this kick.
    ///
    /// In this order a kick in between is one that is being answered; in the other it would be lost, and all
    /// after it.
    pub fn answered(&self) {
        self.pending.store(false, Ordering::SeqCst);
    }

    /// Whether a thread has been attached.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// Ends the attachment, before the vCPU's shared page goes away. Must run on the vCPU's thread, or after that has
    /// ended.
    pub fn detach(&self) {
        if self.attached.swap(false, Ordering::AcqRel) {
            // SAFETY: no arguments, cannot fail.
            if unsafe { libc::gettid() } == self.thread.load(Ordering::Relaxed) {
                IMMEDIATE_EXIT.with(|cell| cell.set(ptr::null_mut()));
            }
            // SAFETY: the timer is ours and deleted once, because of the swap above.
            unsafe { libc::timer_delete(self.timer.load(Ordering::Relaxed)) };
        }
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        if self.attached.load(Ordering::Acquire) && !self.pending.swap(true, Ordering::SeqCst) {
            let thread = self.thread.load(Ordering::Relaxed);
            // SAFETY: plain system call; a thread that is gone is an error that we may ignore.
            let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
            if sent != 0 {
                // The queue of signals is full: the next kick has to try again.
                self.pending.store(false, Ordering::SeqCst);
            }
        }
    }

    fn arm(&self, ns: u64) {
        const NS_PER_S: u64 = 1_000_000_000;
        if !self.attached.load(Ordering::Acquire) {
            return;
        }
        let value = libc::timespec {
            tv_sec: i64::try_from(ns / NS_PER_S).unwrap_or(i64::MAX),
            tv_nsec: (ns % NS_PER_S) as i64,
        };
        let spec =
            libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the timer lives until `detach`; `spec` is a live local.
        unsafe { libc::timer_settime(self.timer.load(Ordering::Relaxed), 0, &spec, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program inherits what its parent had blocked: no kick would ever reach the vCPU.
    #[test]
    fn a_kick_is_heard_by_a_thread_that_had_its_signal_blocked() {
        let thread = std::thread::spawn(|| {
            let mut run = kvm_run::default();
            // SAFETY: live sets; the mask is this thread's own.
            unsafe {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
            }
            let kick = KvmKick::new(&mut run).unwrap();
            // A signal for the own thread is delivered before tgkill(2) returns.
            kick.kick();
            kick.detach();
            // SAFETY: a live byte, which the handler wrote behind the compiler's back.
            unsafe { ptr::read_volatile(&raw const run.immediate_exit) }
        });
        assert_eq!(thread.join().unwrap(), 1);
    }
}
