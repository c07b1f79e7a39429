//! How a kernel ends.
#![forbid(unsafe_code)]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::hypercall::sched::{Shutdown, shutdown};
use crate::{console, event, println};

/// Ends the domain: it has finished.
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

/// What [`panic_handler!`](crate::panic_handler) does: says what happened and ends the domain as crashed.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    static TWICE: AtomicBool = AtomicBool::new(false);
    event::disable();
    if TWICE.swap(true, Ordering::Relaxed) {
        // Printing is what failed: no more of that.
        shutdown(Shutdown::Crash);
    }
    match info.location() {
        Some(at) => println!("panic: {} at {}:{}", info.message(), at.file(), at.line()),
        None => println!("panic: {}", info.message()),
    }
    crash()
}
