//! What a device says about its own state.
#![forbid(unsafe_code)]

use paravane_guest::virtio::drivers::transport::{DeviceStatus, InterruptStatus, Transport};

use super::error::DeviceError;

/// Checks that a device which a driver has set up runs.
///
/// # Errors
/// [`DeviceError::NotStarted`] if it does not.
pub fn check_started(transport: &impl Transport) -> Result<(), DeviceError> {
    let running = transport.get_status().contains(DeviceStatus::DRIVER_OK);
    if running { Ok(()) } else { Err(DeviceError::NotStarted) }
}

/// Acknowledges the device's interrupts, and checks that it has not stopped.
///
/// # Errors
/// [`DeviceError::NeedsReset`] if it has.
pub fn check_running(transport: &mut impl Transport) -> Result<(), DeviceError> {
    let changed = transport.ack_interrupt().contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT);
    if changed && transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
        return Err(DeviceError::NeedsReset);
    }
    Ok(())
}
