//! Hypercalls: Xen's public x86-64 PV interface, one file per family.
//!
//! A hypercall is a function of the domain and six arguments. It returns a number for rax, an error (Xen's
//! errno, negated in rax), or says that registers are already as they should be. Long lists are preemptible:
//! [`Outcome::Again`] makes the guest issue the same call again with what is left to do, as Xen does.
//!
//! Nothing here knows the engine, and nothing may trust a guest's value: pointers go through
//! `domain::access`, counts are bounded per entry by [`PREEMPT_AFTER`]. All that one entry does counts together, a
//! multicall's calls too: who loops over what a guest asked for says what it costs (`spend`) and stops when
//! enough was done (`is_spent`).

mod console;
mod event;
mod grant;
mod memory;
mod mmu;
mod multicall;
mod physdev;
mod processor;
mod refused;
mod sched;
mod store;
mod time;
mod traps;
mod vcpu;
mod version;
mod virtio;

pub use processor::{io_breakpoints, read_debug_register, write_debug_register};
pub use version::{FEATURES, VERSION};

use paravane_abi::errno::Errno;
use paravane_abi::hypercall as nr;

use super::domain::PvDomain;
use crate::mmu::direct::BUDGET;

/// How many elementary operations one entry performs before the guest may be interrupted.
///
/// At well under a microsecond each this bounds the latency of an upcall to about a millisecond. A multicall may
/// do twice as much, lest one full list take the whole of it.
pub const PREEMPT_AFTER: u64 = 4096;

/// Page-table entries to look at, or frames to hold or let go in a run: so many take as long as one operation.
const PER_OPERATION: u64 = BUDGET as u64 / PREEMPT_AFTER;

/// What a hypercall leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A result for rax.
    Done(u64),
    /// The call set the registers itself (iret).
    Jumped,
    /// Not finished: issue it again with these arguments.
    Again([u64; 6]),
}

/// The type of every hypercall.
pub type HypercallResult = Result<Outcome, Errno>;

/// What most calls return.
fn done(value: u64) -> HypercallResult {
    Ok(Outcome::Done(value))
}

/// The low 32 bits of an argument that the ABI defines as an `unsigned int`.
fn low32(argument: u64) -> u32 {
    (argument & 0xffff_ffff) as u32
}

/// Says that this entry performs `operations` more elementary operations, or what takes as long.
fn spend(d: &mut PvDomain, operations: u64) {
    d.budget = d.budget.saturating_sub(operations);
}

/// Whether this entry has done enough, so that what is left is for the next. Never before its first operation.
fn is_spent(d: &mut PvDomain) -> bool {
    let tables = d.mmu.take_looked_at() / PER_OPERATION;
    spend(d, tables);
    d.budget == 0
}

/// Performs hypercall `number`, as far as one entry may.
pub fn dispatch(d: &mut PvDomain, number: u64, args: [u64; 6]) -> HypercallResult {
    d.mmu.take_looked_at();
    d.budget = PREEMPT_AFTER;
    call(d, number, args)
}

/// Performs hypercall `number`, alone or as one of a multicall.
fn call(d: &mut PvDomain, number: u64, args: [u64; 6]) -> HypercallResult {
    match number {
        nr::SET_TRAP_TABLE => traps::set_trap_table(d, args),
        nr::MMU_UPDATE => mmu::mmu_update(d, args),
        nr::SET_GDT => processor::set_gdt(d, args),
        nr::STACK_SWITCH => processor::stack_switch(d, args),
        nr::SET_CALLBACKS => traps::set_callbacks(d, args),
        nr::FPU_TASKSWITCH => processor::fpu_taskswitch(d, args),
        nr::SCHED_OP_COMPAT => sched::sched_op_compat(d, args),
        nr::SET_DEBUGREG => processor::set_debugreg(d, args),
        nr::GET_DEBUGREG => processor::get_debugreg(d, args),
        nr::UPDATE_DESCRIPTOR => processor::update_descriptor(d, args),
        nr::MEMORY_OP => memory::memory_op(d, args),
        nr::MULTICALL => multicall::multicall(d, args),
        nr::UPDATE_VA_MAPPING => mmu::update_va_mapping(d, args),
        nr::SET_TIMER_OP => time::set_timer_op(d, args),
        nr::EVENT_CHANNEL_OP_COMPAT => event::event_channel_op_compat(d, args),
        nr::XEN_VERSION => version::xen_version(d, args),
        nr::CONSOLE_IO => console::console_io(d, args),
        nr::PHYSDEV_OP_COMPAT => physdev::physdev_op_compat(d, args),
        nr::GRANT_TABLE_OP => grant::grant_table_op(d, args),
        nr::VM_ASSIST => processor::vm_assist(d, args),
        nr::UPDATE_VA_MAPPING_OTHERDOMAIN => refused::update_va_mapping_otherdomain(d, args),
        nr::IRET => {
            d.iret();
            Ok(Outcome::Jumped)
        }
        nr::VCPU_OP => vcpu::vcpu_op(d, args),
        nr::SET_SEGMENT_BASE => processor::set_segment_base(d, args),
        nr::MMUEXT_OP => mmu::mmuext_op(d, args),
        nr::NMI_OP => traps::nmi_op(d, args),
        nr::SCHED_OP => sched::sched_op(d, args),
        nr::CALLBACK_OP => traps::callback_op(d, args),
        nr::EVENT_CHANNEL_OP => event::event_channel_op(d, args),
        nr::PHYSDEV_OP => physdev::physdev_op(d, args),
        nr::PARAVANE_VIRTIO_OP => virtio::virtio_op(d, args),
        nr::HVM_OP => refused::hvm_op(args),
        number => Err(refused::errno(number)),
    }
}

/// The arguments of a hypercall in registers (public/arch-x86/xen-x86_64.h).
pub fn arguments(d: &PvDomain) -> [u64; 6] {
    let r = &d.vcpu.regs;
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
}

/// Performs the hypercall that the vCPU's registers describe and sets them to its outcome.
///
/// `entered_by` is the length of the instruction before RIP, which issues the call again if it is repeated.
pub fn perform(d: &mut PvDomain, entered_by: u64) {
    let number = d.vcpu.regs.rax;
    let outcome = dispatch(d, number, arguments(d));
    let regs = &mut d.vcpu.regs;
    match outcome {
        Ok(Outcome::Done(value)) => regs.rax = value,
        Err(errno) => regs.rax = errno.to_rax(),
        Ok(Outcome::Jumped) => {}
        Ok(Outcome::Again(args)) => {
            [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
            regs.rip = regs.rip.wrapping_sub(entered_by);
        }
    }
}

/// Tells the guest of what its devices have to say; for the monitor, when something kicked the vCPU.
pub fn service_devices(d: &mut PvDomain) {
    virtio::service(d);
}

/// Brings the console's ring up to date; for the monitor, when input arrived.
pub fn service_console(d: &mut PvDomain) {
    console::service(d);
}
