//! set_timer_op.

use super::{HypercallResult, done};
use crate::pv::domain::PvDomain;

/// set_timer_op(deadline): raises VIRQ_TIMER at this system time; 0 stops the timer.
pub fn set_timer_op(d: &mut PvDomain, [deadline, ..]: [u64; 6]) -> HypercallResult {
    d.timers.set_singleshot((deadline != 0).then_some(deadline));
    done(0)
}
