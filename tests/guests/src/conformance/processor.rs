//! Descriptor tables, segment bases, debug registers, VM assists, stacks, CR0.TS.

use core::arch::asm;

use paravane_guest::abi::Errno;
use paravane_guest::abi::addr::HYPERVISOR_VIRT_END;
use paravane_guest::abi::debugreg::{DEBUGREG_CONTROL_DEFAULT, DEBUGREG_STATUS_DEFAULT};
use paravane_guest::abi::hypercall::*;
use paravane_guest::abi::mmu::UVMF_INVLPG;
use paravane_guest::abi::pte;
use paravane_guest::abi::segment::*;
use paravane_guest::abi::trap::TRAP_NO_DEVICE;
use paravane_guest::abi::vm_assist::*;
use paravane_guest::paging::FrameSource;
use paravane_guest::trap::set_handler;

use super::Bench;
use super::calls::NOWHERE;
use super::raw::raw;

/// The first address that is not canonical.
const NOT_CANONICAL: u64 = 1 << 47;
const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
/// The descriptor of a task-state segment, which a guest may not have.
const TASK_STATE: u64 = 0x0000_8900_0000_0000;
/// A page's entry in a guest kernel's direct map.
const READ_ONLY: u64 = pte::PRESENT | pte::USER | pte::ACCESSED;
const WRITABLE: u64 = READ_ONLY | pte::RW | pte::DIRTY;

pub(super) fn run(bench: &mut Bench) {
    descriptors(bench);
    bases(bench);
    debug_registers(bench);
    assistances(bench);
    let suite = &mut bench.suite;
    suite.equal("stack-switch", raw(STACK_SWITCH, [FLAT_KERNEL_SS.into(), 0]), Ok(0));
    // The handler finds CR0.TS clear and returns; code after the call may already use vector registers.
    set_handler(TRAP_NO_DEVICE, Some(|_| {}));
    let switched = raw(FPU_TASKSWITCH, [1]);
    let not_switched = raw(FPU_TASKSWITCH, [0]);
    set_handler(TRAP_NO_DEVICE, None);
    suite.equal("task-switched", (switched, not_switched), (Ok(0), Ok(0)));
}

fn descriptors(bench: &mut Bench) {
    let memory = bench.mmu.memory();
    let (Some(page), Some(other)) = (bench.frames.take(), bench.frames.take()) else {
        return bench.suite.holds("set-up", false);
    };
    let place = |pfn| (memory.va(pfn), memory.mfn(pfn).map_or(0, |mfn| mfn.0));
    let ((va, mfn), (_, used), root) = (place(page), place(other), place(bench.boot.root()).1);
    let set = |frames: &[u64], entries: u64| raw(SET_GDT, [frames.as_ptr() as u64, entries]);
    let store = |at: u64, descriptor: u64| raw(UPDATE_DESCRIPTOR, [at, descriptor]);
    // SAFETY: the frame is free, mapped writable, and belongs to this check.
    let words = unsafe { core::slice::from_raw_parts_mut(va as *mut u64, 512) };
    words.fill(0);
    let suite = &mut bench.suite;
    suite.equal("gdt-too-long", set(&[mfn; 15], 7169), Err(Errno::EINVAL));
    suite.equal("gdt-nowhere", raw(SET_GDT, [NOWHERE, 1]), Err(Errno::EFAULT));
    suite.equal("gdt-of-a-page-table", set(&[root], 8), Err(Errno::EINVAL));
    suite.equal("gdt-of-a-writable-page", set(&[used], 8), Err(Errno::EINVAL));
    suite.equal("gdt-of-no-frame", set(&[u64::MAX >> 12], 8), Err(Errno::EINVAL));
    let protect = |flags| raw(UPDATE_VA_MAPPING, [va, pte::make(mfn, flags), UVMF_INVLPG]);
    suite.equal("gdt-read-only", protect(READ_ONLY), Ok(0));
    suite.equal("gdt", set(&[mfn], 512), Ok(0));
    suite.equal("gdt-is-not-writable-now", protect(WRITABLE), Err(Errno::EBUSY));
    suite.equal("descriptor", store(mfn * 4096 + 8, KERNEL_CODE), Ok(0));
    // The hypervisor may have set the accessed bit, and has set the privilege level to that of guests.
    let stored = crate::probe::read(va + 8).map(|word| word & !(3 << 45));
    suite.equal("descriptor-is-stored", stored, Ok(KERNEL_CODE));
    suite.equal("descriptor-task-state", store(mfn * 4096 + 8, TASK_STATE), Err(Errno::EINVAL));
    suite.equal("descriptor-unaligned", store(mfn * 4096 + 4, KERNEL_CODE), Err(Errno::EINVAL));
    suite.equal("descriptor-no-frame", store(u64::MAX >> 1 & !7, KERNEL_CODE), Err(Errno::EINVAL));
    suite.equal("descriptor-into-a-page-table", store(root * 4096 + 511 * 8, 0), Err(Errno::EINVAL));
    suite.equal("no-gdt", raw(SET_GDT, [NOWHERE, 0]), Ok(0));
    suite.equal("page-is-writable-again", protect(WRITABLE), Ok(0));
}

