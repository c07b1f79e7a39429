//! Text for people: names that come from outside, times and sizes.

#![forbid(unsafe_code)]

pub mod printable;
pub mod units;
