//! Devices against hostile drivers, and against the headers that drivers are written by.

mod facts;
pub mod hostile;
