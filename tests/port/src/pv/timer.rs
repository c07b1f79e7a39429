//! Interrupts, which are events here: whether they are allowed is a byte of memory, and so is what is pending.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::{event, time};

/// Nanoseconds between two ticks.
const PERIOD: u64 = 1_000_000;

static TICK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
/// When the next tick is due; 0 for never.
static NEXT: AtomicU64 = AtomicU64::new(0);

// ANCHOR: start
/// Has `tick` called a thousand times a second.
pub fn start(tick: fn()) {
    TICK.store(tick as *mut (), Ordering::Relaxed);
    event::install().expect("the hypervisor takes handlers of events");
    // Xen starts a periodic timer with a vCPU.
    time::stop_periodic_timer(0).expect("it can be stopped");
    event::handle_virq(VIRQ_TIMER, |_| expired()).expect("there is a timer");
    arm(time::now() + PERIOD);
}

fn expired() {
    let due = NEXT.load(Ordering::Relaxed);
    if due == 0 || time::now() < due {
        return;
    }
    // SAFETY: `start` stored a function there.
    unsafe { core::mem::transmute::<*mut (), fn()>(TICK.load(Ordering::Relaxed))() };
    arm((due + PERIOD).max(time::now()));
}

fn arm(due: u64) {
    NEXT.store(due, Ordering::Relaxed);
    time::set_timer(due).expect("a timer can be set");
}
// ANCHOR_END: start

/// No more ticks.
pub fn stop() {
    NEXT.store(0, Ordering::Relaxed);
}

// ANCHOR: wait
/// Waits for events until `done`.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    event::disable();
    while !done() {
        event::block().expect("a kernel may wait");
        event::disable();
    }
    event::enable();
}
// ANCHOR_END: wait
