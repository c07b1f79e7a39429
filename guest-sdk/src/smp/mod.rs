//! Several vCPUs: starting them, telling them apart, and what each has of its own.
//!
//! A domain starts on vCPU 0. [`start`] gives another one its first state and lets it run. From then on GS belongs to
//! this module: its base is the address of a vCPU's own words, where the entry code and [`crate::event`] find that
//! vCPU's part of the shared page. A kernel that starts no other vCPU pays a load and a branch for that.
//!
//! What vCPUs share, they share as threads do: atomics, or a [`SpinLock`]. An event is handled on the vCPU that its
//! port is bound to ([`event::bind_ipi`](crate::event::bind_ipi), [`event::handle_virq`](crate::event::handle_virq)),
//! so a handler's data belong to that vCPU. Each vCPU has a multicall queue of its own
//! ([`Queue::new`](crate::queue::Queue)), and page-table updates of any of them reach all: a queue invalidates on every
//! vCPU once there are several.

mod lock;
mod own;

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use paravane_abi::Errno;
use paravane_abi::context::{VGCF_IN_KERNEL, VcpuGuestContext};
use paravane_abi::hypercall::VCPU_OP;
use paravane_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS, SEGBASE_GS_KERNEL};
use paravane_abi::vcpu::{
    VCPUOP_DOWN, VCPUOP_INITIALISE, VCPUOP_REGISTER_VCPU_INFO, VCPUOP_UP, VcpuRegisterVcpuInfo,
};

pub use lock::{Guard, SpinLock};
pub use own::{MAX_VCPUS, id, set_word, word};

use crate::hypercall::call;
use crate::hypercall::trap::set_segment_base;
use crate::hypercall::vcpu::is_up;
use crate::memory::{Memory, Pfn};
use crate::trap;
pub(crate) use own::{INFO, SEVERAL, info, owner, set_owner};

/// A vCPU could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The domain has no vCPU of that number, or it has more than [`MAX_VCPUS`].
    Absent,
    /// The vCPU was started before.
    Started,
    /// A page of the image or the address space is not this domain's memory.
    NotMemory,
    /// What else the hypervisor answers.
    Refused(Errno),
}

/// How many vCPUs the domain has, running or not.
pub fn count() -> u32 {
    (0..MAX_VCPUS as u32).take_while(|vcpu| is_up(*vcpu).is_ok()).count() as u32
}

/// Starts vCPU `vcpu`, which runs `main` with its number: in the address space with the L4 table `root`, on `stack`,
/// with events disabled and with the entry points of the calling kernel ([`trap::install`], [`crate::event::install`]).
///
/// # Errors
/// If there is no such vCPU, if it was started before, or if the hypervisor refuses what it is to start with.
pub fn start(
    memory: Memory,
    vcpu: u32,
    root: Pfn,
    stack: &'static mut [MaybeUninit<u8>],
    main: fn(u32) -> !,
) -> Result<(), StartError> {
    if vcpu as usize >= MAX_VCPUS {
        return Err(StartError::Absent);
    }
    let root = memory.mfn(root).ok_or(StartError::NotMemory)?;
    become_several()?;
    place_info(memory, vcpu)?;
    let top = stack.as_mut_ptr_range().end.addr() as u64 & !15;
    let mut context = VcpuGuestContext { flags: VGCF_IN_KERNEL, ..Default::default() };
    // By vector here, where a trap table is a list.
    for entry in trap::table().into_iter().filter(|entry| entry.address != 0) {
        if let Some(slot) = context.trap_ctxt.get_mut(usize::from(entry.vector)) {
            *slot = entry;
        }
    }
    let regs = &mut context.user_regs;
    (regs.rip, regs.rdi, regs.rsi) = (own::first_instruction(), main as usize as u64, u64::from(vcpu));
    // As after a call: RSP + 8 is aligned, and there is nothing to return to.
    regs.rsp = top - 8;
    regs.cs = FLAT_KERNEL_CS;
    regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = top;
    context.ctrlreg[3] = root.maddr();
    context.event_callback_eip = trap::event_entry();
    context.failsafe_callback_eip = trap::failsafe_entry();
    context.gs_base_kernel = own::address(vcpu);
    let pointer = (&raw const context).addr() as u64;
    // SAFETY: a context whose entry points, stack and address space are this kernel's; `main` never returns.
    let made = unsafe { call(VCPU_OP, [u64::from(VCPUOP_INITIALISE), u64::from(vcpu), pointer]) };
    made.map_err(|error| match error {
        Errno::ENOENT => StartError::Absent,
        Errno::EEXIST => StartError::Started,
        other => StartError::Refused(other),
    })?;
    // SAFETY: no structure; the vCPU has its context.
    unsafe { call(VCPU_OP, [u64::from(VCPUOP_UP), u64::from(vcpu), 0]) }.map_err(StartError::Refused)?;
    Ok(())
}

/// Stops the calling vCPU until another one sets it up again. The last one that stops ends the domain.
///
/// # Errors
/// Never for a PV domain.
pub fn stop() -> Result<(), Errno> {
    // SAFETY: no structure.
    unsafe { call(VCPU_OP, [u64::from(VCPUOP_DOWN), u64::from(id()), 0]) }.map(drop)
}

/// Lets a vCPU run again that has [stopped](stop).
///
/// # Errors
/// `ENOENT` for one that does not exist, `EINVAL` for one that was never started.
pub fn resume(vcpu: u32) -> Result<(), Errno> {
    // SAFETY: no structure.
    unsafe { call(VCPU_OP, [u64::from(VCPUOP_UP), u64::from(vcpu), 0]) }.map(drop)
}

/// GS is the calling vCPU's from here on, which is the only one that runs.
fn become_several() -> Result<(), StartError> {
    if SEVERAL.load(Ordering::Relaxed) == 0 {
        own::prepare();
        // SAFETY: the address of this vCPU's own words, which nothing but this module uses GS for.
        unsafe { set_segment_base(SEGBASE_GS_KERNEL, own::address(0)) }.map_err(StartError::Refused)?;
        SEVERAL.store(1, Ordering::Release);
    }
    Ok(())
}

/// A vCPU that the shared page has no room for gets its part of it in a page of the image.
fn place_info(memory: Memory, vcpu: u32) -> Result<(), StartError> {
    let Some((page, offset)) = own::outside_of_the_shared_page(vcpu) else { return Ok(()) };
    let mfn = memory.pfn_at(page).and_then(|pfn| memory.mfn(pfn)).ok_or(StartError::NotMemory)?;
    let op = VcpuRegisterVcpuInfo { mfn: mfn.0, offset, ..Default::default() };
    let args = [u64::from(VCPUOP_REGISTER_VCPU_INFO), u64::from(vcpu), (&raw const op).addr() as u64];
    // SAFETY: the structure of this operation; the page is this module's, and only its hypervisor's from here on.
    unsafe { call(VCPU_OP, args) }.map(drop).map_err(|error| match error {
        Errno::ENOENT => StartError::Absent,
        Errno::EINVAL => StartError::Started,
        other => StartError::Refused(other),
    })
}
