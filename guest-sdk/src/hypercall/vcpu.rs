//! `vcpu_op` and `set_timer_op`: this vCPU's timers.

use paravane_abi::Errno;
use paravane_abi::hypercall::{SET_TIMER_OP, VCPU_OP};
use paravane_abi::vcpu::{
    VCPU_SSHOTTMR_FUTURE, VCPUOP_IS_UP, VCPUOP_SET_SINGLESHOT_TIMER, VCPUOP_STOP_PERIODIC_TIMER,
    VCPUOP_STOP_SINGLESHOT_TIMER, VcpuSetSingleshotTimer,
};

use super::call;

/// Raises `VIRQ_TIMER` once when system time reaches `deadline`; 0 cancels the timer.
///
/// # Errors
/// Never for a PV domain.
pub fn set_timer(deadline: u64) -> Result<(), Errno> {
    // SAFETY: the argument is a time.
    unsafe { call(SET_TIMER_OP, [deadline]) }.map(drop)
}

/// Raises `VIRQ_TIMER` once when system time reaches `deadline`.
///
/// # Errors
/// `ETIME` with `future_only` if it has passed already.
pub fn set_singleshot_timer(vcpu: u32, deadline: u64, future_only: bool) -> Result<(), Errno> {
    let flags = if future_only { VCPU_SSHOTTMR_FUTURE } else { 0 };
    let op = VcpuSetSingleshotTimer { timeout_abs_ns: deadline, flags, ..Default::default() };
    let args = [u64::from(VCPUOP_SET_SINGLESHOT_TIMER), u64::from(vcpu), (&raw const op).addr() as u64];
    // SAFETY: the structure of this operation.
    unsafe { call(VCPU_OP, args) }.map(drop)
}

/// Stops the one-shot timer.
///
/// # Errors
/// Never for a PV domain.
pub fn stop_singleshot_timer(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: no structure.
    unsafe { call(VCPU_OP, [u64::from(VCPUOP_STOP_SINGLESHOT_TIMER), u64::from(vcpu), 0]) }.map(drop)
}

/// Stops the periodic timer, which Xen starts with the vCPU.
///
/// # Errors
/// Never for a PV domain.
pub fn stop_periodic_timer(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: no structure.
    unsafe { call(VCPU_OP, [u64::from(VCPUOP_STOP_PERIODIC_TIMER), u64::from(vcpu), 0]) }.map(drop)
}

/// Whether a vCPU is up.
///
/// # Errors
/// `ENOENT` for one that does not exist.
pub fn is_up(vcpu: u32) -> Result<bool, Errno> {
    // SAFETY: no structure.
    unsafe { call(VCPU_OP, [u64::from(VCPUOP_IS_UP), u64::from(vcpu), 0]) }.map(|up| up != 0)
}
