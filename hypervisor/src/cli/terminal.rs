//! The user's terminal: raw while a guest has the console, as it was on every way out.
//!
//! [`restore`] is what panics, signals and ordinary ends have in common; it may be called from anywhere, a
//! signal handler included, any number of times. Nothing here reads or writes text.

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::signals;

const TERMINAL: libc::c_int = libc::STDIN_FILENO;

/// The modes as we found them and as we set them.
static MODES: OnceLock<(libc::termios, libc::termios)> = OnceLock::new();
/// Whether the terminal is ours to set back.
static RAW: AtomicBool = AtomicBool::new(false);
/// Whether a guest wants it raw: what a stopped and continued program returns to.
static WANTED: AtomicBool = AtomicBool::new(false);

/// How many characters a line of the terminal on standard output has; nothing if there is no terminal.
pub(super) fn columns() -> Option<usize> {
    // SAFETY: zeroes are a winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ fills the winsize that it is given, which outlives the call.
    let told = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) } == 0;
    Some(usize::from(size.ws_col)).filter(|columns| told && *columns != 0)
}

/// Holds the terminal in raw mode; dropping it restores the terminal.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    /// Makes the terminal on standard input raw; does nothing if standard input is not a terminal.
    pub(super) fn enter() -> Option<Self> {
        let found = current_modes()?;
        signals::guard_terminal();
        let mut raw = found;
        // SAFETY: `raw` is a termios that tcgetattr filled.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Guests print line feeds alone; the terminal keeps turning them into new lines.
        raw.c_oflag = found.c_oflag;
        MODES.get_or_init(|| (found, raw));
        WANTED.store(true, Ordering::Relaxed);
        reenter();
        Some(Self(()))
    }
}

/// From now on a panic restores the terminal before it is reported. A panic of a thread that is not this one ends a
/// device and not the run: then the terminal is raw again afterwards.
pub(super) fn restore_on_panic() {
    let (previous, of_the_run) = (std::panic::take_hook(), std::thread::current().id());
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
        if std::thread::current().id() != of_the_run {
            reenter();
        }
    }));
}

impl Drop for RawMode {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Relaxed);
        restore();
    }
}

/// Gives the terminal back as it was found. Safe in a signal handler.
pub(super) fn restore() {
    if RAW.swap(false, Ordering::AcqRel) && in_foreground() {
        set(MODES.get().map(|(found, _)| found));
    }
}

/// Makes the terminal raw, again or still, if a guest wants it. Safe in a signal handler.
///
/// Also where it should be raw already: SIGSTOP leaves no time for [`restore`], and the shell has set its own modes
/// since.
pub(super) fn reenter() {
    // In the background this would stop us (SIGTTOU) and spoil what the shell has set for itself.
    if WANTED.load(Ordering::Relaxed) && in_foreground() {
        RAW.store(true, Ordering::Release);
        set(MODES.get().map(|(_, raw)| raw));
    }
}

fn current_modes() -> Option<libc::termios> {
    let mut modes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to room for a termios, which a return value of 0 says was filled.
    let filled = unsafe { libc::tcgetattr(TERMINAL, modes.as_mut_ptr()) } == 0;
    // SAFETY: filled, see above.
    filled.then(|| unsafe { modes.assume_init() })
}

fn set(modes: Option<&libc::termios>) {
    if let Some(modes) = modes {
        // TCSANOW: waiting for output to drain could wait for ever for a reader that has gone.
        // SAFETY: `modes` points to a whole termios. A failure (the terminal is gone) leaves nothing to do.
        unsafe { libc::tcsetattr(TERMINAL, libc::TCSANOW, modes) };
    }
}

fn in_foreground() -> bool {
    // SAFETY: neither call has a precondition; both are async-signal-safe.
    unsafe { libc::tcgetpgrp(TERMINAL) == libc::getpgrp() }
}
