//! Text for people: names that come from outside, times and sizes.

pub mod printable;
pub mod units;
