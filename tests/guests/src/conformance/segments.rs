//! Selectors: the hypervisor's flat ones, and those of the kernel's descriptor table.
//!
//! The values are those of Xen 4.17. Where the processor uses the host's descriptor table (see "Selectors" in
//! `docs/abi.md`), some are impossible: [`ON_THE_HOSTS_TABLE`] lists the results there; any other result fails.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::abi::hypercall::{SET_GDT, UPDATE_VA_MAPPING};
use paravane_guest::abi::mmu::UVMF_INVLPG;
use paravane_guest::abi::pte;
use paravane_guest::abi::segment::{FLAT_RING3_CS64, FLAT_RING3_SS64};
use paravane_guest::abi::trap::*;
use paravane_guest::paging::FrameSource;
use paravane_guest::println;
use paravane_guest::trap::{TrapFrame, set_handler};

use super::Bench;
use super::raw::raw;
use crate::suite::Suite;

/// The result of a sequence of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The value in EAX at its end.
    Is(u64),
    /// An exception, with its error code.
    Raises(u64, u64),
}
use Outcome::{Is, Raises};

const NO_SEGMENT: u64 = TRAP_NO_SEGMENT as u64;
const STACK_ERROR: u64 = TRAP_STACK_ERROR as u64;
const PROTECTION: u64 = TRAP_GP_FAULT as u64;
const PAGE_FAULT: u64 = TRAP_PAGE_FAULT as u64;

/// The results on a software KVM and the process engine: CS and SS read as the host's; after a load that the hypervisor
/// completed, DS, ES, FS and GS read as before the load; the host's 0x2b and 0x33 exist, and are flat.
const ON_THE_HOSTS_TABLE: [(&str, Outcome); 19] = [
    ("read-cs", Is(0x33)),
    ("read-ss", Is(0x2b)),
    ("ds-flat", Is(0)),
    ("es-flat", Is(0)),
    ("ss-flat", Is(0x2b)),
    ("pop-fs-flat", Is(0)),
    ("ds-flat-code", Is(0)),
    ("ds-of-no-table", Is(0x2b)),
    ("lar-flat", Is(0)),
    ("lsl-flat", Is(0)),
    ("verr-flat", Is(0)),
    ("far-return-flat", Is(0x33)),
    ("fs-base-of-the-hosts", Raises(PAGE_FAULT, 0)),
    ("gs-base-of-the-hosts", Raises(PAGE_FAULT, 0)),
    ("ds-without-privilege", Is(0)),
    ("far-return-own", Is(0x33)),
    ("far-return-flat-again", Is(0x33)),
    ("iretq-flat", Is(0x33)),
    ("iretq-own", Is(0x33)),
];

const HOSTS_CS: u64 = 0x33;
const FLAT_CS: u64 = FLAT_RING3_CS64 as u64;
const FLAT_SS: u64 = FLAT_RING3_SS64 as u64;

/// Selectors of the kernel's table: flat data; data with a base, at a selector that Linux uses and at one that it does
/// not; data that is not present; data of privilege level 0; 64-bit code.
const DATA: u64 = 0x2b;
const BASED: u64 = 0x33;
const ABSENT: u64 = 0x3b;
const PRIVILEGED: u64 = 0x43;
const CODE: u64 = 0x4b;
const BASED_TOO: u64 = 0x53;

/// The words that the bases point to.
static WORDS: [u64; 2] = [0x1111, 0x2222];

/// The exception that ended a sequence, and the code selector in its frame.
static RAISED: AtomicU64 = AtomicU64::new(NONE);
static FRAME_CS: AtomicU64 = AtomicU64::new(0);
const NONE: u64 = u64::MAX;
/// The stack of [`run_sequence`].
static STACK: AtomicU64 = AtomicU64::new(0);

fn note(frame: &mut TrapFrame) {
    RAISED.store(frame.vector << 32 | frame.error_code, Ordering::Relaxed);
    FRAME_CS.store(frame.cs & 0xffff, Ordering::Relaxed);
    frame.rip = sequence_ended as *const () as u64;
    frame.rsp = STACK.load(Ordering::Relaxed);
}

/// A sequence: gets its argument in RDI, leaves its result in RAX, and may change the registers that a function may.
type Sequence = unsafe extern "C" fn(u64) -> u64;

#[unsafe(naked)]
unsafe extern "C" fn run_sequence(sequence: Sequence, argument: u64) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rax",
        "mov [rip + {stack}], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "jmp {ended}",
        stack = sym STACK,
        ended = sym sequence_ended,
    )
}

