//! What is notified of an exit once it is over, and of what.
//!
//! The [`Ledger`] is one observer; a trace is another one, of a run that has one. Observers are called directly, without
//! `dyn`, between an exit and the next entry: they may not allocate, log or lock. The loop is compiled for each kind of
//! observer, and for [`Unobserved`] without a call.

use super::runner::Handled;
use crate::ledger::{Ledger, MARK_BEGIN};

/// An exit that has been handled. Its times are system times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it was.
    pub handled: Handled,
    /// When the guest was left.
    pub left: u64,
    /// When it was entered again, or when the loop ended.
    pub entered: u64,
    /// Nanoseconds that the host worked on it: without what the guest waited for, and without commands from outside.
    pub worked: u64,
    /// Where the guest was ([`Runner::place`](super::Runner::place)); 0 unless the observer [wants
    /// it](Observer::WANTS_PLACE).
    pub place: u64,
}

/// Notified of every exit, in order.
pub trait Observer {
    /// Whether it looks at [`Seen::place`], which has to be found out before the exit is handled.
    const WANTS_PLACE: bool;
    /// The guest is about to be entered again after this exit, or its life is over.
    fn see(&mut self, exit: &Seen);
}

/// Nobody observes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    const WANTS_PLACE: bool = false;

    fn see(&mut self, _: &Seen) {}
}

impl Observer for Ledger {
    const WANTS_PLACE: bool = false;

    fn see(&mut self, exit: &Seen) {
        let Seen { handled, left, entered, worked, .. } = *exit;
        self.record(handled.cause, worked);
        if let Some(mark) = handled.mark {
            // A region begins with an entry and ends with an exit: the handling of the two marks is not part of it.
            self.mark(mark, if mark == MARK_BEGIN { entered } else { left });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Cause, MARK_END, PortDevice};

    #[test]
    fn a_region_does_not_contain_the_handling_of_its_marks() {
        let mut ledger = Ledger::new();
        let mark = |value| Handled { cause: Cause::PortOut(PortDevice::Mark), mark: Some(value) };
        ledger.see(&Seen { handled: mark(MARK_BEGIN), left: 100, entered: 110, worked: 10, place: 0 });
        ledger.see(&Seen { handled: Cause::Kick.into(), left: 120, entered: 125, worked: 4, place: 0 });
        ledger.see(&Seen { handled: mark(MARK_END), left: 150, entered: 190, worked: 40, place: 0 });
        let region = ledger.region().unwrap();
        assert_eq!((region.ns, region.traps(), region.handling_ns()), (40, 1, 4));
    }
}
