//! Hypercalls: Xen's public x86-64 PV interface, one file per family.
//!
//! A hypercall is a function of a [`call::Call`]: the domain, the vCPU that calls, and the arguments. It returns a
//! number for rax, or an error (Xen's errno, negated in rax), or says that the registers are already as they should
//! be. Long lists are preemptible: [`Outcome::Again`] makes the guest issue the call again with what is left, as
//! Xen does.
//!
//! Nothing here knows the engine, and nothing may trust a guest's value. A pointer is a `GuestPtr` or a
//! `GuestSlice`, and only `pv::access` turns it into bytes. All that one entry does counts together, including the
//! calls of a multicall, up to [`PREEMPT_AFTER`]: a loop over what a guest asked for counts its cost
//! (`Call::spend`) and stops when `Call::is_spent`.

mod call;
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
mod vcpu_context;
mod version;
mod virtio;

pub use processor::ASSISTS;
pub use version::{FEATURES, VERSION};

use paravane_abi::errno::Errno;
use paravane_abi::hypercall as nr;

use call::{Arg, Call};

use super::context::PvContext;
use crate::mmu::direct::BUDGET;
use crate::x86::registers::Regs;

/// How many elementary operations one entry performs before the guest may be interrupted.
///
/// At well under a microsecond each this bounds the latency of an upcall to about a millisecond. A multicall may
/// do twice as much, so that one full list does not use it up.
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

/// Performs hypercall `number`, as far as one entry may.
pub fn dispatch(cx: PvContext<'_>, number: u64, args: [u64; 6]) -> HypercallResult {
    cx.domain.mmu.take_looked_at();
    cx.vcpu.budget = PREEMPT_AFTER;
    perform_one(&mut Call { domain: cx.domain, vcpu: cx.vcpu, args: args.map(Arg) }, number)
}

/// Performs hypercall `number`, alone or as one of a multicall.
fn perform_one(call: &mut Call<'_>, number: u64) -> HypercallResult {
    match number {
        nr::SET_TRAP_TABLE => traps::set_trap_table(call),
        nr::MMU_UPDATE => mmu::mmu_update(call),
        nr::SET_GDT => processor::set_gdt(call),
        nr::STACK_SWITCH => processor::stack_switch(call),
        nr::SET_CALLBACKS => traps::set_callbacks(call),
        nr::FPU_TASKSWITCH => processor::fpu_taskswitch(call),
        nr::SCHED_OP_COMPAT => sched::sched_op_compat(call),
        nr::SET_DEBUGREG => processor::set_debugreg(call),
        nr::GET_DEBUGREG => processor::get_debugreg(call),
        nr::UPDATE_DESCRIPTOR => processor::update_descriptor(call),
        nr::MEMORY_OP => memory::memory_op(call),
        nr::MULTICALL => multicall::multicall(call),
        nr::UPDATE_VA_MAPPING => mmu::update_va_mapping(call),
        nr::SET_TIMER_OP => time::set_timer_op(call),
        nr::EVENT_CHANNEL_OP_COMPAT => event::event_channel_op_compat(call),
        nr::XEN_VERSION => version::xen_version(call),
        nr::CONSOLE_IO => console::console_io(call),
        nr::PHYSDEV_OP_COMPAT => physdev::physdev_op_compat(call),
        nr::GRANT_TABLE_OP => grant::grant_table_op(call),
        nr::VM_ASSIST => processor::vm_assist(call),
        nr::UPDATE_VA_MAPPING_OTHERDOMAIN => refused::update_va_mapping_otherdomain(call),
        nr::IRET => {
            call.context().iret();
            Ok(Outcome::Jumped)
        }
        nr::VCPU_OP => vcpu::vcpu_op(call),
        nr::SET_SEGMENT_BASE => processor::set_segment_base(call),
        nr::MMUEXT_OP => mmu::mmuext_op(call),
        nr::NMI_OP => traps::nmi_op(call),
        nr::SCHED_OP => sched::sched_op(call),
        nr::CALLBACK_OP => traps::callback_op(call),
        nr::EVENT_CHANNEL_OP => event::event_channel_op(call),
        nr::PHYSDEV_OP => physdev::physdev_op(call),
        nr::PARAVANE_VIRTIO_OP => virtio::virtio_op(call),
        nr::HVM_OP => refused::hvm_op(call),
        number => Err(refused::errno(number)),
    }
}

/// The arguments of a hypercall in registers (public/arch-x86/xen-x86_64.h).
pub fn arguments(r: &Regs) -> [u64; 6] {
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
}

/// Performs the hypercall that the vCPU's registers describe and sets them to its outcome.
///
/// `entered_by` is the length of the instruction before RIP, which issues the call again if it is repeated.
pub fn perform(mut cx: PvContext<'_>, entered_by: u64) {
    let number = cx.vcpu.regs.rax;
    let args = arguments(&cx.vcpu.regs);
    let outcome = dispatch(cx.reborrow(), number, args);
    let regs = &mut cx.vcpu.regs;
    match outcome {
        Ok(Outcome::Done(value)) => regs.rax = value,
        Err(errno) => {
            regs.rax = errno.to_rax();
            tell_of_refusal(number, errno);
        }
        Ok(Outcome::Jumped) => {}
        Ok(Outcome::Again(args)) => {
            cx.vcpu.calls_again = true;
            let regs = &mut cx.vcpu.regs;
            [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
            regs.rip = regs.rip.wrapping_sub(entered_by);
        }
    }
}

/// For people who want to know what their kernel is refused.
fn tell_of_refusal(number: u64, errno: Errno) {
    tracing::debug!("hypercall {} is refused with {errno}", nr::name(number).unwrap_or("without a name"));
}

/// Tells the guest of what its devices have to say; for the monitor, when something kicked the vCPU.
pub fn service_devices(cx: &mut PvContext<'_>) {
    virtio::service(cx);
}

/// Brings the console's ring up to date; for the monitor, when input arrived.
pub fn service_console(cx: &mut PvContext<'_>) {
    console::service(cx);
}
