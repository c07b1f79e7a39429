//! Sleeping.

use paravane_guest::abi::Errno;
use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::{event, time};

/// Prepares the timer. Its event needs no work: that it ends the wait is all.
pub fn install() -> Result<(), Errno> {
    // Xen starts a periodic timer with a vCPU.
    time::stop_periodic_timer(0)?;
    event::handle_virq(VIRQ_TIMER, |_| ())?;
    Ok(())
}

/// Waits for some nanoseconds, without using the processor.
pub fn sleep(nanoseconds: u64) {
    let end = time::now() + nanoseconds;
    while time::now() < end {
        time::set_timer(end).expect("a timer can be set");
        event::block().expect("a kernel may wait");
    }
}
