//! Ending the domain.
#![forbid(unsafe_code)]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::hypercall::sched::{Shutdown, shutdown};
use crate::{console, event, println};

/// Ends the domain: its work is done.
pub fn power_off() -> ! {
    end(Shutdown::PowerOff)
}

/// Ends the domain and asks for it to be started again.
pub fn reboot() -> ! {
    end(Shutdown::Reboot)
}

/// Ends the domain as crashed.
pub fn crash() -> ! {
    end(Shutdown::Crash)
}

fn end(reason: Shutdown) -> ! {
    event::disable();
    console::drain();
    shutdown(reason)
}

/// Prints the panic and ends the domain as crashed: the body of [`panic_handler!`](crate::panic_handler).
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    static TWICE: AtomicBool = AtomicBool::new(false);
    event::disable();
    if TWICE.swap(true, Ordering::Relaxed) {
        // The first panic's output failed: print no more.
        shutdown(Shutdown::Crash);
    }
    match info.location() {
        Some(at) => println!("panic: {} at {}:{}", info.message(), at.file(), at.line()),
        None => println!("panic: {}", info.message()),
    }
    crash()
}
