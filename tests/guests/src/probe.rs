//! Accesses to memory that may not be mapped. A probe reports the fault, if there was one.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::abi::trap::TRAP_PAGE_FAULT;
use paravane_guest::trap::{self, TrapFrame};

/// Address and error code of the last fault of a probe.
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// The fault of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The address that faulted (CR2).
    pub address: u64,
    /// The error code, bits `PFEC_*`.
    pub error_code: u64,
}

/// Installs the page-fault handler that probes need.
pub fn install() {
    trap::set_handler(TRAP_PAGE_FAULT, Some(page_fault));
}

/// Reads a word.
pub fn read(va: u64) -> Result<u64, PageFault> {
    let mut value = 0;
    // SAFETY: the handler recovers from a fault; any bits that are read are a valid `u64`.
    let fault = unsafe { probe_read(va, &mut value) };
    outcome(fault).map(|()| value)
}

/// Writes a word.
///
/// # Safety
/// If `va` is mapped, nothing else relies on the memory there.
pub unsafe fn write(va: u64, value: u64) -> Result<(), PageFault> {
    // SAFETY: the handler recovers from a fault; the caller promises the rest.
    outcome(unsafe { probe_write(va, value) })
}

/// Executes the code at `va`, which must be a `ret`.
///
/// # Safety
/// If `va` is executable, there is a `ret` at it.
pub unsafe fn execute(va: u64) -> Result<(), PageFault> {
    // SAFETY: the handler recovers from a fault; the caller promises the rest.
    outcome(unsafe { probe_execute(va) })
}

/// A probe returns 0, or the error code with bit 32 set.
fn outcome(fault: u64) -> Result<(), PageFault> {
    match fault {
        0 => Ok(()),
        _ => Err(PageFault {
            address: ADDRESS.load(Ordering::Relaxed),
            error_code: fault & u64::from(u32::MAX),
        }),
    }
}

#[unsafe(naked)]
unsafe extern "C" fn probe_read(va: u64, value: *mut u64) -> u64 {
    naked_asm!("mov rax, [rdi]", "mov [rsi], rax", "xor eax, eax", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn probe_write(va: u64, value: u64) -> u64 {
    naked_asm!("mov [rdi], rsi", "xor eax, eax", "ret")
}

#[unsafe(naked)]
unsafe extern "C" fn probe_execute(va: u64) -> u64 {
    naked_asm!("xor eax, eax", "jmp rdi")
}

/// The page-fault handler: makes the probe return at once and report the fault.
fn page_fault(frame: &mut TrapFrame) {
    let address = frame.fault_address();
    let probes = [probe_read as *const () as u64, probe_write as *const () as u64];
    let executed = frame.rip == address;
    assert!(
        probes.contains(&frame.rip) || executed,
        "page fault at {address:#x}, error code {:#x}, rip {:#x}",
        frame.error_code,
        frame.rip
    );
    ADDRESS.store(address, Ordering::Relaxed);
    frame.rax = 1 << 32 | frame.error_code;
    // SAFETY: every probe faults with its return address on top of the stack.
    frame.rip = unsafe { (frame.rsp as *const u64).read() };
    frame.rsp += 8;
}
