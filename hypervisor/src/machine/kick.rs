//! How another thread makes a vCPU leave the guest.

#![forbid(unsafe_code)]

/// Makes a vCPU leave the guest soon.
pub trait Kick: Send + Sync {
    /// Makes the current entry into the guest, or the next one, return with a kick. Any thread may call this;
    /// async-signal-safe.
    fn kick(&self);
    /// Arranges for such a kick in `ns` nanoseconds, in place of one arranged before; 0 cancels it.
    fn arm(&self, ns: u64);
}
