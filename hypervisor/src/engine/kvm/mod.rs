//! The KVM engine: guest code at CPL 3 in a VM whose ring 0 holds only the gate.
//!
//! Nothing of the host's sits between the guest and KVM_RUN: registers travel in the shared page
//! (KVM_CAP_SYNC_REGS), so an exit costs one system call. The ways out of the guest:
//!
//! 1. The hypercall page's stub: on the `pio` transport `OUT` to `gate::EXIT_PORT` at CPL 3, which the TSS allows,
//!    on `vmcall` a SYSCALL (see `transport`).
//! 2. SYSCALL arrives in the gate, which leaves by the same instruction, or by VMCALL.
//! 3. An `OUT` in one of the gate's vector stubs: an exception arrived, its frame is on the gate's stack.
//! 4. A signal: a kick.
//!
//! Where a guest has user programs, their system calls and the returns from them need no way out: see `fast`.
//!
//! The way back is to set the guest's registers and segments in the shared page. Through the gate goes only the
//! answer to a VMCALL, which KVM completes where it was issued, and an entry before which page-table entries must
//! be stored again (see `coherence`).
//! The VM has no irqchip and no in-kernel device: a vCPU never halts in KVM.
//!
//! Everything runs on the vCPU's thread. Only the signal handler in `kick` is signal-safe.

mod coherence;
mod context;
mod cpu;
mod cpuid;
mod decode;
mod error;
mod fast;
mod gate;
mod gdt;
mod host;
mod kick;
mod machine;
mod port;
pub mod ring0;
mod setup;
mod state;
mod stats;
mod tables;
#[cfg(test)]
mod tests;
mod transport;
mod tsc;

pub use self::error::KvmError;
pub use self::host::{HostKind, host_kind};
pub use self::machine::{KvmMachine, Ways};
pub use self::transport::Transport;
