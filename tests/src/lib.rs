//! Helpers that the whole-system tests share.

pub mod boot;
pub mod guests;
pub mod images;
pub mod machine;
pub mod random;
pub mod soup;
pub mod verdict;
