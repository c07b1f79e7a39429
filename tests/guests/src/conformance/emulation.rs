//! Privileged instructions that the hypervisor completes for a kernel, and those that it refuses.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use paravane_guest::abi::addr::table_index;
use paravane_guest::abi::cpuid::*;
use paravane_guest::abi::hypercall::*;
use paravane_guest::abi::physdev::*;
use paravane_guest::abi::pte;
use paravane_guest::abi::segment::SEGBASE_GS_USER;
use paravane_guest::abi::trap::*;
use paravane_guest::abi::vm_assist::*;
use paravane_guest::event;
use paravane_guest::memory::Mfn;
use paravane_guest::paging::{FrameSource, PageFlags};
use paravane_guest::trap::{TrapFrame, set_handler};

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{does, raw};
use crate::probe;

/// The address at which a trapped instruction continues, and the exception that it raised.
pub(super) static RESUME: AtomicU64 = AtomicU64::new(0);
pub(super) static RAISED: AtomicU64 = AtomicU64::new(NONE);
pub(super) const NONE: u64 = u64::MAX;
/// #GP(0) and #UD.
pub(super) const PROTECTION: u64 = (TRAP_GP_FAULT as u64) << 32;
pub(super) const UNDEFINED: u64 = (TRAP_INVALID_OP as u64) << 32;

pub(super) fn note(frame: &mut TrapFrame) {
    RAISED.store(frame.vector << 32 | frame.error_code, Ordering::Relaxed);
    frame.rip = RESUME.load(Ordering::Relaxed);
}

/// Executes instructions up to the first that raises an exception, which it returns.
macro_rules! attempt {
    ($code:literal $(, $($operands:tt)+)?) => {{
        RAISED.store(NONE, core::sync::atomic::Ordering::Relaxed);
        // SAFETY: the instructions of the callers change only the operands that are named, or trap.
        unsafe {
            asm!(
                "lea {resume}, [rip + 77f]",
                "mov [rip + {to}], {resume}",
                $code,
                "77:",
                resume = out(reg) _,
                to = sym RESUME,
                $($($operands)+)?
            );
        }
        RAISED.load(core::sync::atomic::Ordering::Relaxed)
    }};
}
pub(super) use attempt;

pub(super) fn run(bench: &mut Bench) {
    for vector in [TRAP_GP_FAULT, TRAP_INVALID_OP] {
        bench.suite.holds("set-handler", set_handler(vector, Some(note)));
    }
    identification(bench);
    control_registers(bench);
    model_registers(bench);
    ports(bench);
    refused(bench);
    time_stamps(bench);
    for vector in [TRAP_GP_FAULT, TRAP_INVALID_OP] {
        set_handler(vector, None);
    }
    page_table_stores(bench);
    lazy_fpu(bench);
}

/// CPUID with Xen's emulation prefix; stores EAX, EBX, ECX, EDX in `result`.
#[unsafe(naked)]
unsafe extern "C" fn forced_cpuid(leaf: u32, index: u32, result: *mut [u32; 4]) {
    naked_asm!(
        "push rbx",
        "mov eax, edi",
        "mov ecx, esi",
        "mov rsi, rdx",
        ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
        "cpuid",
        "mov [rsi], eax",
        "mov [rsi + 4], ebx",
        "mov [rsi + 8], ecx",
        "mov [rsi + 12], edx",
        "pop rbx",
        "ret",
    )
}

/// EAX, EBX, ECX, EDX of a leaf (sub-leaf 0), as the hypervisor shows them.
pub(super) fn forced(leaf: u32) -> [u32; 4] {
    forced_sub(leaf, 0)
}

/// CPUID of a sub-leaf, with Xen's emulation prefix.
pub(super) fn forced_sub(leaf: u32, index: u32) -> [u32; 4] {
    let mut result = [0; 4];
    // SAFETY: it writes only to its argument.
    unsafe { forced_cpuid(leaf, index, &raw mut result) };
    result
}

