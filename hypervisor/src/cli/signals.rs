//! Signals during a run: end the guest in order, give the terminal back, stop and continue like any program.
//!
//! | Signal | What it does |
//! | --- | --- |
//! | INT, TERM, HUP, QUIT, PIPE | end the run in order ([`ending`]); exit status 128 + number |
//! | everything else that ends a program, faults and abort(3) too | restore the terminal, then do what they do |
//! | TSTP | restores the terminal, then stops the program |
//! | CONT | makes the terminal raw again, whatever stopped the program |
//! | USR2 | saves the guest, if there is a file for it ([`on_save`]) |
//! | XFSZ | nothing: a file over its limit is an error of the write |
//!
//! What was ignored when the program started stays ignored (nohup, background jobs).
//!
//! Everything that runs in a handler here is async-signal-safe: atomics, `tcsetattr`, `raise`, `write`, `_exit` and
//! `Kick::kick`, which promises to be.

use std::io;
use std::mem::zeroed;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::EventFd;

use super::ending::{self, Asker};
use super::terminal;
use crate::host::threads;
use crate::monitor::{Command, Control};

/// What ends a run. SIGPIPE is among them: a console whose reader went away has no use.
const ENDING: [libc::c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];
/// What else ends a program by default (signal(7)). SIGKILL cannot be handled; real-time signals come on top.
const FATAL: [libc::c_int; 16] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGUSR1,
    libc::SIGSEGV,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSYS,
];

static RESIZED: OnceLock<EventFd> = OnceLock::new();
static SAVES: OnceLock<Control> = OnceLock::new();
/// What Rust's runtime does about SIGSEGV and SIGBUS: it looks for stack overflows.
static OF_THE_RUNTIME: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

type Plain = extern "C" fn(libc::c_int);
type Informed = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Takes over the signals that end a run, and the timer's that sees to it: to be called before [`ending::begin`].
pub(super) fn install() {
    for signal in ENDING {
        // Rust starts every program with SIGPIPE ignored; that is not our parent's wish.
        handle(signal, on_end as Plain as usize, 0, signal != libc::SIGPIPE);
    }
    handle(ending::timer_signal(), on_timer as Informed as usize, libc::SA_SIGINFO, false);
    threads::unblock_signal(ending::timer_signal());
}

/// Takes over what would end or stop the program with the terminal raw: to be called before it is made raw.
///
/// Engines and the timer take their own real-time signals over later, and have no use for what others send.
pub(super) fn guard_terminal() {
    OF_THE_RUNTIME.get_or_init(|| [libc::SIGSEGV, libc::SIGBUS].map(disposition));
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    for signal in FATAL.into_iter().chain(real_time.filter(|signal| *signal != ending::timer_signal())) {
        handle(signal, on_fatal as Informed as usize, libc::SA_SIGINFO | libc::SA_ONSTACK, true);
    }
    // SIGTTIN and SIGTTOU are for programs in the background, where the terminal is another's already.
    handle(libc::SIGTSTP, on_stop as Plain as usize, libc::SA_RESTART, true);
    handle(libc::SIGCONT, on_continue as Plain as usize, libc::SA_RESTART, false);
}

/// Rings `bell` when the terminal's size has changed.
pub(super) fn on_resize(bell: EventFd) {
    RESIZED.get_or_init(|| bell);
    handle(libc::SIGWINCH, on_resized as Plain as usize, libc::SA_RESTART, false);
}

/// Has SIGUSR2 save the guest. After [`guard_terminal`], which takes that signal for one that ends the program.
pub(super) fn on_save(control: Control) {
    SAVES.get_or_init(|| control);
    handle(libc::SIGUSR2, on_save_signal as Plain as usize, libc::SA_RESTART, false);
}

/// Lets a closed pipe end the process quietly, as for any filter: for commands that run no guest.
pub(super) fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE; no handler of this program is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Makes a file that would grow past the process's limit (setrlimit(2), RLIMIT_FSIZE) an error of the write instead of
/// the end of the process. By a handler, because programs started by this one would inherit SIG_IGN.
pub(super) fn survive_file_limits() {
    extern "C" fn on_file_limit(_: libc::c_int) {}
    handle(libc::SIGXFSZ, on_file_limit as Plain as usize, libc::SA_RESTART, true);
}

