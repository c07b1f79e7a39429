//! set_timer_op.

use super::{Call, HypercallResult, done};

/// set_timer_op(deadline): raises VIRQ_TIMER at this system time; 0 stops the timer.
pub fn set_timer_op(call: &mut Call<'_>) -> HypercallResult {
    let [deadline, ..] = call.raw();
    call.vcpu.timers.set_singleshot((deadline != 0).then_some(deadline));
    done(0)
}
