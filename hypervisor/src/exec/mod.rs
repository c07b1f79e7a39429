//! What one instruction does.
//!
//! [`executor::Executor`] executes an instruction on a virtual CPU, on any machine that implements the traits of
//! [`outside`]: memory by linear address, ports, page tables, CPUID. A way to run a kernel that meets its instructions
//! one by one (trap and emulate, an interpreter) makes an `Executor` and says what each outcome means. Parts that need
//! no virtual CPU ([`operand`], [`alu`], [`ordinary`], [`string`], [`port`]) complete instructions of paravirtual
//! kernels too.
//!
//! | instructions | where |
//! | --- | --- |
//! | privileged and sensitive ones: which there are, who may execute them | `privileged.rs` |
//! | MOV to and from control and debug registers, RDMSR, WRMSR, XSETBV | `control.rs` |
//! | loads of segment and descriptor-table registers | `segment.rs` |
//! | IRET, far CALL, JMP and RET, SYSCALL, SYSRET | `transfer.rs` |
//! | exceptions, interrupts and INT n through the IDT | `deliver.rs` |
//! | PUSHF, POPF, LAR and the others that do not trap | `inspect.rs` |
//! | IN, OUT, INS, OUTS | `port.rs` |
//! | arithmetic with its flags | `alu.rs`, `alu/`, `status.rs` |
//! | moves, arithmetic, exchanges and string moves with a memory operand | `ordinary.rs`, `string.rs` |
//!
//! Everything here runs on the thread of the vCPU, and nothing of it is called from a signal handler. What may not be
//! done here: naming an engine, a shadow, a device or the ledger; allocating, logging; trusting anything that the guest
//! says.

#![forbid(unsafe_code)]

pub(crate) mod alu;
mod control;
pub(crate) mod deliver;
pub(crate) mod executor;
mod inspect;
pub(crate) mod operand;
pub(crate) mod ordinary;
pub(crate) mod outside;
pub(crate) mod port;
pub(crate) mod privileged;
mod segment;
pub(crate) mod status;
pub(crate) mod string;
#[cfg(test)]
mod tests;
mod transfer;
pub(crate) mod virtual_cpu;
