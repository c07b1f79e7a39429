//! Xen's paravirtual machine: a domain, its vCPUs, and everything that a paravirtual kernel may ask for or find.
//!
//! A vCPU's thread owns its [`vcpu::PvVcpu`]; its vCPUs share the [`domain::PvDomain`]. All of this runs on a
//! vCPU's thread, except `event::doorbell` and `devices::Ports`, which device threads call. Nothing here is
//! signal-safe.
//!
//! Every pointer that a guest passes goes through [`access`], and nothing else follows one. A guest is killed for
//! what it did in one place, `PvContext::kill`. What may not be done here: knowing which engine runs.

#![forbid(unsafe_code)]

pub mod access;
pub mod context;
pub mod crossing;
pub mod debug_registers;
pub mod devices;
pub mod domain;
pub mod entry;
pub mod event;
pub mod exception;
pub mod fixup;
pub mod free_frames;
pub mod grants;
pub mod guest_pointer;
pub mod hypercall;
pub mod iret;
pub mod peers;
pub mod runstate;
pub mod selectors;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
pub mod vcpu;
pub mod waiting;
pub mod wall_clock;
