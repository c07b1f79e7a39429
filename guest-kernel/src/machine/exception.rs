//! Exceptions as a machine layer reports them, and the kernel's handler for them.

use crate::single::Single;

/// What the processor reports, in the same form on both machines.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// The vector (SDM vol. 3, 6.3).
    pub vector: u8,
    /// The error code; 0 for vectors without one.
    pub error_code: u64,
    /// The instruction that raised it. Execution resumes at the address that the handler leaves here.
    pub rip: u64,
    /// CR2, for page faults.
    pub address: u64,
}

/// Handles an exception. Returning resumes the interrupted code.
pub type ExceptionHandler = fn(&mut Exception);

static HANDLER: Single<ExceptionHandler> = Single::new(too_early);

/// Sets the kernel's handler.
///
/// # Safety
/// Called once, before the machine can deliver exceptions.
pub unsafe fn set_handler(handler: ExceptionHandler) {
    // SAFETY: by the caller's promise nothing reads it yet.
    unsafe { *HANDLER.get() = handler };
}

/// Hands an exception to the kernel's handler.
pub fn deliver(exception: &mut Exception) {
    // SAFETY: written once, before exceptions can arrive; only read since, one word, copied at once.
    let handler = unsafe { *HANDLER.get() };
    handler(exception);
}

/// Stands for the kernel's handler until there is one.
fn too_early(exception: &mut Exception) {
    panic!("exception before the kernel set its handler: {exception:x?}");
}