/// The end of [`run_sequence`], with its stack.
#[unsafe(naked)]
unsafe extern "C" fn sequence_ended() {
    naked_asm!("pop rcx", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret")
}

fn outcome(sequence: Sequence, argument: u64) -> Outcome {
    RAISED.store(NONE, Ordering::Relaxed);
    // SAFETY: the sequences change only segment registers, which flat code ignores, and what functions may change.
    let value = unsafe { run_sequence(sequence, argument) };
    match RAISED.load(Ordering::Relaxed) {
        NONE => Is(value),
        raised => Raises(raised >> 32, raised & 0xffff_ffff),
    }
}

/// Defines a [`Sequence`] of these instructions.
macro_rules! sequence {
    ($($line:literal),* $(,)?) => {{
        #[unsafe(naked)]
        unsafe extern "C" fn code(_argument: u64) -> u64 {
            naked_asm!($($line),*)
        }
        code
    }};
}

/// Checks a result, against the table that the processor uses.
struct Selectors<'a> {
    suite: &'a mut Suite,
    hosts: bool,
}

impl Selectors<'_> {
    fn check(&mut self, name: &str, sequence: Sequence, argument: u64, on_xen: Outcome) {
        let declared = ON_THE_HOSTS_TABLE.iter().find(|(n, _)| self.hosts && *n == name);
        let wanted = declared.map_or(on_xen, |(_, instead)| *instead);
        self.suite.equal(name, outcome(sequence, argument), wanted);
    }

    fn load(&mut self, name: &str, selector: u64, on_xen: Outcome) {
        self.check(name, load_ds(), selector, on_xen);
    }
}

/// Loads DS, which was null, and reads it back.
fn load_ds() -> Sequence {
    sequence!("xor eax, eax", "mov ds, eax", "mov ds, edi", "mov eax, ds", "ret")
}

/// A far return to the next instruction; then reads CS.
fn far_return() -> Sequence {
    sequence!("push rdi", "lea rax, [rip + 2f]", "push rax", "retfq", "2:", "mov eax, cs", "ret")
}

/// IRETQ to the next instruction, as a handler returns from a frame that the hypervisor made; then reads CS.
fn interrupt_return() -> Sequence {
    sequence!(
        "mov rax, rsp",
        "push 0xe028",
        "push rax",
        "pushfq",
        "and edi, -4",
        "push rdi",
        "lea rax, [rip + 2f]",
        "push rax",
        "or byte ptr [rsp + 8], 3",
        "or byte ptr [rsp + 32], 3",
        "iretq",
        "2:",
        "mov eax, cs",
        "ret"
    )
}

pub(super) fn run(bench: &mut Bench) {
    let vectors = [TRAP_NO_SEGMENT, TRAP_STACK_ERROR, TRAP_GP_FAULT, TRAP_INVALID_OP];
    for vector in vectors {
        bench.suite.holds("set-handler", set_handler(vector, Some(note)));
    }
    let hosts = outcome(sequence!("mov eax, cs", "ret"), 0) == Is(HOSTS_CS);
    println!(
        "segments: the processor runs on the {}'s descriptor table",
        if hosts { "host" } else { "guest" }
    );
    flat(&mut Selectors { suite: &mut bench.suite, hosts });
    own(bench, hosts);
    for vector in vectors {
        set_handler(vector, None);
    }
}

/// The hypervisor's selectors, while the kernel has no table of its own.
fn flat(s: &mut Selectors<'_>) {
    s.check("read-cs", sequence!("mov eax, cs", "ret"), 0, Is(FLAT_CS));
    s.check("read-ss", sequence!("mov eax, ss", "ret"), 0, Is(FLAT_SS));
    s.load("ds-null", 0, Is(0));
    s.load("ds-null-3", 3, Is(3));
    s.load("ds-flat", FLAT_SS, Is(FLAT_SS));
    s.load("ds-flat-code", FLAT_CS, Is(FLAT_CS));
    s.load("ds-of-the-hypervisor", 0xe03b, Raises(PROTECTION, 0xe038));
    s.load("ds-of-no-table", DATA, Raises(PROTECTION, 0x28));
    s.load("ds-of-no-table-too", BASED_TOO, Raises(PROTECTION, 0x50));
    let es = sequence!("xor eax, eax", "mov es, eax", "mov es, edi", "mov eax, es", "ret");
    s.check("es-flat", es, FLAT_SS, Is(FLAT_SS));
    s.check("ss-flat", sequence!("mov ss, edi", "mov eax, ss", "ret"), FLAT_SS, Is(FLAT_SS));
    s.check("ss-flat-code", sequence!("mov ss, edi", "ret"), FLAT_CS, Raises(PROTECTION, 0xe030));
    let fs = sequence!("xor eax, eax", "mov fs, eax", "push rdi", ".byte 0x0f, 0xa1", "mov eax, fs", "ret");
    s.check("pop-fs-flat", fs, FLAT_SS, Is(FLAT_SS));
    s.check("lar-flat", sequence!("xor eax, eax", "lar eax, edi", "ret"), FLAT_SS, Is(0xc0_f300));
    s.check("lsl-flat", sequence!("xor eax, eax", "lsl eax, edi", "ret"), FLAT_CS, Is(0xffff_ffff));
    s.check("verr-flat", sequence!("xor eax, eax", "verr di", "setz al", "ret"), FLAT_SS, Is(1));
    s.check("far-return-flat", far_return(), FLAT_CS, Is(FLAT_CS));
    s.check("far-return-level-0", far_return(), 0xe030, Raises(PROTECTION, 0xe030));
    let call = sequence!("sub rsp, 16", "mov [rsp + 4], edi", "call fword ptr [rsp]", "ud2");
    s.check("far-call-of-no-local-table", call, 0x1007, Raises(PROTECTION, 0x1004));
    s.check("iretq-flat", interrupt_return(), FLAT_CS, Is(FLAT_CS));
    let unchanged =
        sequence!("mov rax, rsp", "push 0xe02b", "push rax", "pushfq", "push rdi", "push rax", "iretq");
    s.check("iretq-level-0", unchanged, 0xe030, Raises(PROTECTION, 0xe030));
}

