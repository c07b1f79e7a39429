//! How another thread makes a vCPU leave the guest.

/// Makes a vCPU leave the guest soon; may be used from any thread and from a signal handler.
pub trait Kick: Send + Sync {
    /// Makes the current, or else the next, entry of the guest return a kick.
    fn kick(&self);
    /// Arranges for such a kick `ns` nanoseconds from now; 0 disarms. One deadline at a time.
    fn arm(&self, ns: u64);
}
