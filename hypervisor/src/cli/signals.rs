//! Signals during a run: end the guest in order, give the terminal back, stop and continue like any program.
//!
//! Everything that runs in a handler here is async-signal-safe: atomics, `tcsetattr`, `raise`, `write`, `_exit` and
//! [`Kick::kick`], which promises to be.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use super::{status, terminal};
use crate::engine::Kick;

/// What ends a run. SIGPIPE is among them: a console whose reader went away has no use.
const ENDING: [libc::c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static KICKER: OnceLock<Arc<dyn Kick>> = OnceLock::new();
static RESIZED: OnceLock<EventFd> = OnceLock::new();
static RECEIVED: AtomicI32 = AtomicI32::new(0);

/// Takes the signals over for the one domain that this process runs.
///
/// From now on the first signal that asks for the end sets `stop` and kicks the vCPU; a second one, and any
/// before there is a vCPU, ends the process at once (the terminal restored).
pub(super) fn install(stop: Arc<AtomicBool>) {
    STOP.get_or_init(|| stop);
    for signal in ENDING {
        // Rust starts every program with SIGPIPE ignored; that is not our parent's wish.
        handle(signal, on_end, 0, signal != libc::SIGPIPE);
    }
    handle(libc::SIGTSTP, on_stop, libc::SA_RESTART, true);
    handle(libc::SIGCONT, on_continue, libc::SA_RESTART, false);
}

/// Tells the handlers whom to kick.
pub(super) fn set_kicker(kicker: Arc<dyn Kick>) {
    KICKER.get_or_init(|| kicker);
}

/// Rings `bell` when the terminal's size has changed.
pub(super) fn on_resize(bell: EventFd) {
    RESIZED.get_or_init(|| bell);
    handle(libc::SIGWINCH, on_resized, libc::SA_RESTART, false);
}

/// The signal that asked for the end, if one did.
pub(super) fn received() -> Option<u8> {
    u8::try_from(RECEIVED.load(Ordering::Acquire)).ok().filter(|n| *n != 0)
}

/// Lets a closed pipe end the process quietly, as for any filter: for commands that run no guest.
pub(super) fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE; no handler of ours is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Makes a file that would grow past the process's limit (setrlimit(2), RLIMIT_FSIZE) an error of the write instead of
/// the end of the process: for guests that have disks.
pub(super) fn ignore_sigxfsz() {
    // SAFETY: SIG_IGN is a valid disposition for SIGXFSZ; no handler of ours is involved.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Installs `handler`, unless the signal is ignored and that should stay so (nohup, background jobs).
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int, keep_ignored: bool) {
    // SAFETY: zero is a valid sigaction (default action, empty mask); every call gets valid pointers, and the
    // handlers are `extern "C"` functions that live for ever and do only what a handler may.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut old);
        if keep_ignored && old.sa_sigaction == libc::SIG_IGN {
            return;
        }
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = handler as *const () as libc::sighandler_t;
        new.sa_flags = flags;
        libc::sigemptyset(&mut new.sa_mask);
        libc::sigaction(signal, &new, std::ptr::null_mut());
    }
}

extern "C" fn on_end(signal: libc::c_int) {
    let first = RECEIVED.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire).is_ok();
    if let (Some(stop), Some(kicker)) = (STOP.get(), KICKER.get()) {
        // Every write to a closed pipe raises SIGPIPE again; only a repeated request is impatience.
        if first || signal == libc::SIGPIPE {
            stop.store(true, Ordering::Release);
            preserving_errno(|| kicker.kick());
            return;
        }
    }
    terminal::restore();
    // SAFETY: async-signal-safe, does not return.
    unsafe { libc::_exit(libc::c_int::from(status::SIGNAL_BASE) + signal) };
}

extern "C" fn on_stop(_: libc::c_int) {
    preserving_errno(|| {
        terminal::restore();
        // SAFETY: raise has no precondition. SIGSTOP stops the process here until SIGCONT.
        unsafe { libc::raise(libc::SIGSTOP) };
    });
}

extern "C" fn on_continue(_: libc::c_int) {
    preserving_errno(terminal::reenter);
}

extern "C" fn on_resized(_: libc::c_int) {
    if let Some(bell) = RESIZED.get() {
        // One write(2). A counter that is full has rung often enough.
        preserving_errno(|| drop(bell.write(1)));
    }
}

fn preserving_errno(f: impl FnOnce()) {
    let saved = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    f();
    // SAFETY: the location of this thread's errno is valid for as long as the thread lives.
    unsafe { *libc::__errno_location() = saved };
}
