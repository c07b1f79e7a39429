//! Built domains against the boot protocols.

mod bare;
mod hostile;
mod pv;
