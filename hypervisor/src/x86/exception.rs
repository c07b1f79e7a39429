//! Exceptions as the processor raises them (SDM vol. 3, chapter 6).

/// A fault that the hardware raised while guest code ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The exception's vector, 0..=31 (SDM vol. 3, 6.3).
    pub vector: u8,
    /// The error code; 0 for vectors without one.
    pub error_code: u32,
    /// CR2 as the fault left it; meaningful for vector 14 only.
    pub address: u64,
}
