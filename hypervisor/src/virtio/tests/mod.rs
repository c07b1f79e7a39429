//! Devices against hostile drivers, and against the headers that drivers use.

mod driver_headers;
pub mod hostile;
