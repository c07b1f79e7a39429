//! Why a bare guest cannot go on.

use iced_x86::Instruction;

/// Why a bare guest cannot go on. Each ends the guest, never the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Death {
    #[error(
        "triple fault: exception {vector} at rip {rip:#x} (cr2 {cr2:#x}, rsp {rsp:#x}) could not be delivered, nor \
         could the double fault; check the IDT at {idt:#x}, its handlers' segments and the stack"
    )]
    TripleFault { vector: u8, rip: u64, cr2: u64, rsp: u64, idt: u64 },
    #[error(
        "{0:#x} was loaded into CR3, which is not a frame of the guest's memory; load the address of an L4 table"
    )]
    BadRoot(u64),
    #[error(
        "rip {rip:#x} accessed {address:#x}, in the linear range 0xffff800000000000-0xffff87ffffffffff, which belongs \
         to the hypervisor; map that page elsewhere"
    )]
    ReservedRange { rip: u64, address: u64 },
    #[error(
        "the instruction at rip {rip:#x} stores to {address:#x}, a page table in use, and is not emulated; use MOV, \
         XCHG or an arithmetic or bit instruction on general registers"
    )]
    UnknownStore { rip: u64, address: u64 },
    #[error(
        "the instruction at rip {rip:#x} accesses {address:#x}, which is not memory, and is not emulated; use MOV"
    )]
    UnknownDeviceAccess { rip: u64, address: u64 },
    #[error(
        "rip {rip:#x} keeps faulting on {address:#x}, which it may access: the engine lost track of that page"
    )]
    NoProgress { rip: u64, address: u64 },
    #[error(
        "the instruction at rip {rip:#x}, {insn}, is not interpreted: floating point and MMX are missing; build the \
         kernel without them"
    )]
    NotInterpreted { rip: u64, insn: Instruction },
    #[error("halted for ever: HLT at rip {rip:#x} with interrupts off; enable them first, or power off")]
    HaltedForEver { rip: u64 },
}