/// Installs `handler`, unless the signal is ignored and that should stay so.
///
/// `handler` is one of this file's functions, of type [`Informed`] if `flags` have SA_SIGINFO and [`Plain`] if not.
fn handle(signal: libc::c_int, handler: usize, flags: libc::c_int, keep_ignored: bool) {
    if keep_ignored && disposition(signal).sa_sigaction == libc::SIG_IGN {
        return;
    }
    // SAFETY: plain data, for which all zeroes is a value.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handler is of the type that the flags say (see above), lives for ever and does only what one may.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// What is done about a signal now.
fn disposition(signal: libc::c_int) -> libc::sigaction {
    // SAFETY: plain data, for which all zeroes (the default action) is a value; then room for the answer.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action);
        action
    }
}

extern "C" fn on_end(signal: libc::c_int) {
    preserving_errno(|| ending::ask(Asker::Signal(signal)));
}

extern "C" fn on_timer(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    if unsafe { (*info).si_code } == libc::SI_TIMER {
        preserving_errno(ending::on_timer);
    } else {
        // Somebody sent it.
        on_fatal(signal, info, context);
    }
}

/// Restores the terminal and lets the signal do what it would have done without us.
extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    preserving_errno(|| {
        terminal::restore();
        // SAFETY: the kernel passes a valid siginfo. Codes above 0 are the kernel's own.
        let by_kernel = unsafe { (*info).si_code } > 0;
        let repeats = matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE);
        let before = OF_THE_RUNTIME.get().and_then(|[segv, bus]| match signal {
            libc::SIGSEGV if by_kernel => Some(segv),
            libc::SIGBUS if by_kernel => Some(bus),
            _ => None,
        });
        // SAFETY: plain data, for which all zeroes (the default action) is a value; `before` was what the kernel said.
        // Both calls are async-signal-safe.
        unsafe {
            let default = zeroed();
            libc::sigaction(
                signal,
                before.map_or(&raw const default, std::ptr::from_ref),
                std::ptr::null_mut(),
            );
            // An instruction that faulted does so again on return. Anything else is delivered once more then: the
            // signal is blocked for as long as its handler runs.
            if !(by_kernel && repeats) {
                libc::raise(signal);
            }
        }
    });
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

extern "C" fn on_save_signal(_: libc::c_int) {
    if let Some(control) = SAVES.get() {
        preserving_errno(|| control.send(Command::Save));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How a process ends that does this after it has taken its signals over.
    fn end_of(deed: fn()) -> libc::c_int {
        // SAFETY: the new process makes system calls and faults, nothing that other threads of this one could have
        // left half done; the status is a live local.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0, "{}", io::Error::last_os_error());
            if child == 0 {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                guard_terminal();
                deed();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { -libc::WEXITSTATUS(status) }
        }
    }

    /// Faults are not lost in the handler, nor repeated for ever.
    #[test]
    fn faults_and_aborts_of_the_program_itself_end_it_as_ever() {
        // SAFETY: each ends the process, which is what is tested.
        unsafe {
            assert_eq!(
                end_of(|| _ = std::ptr::read_volatile(std::ptr::without_provenance::<u8>(8))),
                libc::SIGSEGV
            );
            assert_eq!(end_of(|| std::arch::asm!("ud2")), libc::SIGILL);
            assert_eq!(end_of(|| std::arch::asm!("int3")), libc::SIGTRAP);
            assert_eq!(end_of(|| libc::abort()), libc::SIGABRT);
            assert_eq!(end_of(|| _ = libc::raise(libc::SIGSEGV)), libc::SIGSEGV);
            assert_eq!(end_of(|| _ = libc::raise(libc::SIGRTMAX())), libc::SIGRTMAX());
        }
    }
}