fn identification(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let [last, b, c, d] = forced(XEN_CPUID_FIRST_LEAF);
    let signature = [XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX];
    suite.equal("signature", [b, c, d], signature);
    suite.holds("leaves", last >= XEN_CPUID_FIRST_LEAF + 2);
    let version = raw(XEN_VERSION, [0, 0]);
    suite.equal("version-leaf", Ok(u64::from(forced(XEN_CPUID_FIRST_LEAF + 1)[0])), version);
    let [pages, register, ..] = forced(XEN_CPUID_FIRST_LEAF + 2);
    suite.equal("hypercall-leaf", (pages, register != 0), (1, true));
    suite.equal("no-such-leaf", forced(last + 1), [0; 4]);
    suite.holds("basic-leaves", forced(0)[0] >= 1);
    suite.holds("is-virtual", forced(1)[2] >> 31 == 1);
    suite.holds("long-mode", forced(0x8000_0001)[3] >> 29 & 1 == 1);
    let other = attempt!(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6d");
    suite.equal("another-prefix", other, UNDEFINED);
    let prefix = attempt!(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x90");
    suite.equal("prefix-of-something-else", prefix, UNDEFINED);
}

const PE: u64 = 1;
const TS: u64 = 1 << 3;
const WP: u64 = 1 << 16;
const PG: u64 = 1 << 31;

fn control_registers(bench: &mut Bench) {
    let root = bench.mmu.memory().mfn(bench.boot.root()).map_or(0, Mfn::maddr);
    let suite = &mut bench.suite;
    let mut cr0 = 0_u64;
    suite.equal("read-cr0", attempt!("mov {v}, cr0", v = out(reg) cr0), NONE);
    suite.equal("cr0", cr0 & (PE | TS | WP | PG), PE | WP | PG);
    suite.equal("write-cr0", attempt!("mov cr0, {v}", v = in(reg) cr0), NONE);
    for bit in [PE, WP, PG] {
        suite.equal("write-cr0-otherwise", attempt!("mov cr0, {v}", v = in(reg) cr0 & !bit), PROTECTION);
    }
    suite.equal("clts", attempt!("clts"), NONE);
    let mut cr2 = 0_u64;
    let _ = probe::read(NOWHERE);
    suite.equal("cr2", (attempt!("mov {v}, cr2", v = out(reg) cr2), cr2), (NONE, NOWHERE));
    suite.equal("write-cr2", attempt!("mov cr2, {v}", v = in(reg) 5_u64), NONE);
    suite.equal("cr2-is-written", (attempt!("mov {v}, cr2", v = out(reg) cr2), cr2), (NONE, 5));
    let mut cr3 = 0_u64;
    suite.equal("cr3", (attempt!("mov {v}, cr3", v = out(reg) cr3), cr3), (NONE, root));
    suite.equal("write-cr3", attempt!("mov cr3, {v}", v = in(reg) root), NONE);
    suite.equal("write-cr3-of-no-table", attempt!("mov cr3, {v}", v = in(reg) u64::MAX << 12), PROTECTION);
    let mut cr4 = 0_u64;
    suite.equal("read-cr4", attempt!("mov {v}, cr4", v = out(reg) cr4), NONE);
    suite.equal("write-cr4", attempt!("mov cr4, {v}", v = in(reg) cr4), NONE);
    let mut written = 0_u64;
    for bits in [1 << 3, 0] {
        suite.equal("write-cr4-de", attempt!("mov cr4, {v}", v = in(reg) cr4 | bits), NONE);
        suite.equal("read-cr4-de", attempt!("mov {v}, cr4", v = out(reg) written), NONE);
        suite.equal("cr4-de", written, cr4 | bits);
    }
}

fn read_register(number: u32) -> (u64, u64) {
    let (low, high): (u32, u32);
    let raised =
        attempt!("xor eax, eax; xor edx, edx; rdmsr", in("ecx") number, out("eax") low, out("edx") high);
    (raised, u64::from(high) << 32 | u64::from(low))
}

fn write_register(number: u32, value: u64) -> u64 {
    attempt!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

fn model_registers(bench: &mut Bench) {
    static WORD: u64 = 0x6d73;
    const FS_BASE: u32 = 0xc000_0100;
    const EFER: u32 = 0xc000_0080;
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    let suite = &mut bench.suite;
    let word = &raw const WORD as u64;
    for number in FS_BASE..=FS_BASE + 2 {
        suite.equal("write-base", write_register(number, word), NONE);
        suite.equal("base", read_register(number), (NONE, word));
        suite.equal("write-base-not-canonical", write_register(number, 1 << 47), PROTECTION);
    }
    let (fs, gs): (u64, u64);
    // SAFETY: both bases become the address of a word.
    unsafe { asm!("mov {}, fs:[0]", "mov {}, gs:[0]", out(reg) fs, out(reg) gs, options(readonly, nostack)) };
    suite.equal("bases-are-loaded", (fs, gs), (WORD, WORD));
    suite.equal("user-base-by-call", raw(SET_SEGMENT_BASE, [SEGBASE_GS_USER.into(), 64]), Ok(0));
    suite.equal("is-the-register", read_register(FS_BASE + 2), (NONE, 64));
    for number in FS_BASE..=FS_BASE + 2 {
        suite.equal("write-no-base", write_register(number, 0), NONE);
    }
    let (raised, efer) = read_register(EFER);
    suite.equal("efer", (raised, efer & LONG_MODE_ACTIVE), (NONE, LONG_MODE_ACTIVE));
    suite.equal("no-such-register", read_register(0x1234_5678).0, PROTECTION);
    suite.equal("write-no-such-register", write_register(0x1234_5678, 0), PROTECTION);
}

/// A port that no unprivileged domain owns.
const PORT: u16 = 0x44;
/// The counter of the PIT's channel 2.
const PIT_CHANNEL_2: u16 = 0x42;

fn input() -> (u64, u32) {
    let mut value = 0_u32;
    let raised = attempt!("in eax, dx", in("dx") PORT, inout("eax") value);
    (raised, value)
}

fn ports(bench: &mut Bench) {
    let privileged = bench.privileged;
    let suite = &mut bench.suite;
    let level = |iopl| does(PHYSDEV_OP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl { iopl });
    suite.equal("no-privilege", level(0), Ok(0));
    if !privileged {
        suite.equal("in-without-privilege", input().0, PROTECTION);
        suite.equal(
            "out-without-privilege",
            attempt!("out dx, al", in("dx") PORT, in("al") 0_u8),
            PROTECTION,
        );
    }
    // Paravane uses this port for its marks, but only in runs that are measured.
    if !privileged {
        suite.equal("out-80-without-privilege", attempt!("out 0x80, al", in("al") 0_u8), PROTECTION);
    }
    suite.equal("cli-without-privilege", attempt!("cli"), PROTECTION);
    suite.equal("sti-without-privilege", attempt!("sti"), PROTECTION);
    suite.equal("privilege", level(1), Ok(0));
    event::enable();
    suite.equal("cli", (attempt!("cli"), event::is_enabled()), (NONE, true));
    event::disable();
    suite.equal("sti", (attempt!("sti"), event::is_enabled()), (NONE, false));
    event::enable();
    if !privileged {
        suite.equal("in", input(), (NONE, u32::MAX));
        let mut byte = 0_u8;
        suite.equal("in-byte", (attempt!("in al, dx", in("dx") PORT, inout("al") byte), byte), (NONE, 0xff));
        let mut count = 0_u8;
        let counted = attempt!("in al, dx", in("dx") PIT_CHANNEL_2, inout("al") count);
        suite.equal("in-pit-counter", counted, NONE);
        if bench.paravane {
            suite.equal("pit-counter-has-run-out", count, 0);
        }
        let mut half = 0_u16;
        suite.equal(
            "in-half",
            (attempt!("in ax, dx", in("dx") PORT, inout("ax") half), half),
            (NONE, 0xffff),
        );
        suite.equal("out", attempt!("out dx, eax", in("dx") PORT, in("eax") 0), NONE);
        let mut bytes = [0_u8; 4];
        let strings = attempt!(
            "rep insb", in("dx") PORT, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _
        );
        // SAFETY: the buffer is initialised; the instruction above wrote to it.
        suite.equal("in-string", (strings, unsafe { (&raw const bytes).read_volatile() }), (NONE, [0xff; 4]));
        suite.equal("no-privilege-again", level(0), Ok(0));
        opened(bench);
    }
    bench.suite.equal(
        "no-privilege-left",
        does(PHYSDEV_OP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl { iopl: 0 }),
        Ok(0),
    );
}

/// Ports that the guest's bitmap allows.
fn opened(bench: &mut Bench) {
    static OPEN: [u8; 16] =
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x03, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let suite = &mut bench.suite;
    let map = |bitmap, nr_ports| {
        does(PHYSDEV_OP, PHYSDEVOP_SET_IOBITMAP, PhysdevSetIobitmap { bitmap, nr_ports, _pad: 0 })
    };
    suite.equal("bitmap", map(OPEN.as_ptr() as u64, 128), Ok(0));
    suite.equal("in-by-bitmap", input(), (NONE, u32::MAX));
    let mut value = 0_u32;
    let beside = attempt!("in eax, dx", in("dx") 0x40_u16, inout("eax") value);
    suite.equal("in-beside-the-bitmap", (beside, value), (PROTECTION, 0));
    suite.equal("no-bitmap", (map(0, 0), input().0), (Ok(0), PROTECTION));
}

/// Instructions that hypercalls stand in for.
fn refused(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let table = [0_u64; 2];
    let at = table.as_ptr();
    suite.equal("hlt", attempt!("hlt"), PROTECTION);
    suite.equal("invlpg", attempt!("invlpg [{at}]", at = in(reg) at), PROTECTION);
    suite.equal("lgdt", attempt!("lgdt [{at}]", at = in(reg) at), PROTECTION);
    suite.equal("lidt", attempt!("lidt [{at}]", at = in(reg) at), PROTECTION);
    suite.equal("lldt", attempt!("lldt {v:x}", v = in(reg) 0_u64), PROTECTION);
    suite.equal("ltr", attempt!("ltr {v:x}", v = in(reg) 0_u64), PROTECTION);
    suite.equal("lmsw", attempt!("lmsw {v:x}", v = in(reg) 1_u64), PROTECTION);
    suite.equal("swapgs", attempt!("swapgs"), PROTECTION);
    suite.equal("wbinvd", attempt!("wbinvd"), NONE);
}

fn time_stamps(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let read = || {
        let (low, high): (u32, u32);
        let raised = attempt!("rdtsc", out("eax") low, out("edx") high);
        (raised, u64::from(high) << 32 | u64::from(low))
    };
    let ((first, before), (second, after)) = (read(), read());
    suite.equal("rdtsc", (first, second, after > before), (NONE, NONE, true));
}

/// The address of a page with its own L1 table.
const PLACE: u64 = 0x3c_0000_0000;

/// Stores to page tables, with and without the writable page tables assist.
fn page_table_stores(bench: &mut Bench) {
    let space = bench.mmu.kernel_space();
    let (Some(page), Some(other)) = (bench.frames.take(), bench.frames.take()) else {
        return bench.suite.holds("set-up", false);
    };
    let mapped = space.map(&mut bench.mmu, &mut bench.frames, PLACE, page, PageFlags::WRITE).is_ok();
    bench.suite.holds("mapped", mapped && bench.mmu.flush().is_ok());
    let memory = bench.mmu.memory();
    let mut table = space.root();
    for level in [4, 3, 2] {
        let entry = bench.mmu.read(table, table_index(PLACE, level));
        table = memory.pfn(Mfn(pte::mfn(entry))).unwrap_or(table);
    }
    let mfn = |pfn| memory.mfn(pfn).map_or(0, |m| m.0);
    let (slot, upper) =
        (memory.va(table) + table_index(PLACE, 1) as u64 * 8, memory.va(space.root()) + 300 * 8);
    let (old, new, own) = (mfn(page), mfn(other), mfn(table));
    let flags = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY;
    // SAFETY: both pages and the entry belong to this check.
    let store = |at, entry| unsafe { probe::write(at, entry) }.map_err(|fault| fault.error_code);
    let denied = Err(u64::from(PFEC_PRESENT | PFEC_WRITE));
    let flush = || raw(UPDATE_VA_MAPPING, [PLACE, pte::make(new, flags), 2]);
    let paravane = bench.paravane;
    // SAFETY: as above.
    let marked = unsafe { (probe::write(memory.va(page), 1), probe::write(memory.va(other), 2)) };
    let suite = &mut bench.suite;
    suite.equal("marked", marked, (Ok(()), Ok(())));
    let assist = |command: u32| raw(VM_ASSIST, [command.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into()]);
    suite.equal("assist-off", assist(VMASST_CMD_DISABLE), Ok(0));
    if paravane {
        // Xen 4.17 does not check whether the assist is enabled.
        suite.equal("store-unassisted", store(slot, pte::make(new, flags)), denied);
    }
    suite.equal("assist-on", assist(VMASST_CMD_ENABLE), Ok(0));
    suite.equal(
        "store",
        (store(slot, pte::make(new, flags)), probe::read(slot).map(pte::mfn)),
        (Ok(()), Ok(new)),
    );
    suite.equal("flush", (flush(), probe::read(PLACE)), (Ok(0), Ok(2)));
    suite.equal("store-a-table-writable", store(slot, pte::make(own, flags)), denied);
    suite.equal("store-no-frame", store(slot, pte::make(0xff_ffff_ffff, flags)), denied);
    suite.equal("store-above-l1", store(upper, 0), denied);
    suite.equal("entry-stays", probe::read(slot).map(pte::mfn), Ok(new));
    let mut entry = probe::read(slot).unwrap_or(0);
    let (expected, wanted) = (entry, pte::make(old, flags));
    let raised =
        attempt!("lock cmpxchg [{at}], {v}", at = in(reg) slot, v = in(reg) wanted, inout("rax") entry);
    let after = probe::read(slot).map(pte::mfn);
    suite.equal("exchange", (raised, entry, after), (NONE, expected, Ok(old)));
    suite.equal("clear", (store(slot, 0), probe::read(slot)), (Ok(()), Ok(0)));
    suite.equal("assist-off-again", assist(VMASST_CMD_DISABLE), Ok(0));
}

static NO_MATH: AtomicU32 = AtomicU32::new(0);

/// One #NM at the first use of the FPU, on engines that can raise it. On others the FPU is usable, and CR0 still reads
/// as the guest set it.
fn lazy_fpu(bench: &mut Bench) {
    fn arrived(_: &mut TrapFrame) {
        NO_MATH.fetch_add(1, Ordering::Relaxed);
    }
    let paravane = bench.paravane;
    set_handler(TRAP_NO_DEVICE, Some(arrived));
    let read_cr0 = || {
        let cr0: u64;
        // SAFETY: the instruction is emulated and changes nothing.
        unsafe { asm!("mov {}, cr0", out(reg) cr0) };
        cr0 & TS
    };
    let mut outcomes = [(0, 0, 0); 2];
    for outcome in &mut outcomes {
        let switched = raw(FPU_TASKSWITCH, [1]);
        let before = read_cr0();
        // SAFETY: the operands name everything that it changes.
        unsafe { asm!("movd xmm0, eax", "paddd xmm0, xmm0", out("xmm0") _) };
        *outcome = (switched.map_or(1, |zero| zero), before, read_cr0());
        let _ = raw(FPU_TASKSWITCH, [0]);
    }
    set_handler(TRAP_NO_DEVICE, None);
    let suite = &mut bench.suite;
    let raised = NO_MATH.load(Ordering::Relaxed);
    // The hypercall path may use vector registers itself, so CR0 shows the effect of the trap.
    let lazy = outcomes.map(|(_, _, after)| after == 0);
    suite.equal("task-switched", outcomes.map(|(switched, ..)| switched), [0; 2]);
    suite.equal("no-math-comes-as-often-as-ts-goes", raised >= u32::from(lazy[0]) + u32::from(lazy[1]), true);
    if !paravane {
        suite.equal("no-math", lazy, [true; 2]);
    }
    paravane_guest::println!("lazy-fpu: traps={raised} ts-cleared={lazy:?}");
}
