//! System calls and signals.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Benchmark, each, usage};
use crate::start::Arguments;
use crate::sys;

/// `lat_syscall null|read|write|open`: `getppid`; a byte of `/dev/zero`; a byte to `/dev/null`; opening and closing a
/// file.
pub fn syscall(arguments: Arguments) -> u64 {
    let kind = arguments.get(1);
    let benchmark = Benchmark { name: "lat_syscall", kind, unit: "call", count: arguments.number(2, 0) };
    let mut byte = [0];
    match kind {
        "null" => benchmark.measure(each(|| sys::parent() != u64::MAX)),
        "read" => {
            let Ok(zero) = sys::open("/dev/zero") else { return 1 };
            benchmark.measure(each(|| sys::read(zero, &mut byte) == Ok(1)))
        }
        "write" => {
            let Ok(null) = sys::open_to_write("/dev/null") else { return 1 };
            benchmark.measure(each(|| sys::write(null, &byte) == Ok(1)))
        }
        "open" => benchmark.measure(each(|| sys::open("/dev/null").and_then(sys::close).is_ok())),
        _ => usage("lat_syscall null|read|write|open [N]"),
    }
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: u64, _: *const u8, _: *mut u8) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// `lat_sig install|catch`: setting a handler; a signal to itself, its handler, and the return from it.
pub fn signal(arguments: Arguments) -> u64 {
    let kind = arguments.get(1);
    let benchmark = Benchmark { name: "lat_sig", kind, unit: "signal", count: arguments.number(2, 0) };
    let install = || sys::handle(sys::SIGUSR1, count_signal, 0).is_ok();
    let own = sys::pid();
    match kind {
        "install" => benchmark.measure(each(install)),
        "catch" if install() => benchmark.measure(|count| {
            SIGNALS.store(0, Ordering::Relaxed);
            (0..count).all(|_| sys::kill(own, sys::SIGUSR1).is_ok())
                && SIGNALS.load(Ordering::Relaxed) == count
        }),
        _ => usage("lat_sig install|catch [N]"),
    }
}
