//! Entry points, and the state that they are entered with.

use paravane_abi::Errno;
use paravane_abi::callback::{CALLBACKOP_REGISTER, CallbackRegister};
use paravane_abi::hypercall::{
    CALLBACK_OP, FPU_TASKSWITCH, SET_SEGMENT_BASE, SET_TRAP_TABLE, STACK_SWITCH, UPDATE_VA_MAPPING, VM_ASSIST,
};
use paravane_abi::trap::TrapInfo;

use super::{call, operation};

/// Registers trap handlers; the last entry of `table` must be all zeroes.
///
/// # Errors
/// `EINVAL` for a table that does not end so, or what the hypervisor answers.
///
/// # Safety
/// Each address is that of code that handles the frame pushed for its vector.
pub unsafe fn set_trap_table(table: &[TrapInfo]) -> Result<(), Errno> {
    if table.last() != Some(&TrapInfo::default()) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the table ends with an empty entry; its addresses are the caller's promise.
    unsafe { call(SET_TRAP_TABLE, [table.as_ptr().addr() as u64]) }.map(drop)
}

/// Registers an entry point of kind `CALLBACKTYPE_*`.
///
/// # Errors
/// What the hypervisor answers.
///
/// # Safety
/// `address` is that of code that handles the frame pushed for this kind.
pub unsafe fn register_callback(kind: u16, flags: u16, address: u64) -> Result<(), Errno> {
    let mut op = CallbackRegister { kind, flags, address, ..Default::default() };
    // SAFETY: the structure of this operation; the address is the caller's promise.
    unsafe { operation(CALLBACK_OP, CALLBACKOP_REGISTER, &mut op) }.map(drop)
}

/// Sets the stack on which the kernel is entered from user mode.
///
/// # Errors
/// What the hypervisor answers.
///
/// # Safety
/// `rsp` is the top of a stack that nothing else uses while user mode runs.
pub unsafe fn stack_switch(ss: u16, rsp: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(STACK_SWITCH, [u64::from(ss), rsp]) }.map(drop)
}

/// Sets a segment base: `SEGBASE_*`.
///
/// # Errors
/// `EINVAL` for an address that is not canonical.
///
/// # Safety
/// Code that accesses memory through that segment expects the new base.
pub unsafe fn set_segment_base(which: u32, base: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(SET_SEGMENT_BASE, [u64::from(which), base]) }.map(drop)
}

/// Sets or clears the virtual CR0.TS: while it is set, x87 and vector instructions trap.
///
/// # Errors
/// Never for a PV domain.
pub fn fpu_taskswitch(set: bool) -> Result<(), Errno> {
    // SAFETY: at worst such instructions trap to a handler.
    unsafe { call(FPU_TASKSWITCH, [u64::from(set)]) }.map(drop)
}

/// Sets the page-table entry that maps `va` in the current address space; `flags` are `UVMF_*`.
///
/// # Errors
/// `EINVAL` for an entry that the hypervisor does not accept or an address without a table.
///
/// # Safety
/// Memory that running code uses must stay mapped as that code expects.
pub unsafe fn update_va_mapping(va: u64, entry: u64, flags: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(UPDATE_VA_MAPPING, [va, entry, flags]) }.map(drop)
}

/// Switches an assistance (`VMASST_*`) on or off.
///
/// # Errors
/// What the hypervisor answers.
pub fn vm_assist(command: u32, kind: u32) -> Result<(), Errno> {
    // SAFETY: an assistance changes which operations are emulated or reported, and no memory.
    unsafe { call(VM_ASSIST, [u64::from(command), u64::from(kind)]) }.map(drop)
}