/// The selectors of a table of the kernel's own.
fn own(bench: &mut Bench, hosts: bool) {
    let memory = bench.mmu.memory();
    let Some(page) = bench.frames.take() else { return bench.suite.holds("set-up", false) };
    let (va, mfn) = (memory.va(page), memory.mfn(page).map_or(0, |mfn| mfn.0));
    let base = &raw const WORDS as u64;
    let based = 0x00cf_f300_0000_ffff | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
    // SAFETY: the frame is free, mapped writable, and belongs to this check.
    let words = unsafe { core::slice::from_raw_parts_mut(va as *mut u64, 512) };
    words.fill(0);
    for (selector, descriptor) in [
        (DATA, 0x00cf_f300_0000_ffff),
        (BASED, based),
        (ABSENT, 0x00cf_7300_0000_ffff),
        (PRIVILEGED, 0x00cf_9300_0000_ffff),
        (CODE, 0x00af_fb00_0000_ffff),
        (BASED_TOO, based),
    ] {
        if let Some(word) = words.get_mut((selector >> 3) as usize) {
            *word = descriptor;
        }
    }
    let flags = pte::PRESENT | pte::USER | pte::ACCESSED;
    let protect = |flags| raw(UPDATE_VA_MAPPING, [va, pte::make(mfn, flags), UVMF_INVLPG]);
    bench.suite.equal("table-read-only", protect(flags), Ok(0));
    bench.suite.equal("table", raw(SET_GDT, [[mfn].as_ptr() as u64, 512]), Ok(0));
    by_own_table(&mut Selectors { suite: &mut bench.suite, hosts });
    // SAFETY: null selectors, which 64-bit code starts with.
    unsafe { asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {0:e}", "mov gs, {0:e}", in(reg) 0) };
    bench.suite.equal("no-table", raw(SET_GDT, [0, 0]), Ok(0));
    bench.suite.equal("table-writable", protect(flags | pte::RW | pte::DIRTY), Ok(0));
    let mut s = Selectors { suite: &mut bench.suite, hosts };
    s.load("ds-of-no-table-any-more", BASED_TOO, Raises(PROTECTION, 0x50));
}

fn by_own_table(s: &mut Selectors<'_>) {
    let fs = || sequence!("mov fs, edi", "mov rax, fs:[8]", "ret");
    let gs = || sequence!("mov gs, edi", "mov rax, gs:[0]", "ret");
    s.load("ds-own", DATA, Is(DATA));
    s.check("fs-base-own", fs(), BASED_TOO, Is(0x2222));
    s.check("gs-base-own", gs(), BASED_TOO, Is(0x1111));
    if set_handler(TRAP_PAGE_FAULT, Some(note)) {
        s.check("fs-base-of-the-hosts", fs(), BASED, Is(0x2222));
        s.check("gs-base-of-the-hosts", gs(), BASED, Is(0x1111));
        crate::probe::install();
    }
    s.load("ds-absent", ABSENT, Raises(NO_SEGMENT, 0x38));
    s.load("ds-without-privilege", PRIVILEGED, Is(PRIVILEGED));
    s.check("ss-absent", sequence!("mov ss, edi", "ret"), ABSENT, Raises(STACK_ERROR, 0x38));
    s.check("far-return-own", far_return(), CODE, Is(CODE));
    let raise = sequence!("push rdi", "lea rax, [rip + 2f]", "push rax", "retfq", "2:", "ud2");
    let raised = outcome(raise, CODE);
    let seen = (raised, FRAME_CS.load(Ordering::Relaxed));
    s.suite.equal("frame-of-own-code", seen, (Raises(TRAP_INVALID_OP.into(), 0), CODE & !3));
    s.check("far-return-to-data", far_return(), DATA, Raises(PROTECTION, 0x28));
    s.check("far-return-flat-again", far_return(), FLAT_CS, Is(FLAT_CS));
    s.check("iretq-own", interrupt_return(), CODE, Is(CODE));
    let load_stack = sequence!(
        "sub rsp, 8",
        "mov dword ptr [rsp], 0x1234",
        "mov [rsp + 4], edi",
        "lss eax, [rsp]",
        "add rsp, 8",
        "ret"
    );
    s.check("lss-flat", load_stack, FLAT_SS, Is(0x1234));
}