fn bases(bench: &mut Bench) {
    static WORD: u64 = 0x5eed;
    let suite = &mut bench.suite;
    let set = |which: u32, base: u64| raw(SET_SEGMENT_BASE, [which.into(), base]);
    for (name, which) in [("fs", SEGBASE_FS), ("gs-user", SEGBASE_GS_USER), ("gs-kernel", SEGBASE_GS_KERNEL)]
    {
        suite.equal(name, set(which, &raw const WORD as u64), Ok(0));
        suite.equal("base-not-canonical", set(which, NOT_CANONICAL), Err(Errno::EINVAL));
    }
    let (fs, gs): (u64, u64);
    // SAFETY: both bases become the address of a word.
    unsafe { asm!("mov {}, fs:[0]", "mov {}, gs:[0]", out(reg) fs, out(reg) gs, options(readonly, nostack)) };
    suite.equal("bases-are-loaded", (fs, gs), (WORD, WORD));
    suite.equal("base-of-nothing", set(4, 0), Err(Errno::EINVAL));
    suite.equal("gs-user-null-selector", set(SEGBASE_GS_USER_SEL, 0), Ok(0));
    for which in [SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL] {
        suite.equal("base-0", set(which, 0), Ok(0));
    }
}

fn debug_registers(bench: &mut Bench) {
    static WATCHED: u64 = 0;
    let suite = &mut bench.suite;
    let set = |number: u64, value: u64| raw(SET_DEBUGREG, [number, value]);
    let get = |number: u64| raw(GET_DEBUGREG, [number]);
    for number in 0..4 {
        suite.equal("address", set(number, &raw const WATCHED as u64 + number), Ok(0));
        suite.equal("address-is-kept", get(number), Ok(&raw const WATCHED as u64 + number));
        for (name, address) in
            [("address-not-canonical", NOT_CANONICAL), ("address-of-the-hypervisor", HYPERVISOR_VIRT_END - 1)]
        {
            suite.equal(name, set(number, address), Err(Errno::EPERM));
        }
        suite.equal("no-address", set(number, 0), Ok(0));
    }
    suite.equal("status", (set(6, 0), get(6)), (Ok(0), Ok(DEBUGREG_STATUS_DEFAULT)));
    suite.equal("control", (set(7, 0), get(7)), (Ok(0), Ok(DEBUGREG_CONTROL_DEFAULT)));
    suite.equal("control-by-its-other-number", get(5), Ok(DEBUGREG_CONTROL_DEFAULT));
    suite.equal("general-detect", set(7, 1 << 13), Err(Errno::EPERM));
    suite.equal("breakpoint-on-ports", set(7, 0x2_0001), Err(Errno::EPERM));
    let cr4: u64;
    // SAFETY: the instruction is emulated; CR4.DE only affects debug registers, and is restored below.
    unsafe { asm!("mov {v}, cr4", "or {v}, 8", "mov cr4, {v}", "xor {v}, 8", v = out(reg) cr4) };
    suite.equal("breakpoint-on-ports-with-de", (set(7, 0x2_0302), get(7)), (Ok(0), Ok(0x2_0702)));
    suite.equal("no-other-number-with-de", (get(4), get(5)), (Err(Errno::ENODEV), Err(Errno::ENODEV)));
    suite.equal("no-breakpoint-on-ports", set(7, 0), Ok(0));
    // SAFETY: as above.
    unsafe { asm!("mov cr4, {v}", v = in(reg) cr4) };
    for number in [6, 7] {
        suite.equal("upper-half", set(number, 1 << 32), Err(Errno::EINVAL));
    }
    suite.equal("no-such-register", (set(8, 0), get(8)), (Err(Errno::ENODEV), Err(Errno::ENODEV)));
}

fn assistances(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let assist = |command: u32, kind: u32| raw(VM_ASSIST, [command.into(), kind.into()]);
    for (name, kind) in [
        ("assist-4gb-segments", VMASST_TYPE_4GB_SEGMENTS),
        ("assist-4gb-segments-notify", VMASST_TYPE_4GB_SEGMENTS_NOTIFY),
        ("assist-writable-pagetables", VMASST_TYPE_WRITABLE_PAGETABLES),
        ("assist-pae-extended-cr3", VMASST_TYPE_PAE_EXTENDED_CR3),
        ("assist-architectural-iopl", VMASST_TYPE_ARCHITECTURAL_IOPL),
        ("assist-runstate-update-flag", VMASST_TYPE_RUNSTATE_UPDATE_FLAG),
        ("assist-m2p-strict", VMASST_TYPE_M2P_STRICT),
    ] {
        let outcomes = [assist(VMASST_CMD_ENABLE, kind), assist(2, kind), assist(VMASST_CMD_DISABLE, kind)];
        suite.equal(name, outcomes, [Ok(0), Err(Errno::ENOSYS), Ok(0)]);
    }
    for kind in [6, 31, 33, 63, 64, u32::MAX] {
        suite.equal("assist-unknown", assist(VMASST_CMD_ENABLE, kind), Err(Errno::EINVAL));
    }
}
