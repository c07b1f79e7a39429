//! User mode: there by `iret`, back by system call, exception or event, with an address space and bases of its own.
//!
//! The entry points here are raw: they note the frame that they find and go back to whoever entered user mode.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use paravane_guest::abi::Errno;
use paravane_guest::abi::callback::*;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::event::{EVTCHNOP_BIND_IPI, EVTCHNOP_SEND, EvtchnBindIpi, EvtchnSend};
use paravane_guest::abi::hypercall::*;
use paravane_guest::abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp};
use paravane_guest::abi::segment::*;
use paravane_guest::abi::trap::*;
use paravane_guest::event::{self, Port};
use paravane_guest::paging::{AddressSpace, FrameSource, PageFlags};
use paravane_guest::{println, trap};

use super::Bench;
use super::calls::NOWHERE;
use super::emulation::forced;
use super::raw::{does, op, raw};
use crate::probe;

/// A page that only user mode has.
const PLACE: u64 = 0x38_0000_0000;
/// What it holds.
const SECRET: u64 = 0x5ec2e7;
/// Flags of a user program that events may interrupt; CF shows that they are loaded.
const FLAGS: u64 = 0x203;
/// RFLAGS.RF.
const RF: u64 = 1 << 16;
/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// CR4.FSGSBASE, and CPUID's bit of it in EBX of leaf 7.
const CR4_FSGSBASE: u64 = 1 << 16;
const FSGSBASE: u32 = 1;

/// Which entry point was used.
const BY_SYSCALL: u64 = 1000;
const BY_FAILSAFE: u64 = 1001;

/// What an entry into the kernel finds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// The frame, from the stack pointer upwards, and what is above it.
    words: [u64; 11],
    sp: u64,
    rax: u64,
    rdx: u64,
    rsi: u64,
    /// The word at GS:0.
    gs: u64,
    /// The vector, or `BY_*`.
    by: u64,
}

static mut ENTRY: Entry = Entry { words: [0; 11], sp: 0, rax: 0, rdx: 0, rsi: 0, gs: 0, by: 0 };
/// The stack of whoever entered user mode.
static mut RETURN_SP: u64 = 0;

/// Stacks: the kernel's, with room above its top for what the entry points copy; and user mode's.
#[repr(align(16))]
struct Stack([AtomicU64; 1024]);
static KERNEL: Stack = Stack([const { AtomicU64::new(0) }; 1024]);
static USER: Stack = Stack([const { AtomicU64::new(0) }; 1024]);

impl Stack {
    fn top(&self) -> u64 {
        self.0.as_ptr() as u64 + 1000 * 8
    }
}

static KERNEL_WORD: u64 = 0x6b65;
static USER_WORD: u64 = 0x7573;
static NATIVE_WORD: u64 = 0x6e61;

// SAFETY: a page of the image, of which only the address is taken.
unsafe extern "C" {
    /// The page that the hypervisor fills.
    static hypercall_page: u8;
}

/// Enters user mode as the frame says; comes back through [`enter`].
#[unsafe(naked)]
unsafe extern "C" fn leave(frame: *const IretContext) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {sp}], rsp",
        "push qword ptr [rdi + 64]",
        "push qword ptr [rdi + 56]",
        "push qword ptr [rdi + 48]",
        "push qword ptr [rdi + 40]",
        "push qword ptr [rdi + 32]",
        "push qword ptr [rdi + 24]",
        // The page's entry pushes the rest.
        "mov rax, [rdi]",
        "mov r11, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "jmp {page} + {iret}",
        sp = sym RETURN_SP,
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

/// An entry point.
#[unsafe(naked)]
unsafe extern "C" fn enter<const BY: u64>() -> ! {
    naked_asm!(
        "mov [rip + {entry} + 88], rsp",
        "mov [rip + {entry} + 96], rax",
        "mov [rip + {entry} + 104], rdx",
        "mov [rip + {entry} + 112], rsi",
        "mov rax, gs:[0]",
        "mov [rip + {entry} + 120], rax",
        "mov qword ptr [rip + {entry} + 128], {by}",
        "lea rdi, [rip + {entry}]",
        "mov rsi, rsp",
        "mov ecx, 11",
        "cld",
        "rep movsq",
        "mov rsp, [rip + {sp}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        entry = sym ENTRY,
        sp = sym RETURN_SP,
        by = const BY,
    )
}

/// Makes a system call, with RCX and R11 as they were in RDX and RSI.
#[unsafe(naked)]
unsafe extern "C" fn call() {
    naked_asm!("mov rdx, rcx", "mov rsi, r11", "mov eax, 0x55", "syscall", "ud2")
}
/// Bytes of `call` up to the one after its SYSCALL.
const CALL_LENGTH: u64 = 13;

/// Shows what it sees at GS:0 and at `PLACE`.
#[unsafe(naked)]
unsafe extern "C" fn look() {
    naked_asm!(
        "mov rdx, gs:[0]",
        "movabs rsi, {place}",
        "mov rsi, [rsi]",
        "syscall",
        "ud2",
        place = const PLACE,
    )
}

/// A system call as its first instruction.
#[unsafe(naked)]
unsafe extern "C" fn call_at_once() {
    naked_asm!("syscall", "ud2")
}
/// Sets its own bases, and makes a system call.
#[unsafe(naked)]
unsafe extern "C" fn set_bases() {
    naked_asm!("lea rax, [rip + {word}]", "wrgsbase rax", "wrfsbase rax", "syscall", "ud2", word = sym NATIVE_WORD)
}
/// Shows what it sees at GS:0 and FS:0.
#[unsafe(naked)]
unsafe extern "C" fn look_at_bases() {
    naked_asm!("mov rdx, gs:[0]", "mov rsi, fs:[0]", "syscall", "ud2")
}

#[unsafe(naked)]
unsafe extern "C" fn undefined() {
    naked_asm!("ud2")
}
#[unsafe(naked)]
unsafe extern "C" fn breakpoint() {
    naked_asm!("int3")
}
#[unsafe(naked)]
unsafe extern "C" fn privileged() {
    naked_asm!("cli")
}
/// Where the next one stores to.
static TARGET: AtomicU64 = AtomicU64::new(0);

#[unsafe(naked)]
unsafe extern "C" fn store() {
    naked_asm!("mov rax, [rip + {target}]", "mov [rax], rax", target = sym TARGET)
}
/// Bytes of `store` up to its store.
const STORE_AT: u64 = 7;

#[unsafe(naked)]
unsafe extern "C" fn interrupt_80() {
    naked_asm!("int 0x80")
}
#[unsafe(naked)]
unsafe extern "C" fn interrupt_81() {
    naked_asm!("int 0x81")
}

/// The hypercall page's own instruction, where the engine has one, and everything like it.
macro_rules! port_accesses {
    ($($name:ident: $instruction:literal),* $(,)?) => {
        mod ports {
            use core::arch::naked_asm;

            $(#[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                // The stack is user mode's, should an input be carried out.
                naked_asm!("mov edx, 0x7e", "mov ecx, 3", "lea rdi, [rsp - 64]", "mov rsi, rdi", $instruction)
            })*
        }
        const PORTS: &[(&str, unsafe extern "C" fn())] = &[$((stringify!($name), ports::$name)),*];
    };
}
port_accesses! {
    in_al: "in al, 0x7e",
    in_ax: "in ax, 0x7e",
    in_al_dx: "in al, dx",
    in_eax_dx: "in eax, dx",
    out_al: "out 0x7e, al",
    out_ax: "out 0x7e, ax",
    out_al_dx: "out dx, al",
    insb: "insb",
    insd: "insd",
    outsb: "outsb",
    outsw: "outsw",
    rep_insb: "rep insb",
    rep_outsb: "rep outsb",
}
/// Bytes of each up to its instruction.
const ACCESS_AT: u64 = 5 + 5 + 5 + 3;

fn address(code: unsafe extern "C" fn()) -> u64 {
    code as *const () as u64
}

fn user_stack() -> u64 {
    USER.top()
}

/// A frame that enters user mode at `rip`.
fn to(rip: u64) -> IretContext {
    IretContext {
        rax: 1,
        r11: 2,
        rcx: 3,
        flags: 0,
        rip,
        cs: FLAT_USER_CS.into(),
        rflags: FLAGS,
        rsp: user_stack(),
        ss: FLAT_USER_SS.into(),
    }
}

/// Goes there and comes back.
fn go(frame: IretContext) -> Entry {
    // SAFETY: `leave` saves what is its caller's, and every way back leads through `enter`, which writes `ENTRY`.
    unsafe {
        leave(&raw const frame);
        (&raw const ENTRY).read_volatile()
    }
}

fn register(kind: u16, flags: u16, address: u64) -> Result<u64, Errno> {
    does(CALLBACK_OP, CALLBACKOP_REGISTER, CallbackRegister { kind, flags, address, _pad: 0 })
}

fn user_root(mfn: u64) -> Result<u64, Errno> {
    let op = MmuextOp { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: mfn, ..MmuextOp::default() };
    raw(MMUEXT_OP, [&raw const op as u64, 1, 0, DOMID_SELF.into()])
}

pub(super) fn run(bench: &mut Bench) {
    let Some(space) = prepare(bench) else { return bench.suite.holds("set-up", false) };
    event::enable();
    system_calls(bench);
    spaces(bench);
    bases(bench);
    returns(bench);
    events(bench);
    exceptions(bench);
    failures(bench);
    event::enable();
    let suite = &mut bench.suite;
    suite.holds("handlers-are-back", trap::install().is_ok());
    suite.equal("no-user-tables", user_root(0), Ok(0));
    suite.equal("no-user-tables-twice", user_root(0), Ok(0));
    for which in [SEGBASE_GS_USER, SEGBASE_GS_KERNEL] {
        suite.equal("base-0", raw(SET_SEGMENT_BASE, [which.into(), 0]), Ok(0));
    }
    let kernel = bench.mmu.kernel_space();
    let gone = space.destroy(&mut bench.mmu, &mut bench.frames, &kernel);
    bench.suite.holds("tables-are-free", gone.is_ok());
}

/// An address space for user mode, entry points, stacks and bases.
fn prepare(bench: &mut Bench) -> Option<AddressSpace> {
    let kernel = bench.mmu.kernel_space();
    let page = bench.frames.take()?;
    let va = bench.mmu.memory().va(page);
    // SAFETY: the page is this module's.
    unsafe { probe::write(va, SECRET) }.ok()?;
    let space = AddressSpace::new(&mut bench.mmu, &mut bench.frames, &kernel).ok()?;
    space.map(&mut bench.mmu, &mut bench.frames, PLACE, page, PageFlags::DATA).ok()?;
    bench.mmu.flush().ok()?;
    let root = bench.mmu.memory().mfn(space.root())?.0;
    let not_a_root = bench.mmu.memory().mfn(page)?.0;
    let suite = &mut bench.suite;
    suite.equal("user-tables-of-an-ordinary-page", user_root(not_a_root), Err(Errno::EINVAL));
    suite.equal("user-tables-of-no-frame", user_root(u64::MAX >> 12), Err(Errno::EINVAL));
    suite.equal("user-tables", user_root(root), Ok(0));
    suite.equal("user-tables-again", user_root(root), Ok(0));
    let stack = raw(STACK_SWITCH, [FLAT_KERNEL_SS.into(), KERNEL.top()]);
    suite.equal("kernel-stack", stack, Ok(0));
    suite.equal("syscall", register(CALLBACKTYPE_SYSCALL, 0, enter::<BY_SYSCALL> as *const () as u64), Ok(0));
    let failsafe = enter::<BY_FAILSAFE> as *const () as u64;
    suite.equal("failsafe", register(CALLBACKTYPE_FAILSAFE, CALLBACKF_MASK_EVENTS, failsafe), Ok(0));
    let bases = [(SEGBASE_GS_KERNEL, &raw const KERNEL_WORD), (SEGBASE_GS_USER, &raw const USER_WORD)];
    for (which, word) in bases {
        suite.equal("base", raw(SET_SEGMENT_BASE, [which.into(), word as u64]), Ok(0));
    }
    Some(space)
}

fn system_calls(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let entry = go(to(address(call)));
    suite.equal("system-call", (entry.by, entry.rax), (BY_SYSCALL, 0x55));
    suite.equal("registers-of-the-frame", (entry.rdx, entry.rsi), (3, 2));
    let rip = address(call) + CALL_LENGTH;
    let [rcx, r11, ip, cs, flags, sp, ss, ..] = entry.words;
    suite.equal("rcx-and-rip", (rcx, ip), (rip, rip));
    suite.equal("r11-and-flags", (r11 & 1, flags), (1, FLAGS));
    suite.equal("selectors", (cs, ss), (FLAT_USER_CS.into(), FLAT_USER_SS.into()));
    suite.equal("user-stack", sp, user_stack());
    suite.equal("kernel-stack-is-used", entry.sp, KERNEL.top() - 7 * 8);
    suite.holds("events-are-enabled-still", event::is_enabled());
    let masking =
        register(CALLBACKTYPE_SYSCALL, CALLBACKF_MASK_EVENTS, enter::<BY_SYSCALL> as *const () as u64);
    let entry = go(to(address(call)));
    suite.equal(
        "system-call-that-masks",
        (masking, entry.by, event::is_enabled()),
        (Ok(0), BY_SYSCALL, false),
    );
    suite.equal("saved-mask", entry.words[3], FLAT_USER_CS.into());
    let masked = go(IretContext { rflags: FLAGS & !0x200, ..to(address(call)) });
    let mask = u64::from(FLAT_USER_CS) | 1 << FRAME_CS_UPCALL_MASK_SHIFT;
    suite.equal("user-mode-with-events-masked", (masked.words[3], masked.words[4] & 0x200), (mask, 0));
    event::enable();
}

fn spaces(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let entry = go(to(address(look)));
    suite.equal("user-mode-has-its-page-and-base", (entry.rsi, entry.rdx), (SECRET, USER_WORD));
    suite.equal("the-kernel-has-its-base", entry.gs, KERNEL_WORD);
    suite.equal("and-not-the-page", probe::read(PLACE).map_err(|fault| fault.error_code), Err(0));
    static OTHER: u64 = 0x6f74;
    let set = raw(SET_SEGMENT_BASE, [SEGBASE_GS_USER.into(), &raw const OTHER as u64]);
    let entry = go(to(address(look)));
    suite.equal("user-base-is-set", (set, entry.rdx, entry.gs), (Ok(0), OTHER, KERNEL_WORD));
    event::enable();
}

/// What a program sets natively is its own, and not its kernel's (XSA-293).
fn bases(bench: &mut Bench) {
    let suite = &mut bench.suite;
    if forced(7)[1] & FSGSBASE == 0 {
        println!("user-mode: this processor has no instructions that set bases");
        return;
    }
    // SAFETY: turns instructions on, of which the kernel uses none.
    unsafe {
        asm!("mov {v}, cr4", "or {v}, {bit}", "mov cr4, {v}", v = out(reg) _, bit = const CR4_FSGSBASE)
    };
    let entry = go(to(address(set_bases)));
    suite.equal("bases-set-natively", (entry.by, entry.gs), (BY_SYSCALL, KERNEL_WORD));
    let entry = go(to(address(look_at_bases)));
    suite.equal(
        "are-the-programs-still",
        (entry.rdx, entry.rsi, entry.gs),
        (NATIVE_WORD, NATIVE_WORD, KERNEL_WORD),
    );
    suite.equal("base-of-fs", raw(SET_SEGMENT_BASE, [SEGBASE_FS.into(), 0]), Ok(0));
    event::enable();
}

fn returns(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let rip = address(call);
    let entry = go(IretContext { flags: VGCF_IN_SYSCALL, cs: 0x33, ss: 0x2b, ..to(rip) });
    suite.equal("as-by-sysret", (entry.by, entry.rdx, entry.rsi & 0x3), (BY_SYSCALL, rip, FLAGS & 3));
    let entry = go(IretContext { rflags: FLAGS | 0x3000, ..to(rip) });
    suite.equal("no-privilege-level-by-iret", entry.words[4] & 0x3000, 0);
    let entry = go(IretContext { rflags: 0x8d7 | 0x200, ..to(rip) });
    suite.equal("arithmetic-flags", entry.words[4] & 0x8d5, 0x8d5);
    // XSA-204: the single step of a system call is not one of the kernel's first instruction.
    let entry = go(IretContext { rflags: FLAGS | TF, ..to(address(call_at_once)) });
    suite.equal("stepped-system-call", (entry.by, entry.words[4] & TF), (BY_SYSCALL, TF));
    event::enable();
}

static FIRED: AtomicU32 = AtomicU32::new(0);

fn fire(_: Port) {
    FIRED.fetch_add(1, Ordering::Relaxed);
}

fn events(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let (bound, ipi) = op(EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, EvtchnBindIpi::default());
    suite.equal("bind", bound, Ok(0));
    event::handle(Port(ipi.port), fire);
    event::unmask(Port(ipi.port));
    event::disable();
    let sent = does(EVENT_CHANNEL_OP, EVTCHNOP_SEND, EvtchnSend { port: ipi.port });
    suite.equal("masked-event-waits", (sent, FIRED.load(Ordering::Relaxed)), (Ok(0), 0));
    let entry = go(to(address(call)));
    suite.equal(
        "event-in-user-mode",
        (FIRED.load(Ordering::Relaxed), entry.by, entry.rax),
        (1, BY_SYSCALL, 0x55),
    );
    suite.equal("registers-survive-it", (entry.rdx, entry.rsi), (3, 2));
    event::enable();
    suite.equal("close", event::close(Port(ipi.port)), Ok(()));
}

fn exceptions(bench: &mut Bench) {
    let table = bench.mmu.memory().va(bench.boot.root());
    let paravane = bench.paravane;
    let suite = &mut bench.suite;
    let entry = |vector: u8, flags: u8, at: unsafe extern "C" fn() -> !| TrapInfo {
        vector,
        flags,
        cs: FLAT_KERNEL_CS,
        address: at as *const () as u64,
        ..TrapInfo::default()
    };
    let handlers = [
        entry(TRAP_INT3, 3, enter::<3>),
        entry(TRAP_INVALID_OP, TI_IF, enter::<6>),
        entry(TRAP_GP_FAULT, TI_IF, enter::<13>),
        entry(TRAP_PAGE_FAULT, TI_IF, enter::<14>),
        entry(0x80, 3, enter::<0x80>),
        entry(0x81, 0, enter::<0x81>),
        TrapInfo::default(),
    ];
    suite.equal("handlers", raw(SET_TRAP_TABLE, [handlers.as_ptr() as u64]), Ok(0));
    let user = u64::from(FLAT_USER_CS);

    let at = address(undefined);
    let entry = go(to(at));
    suite.equal("undefined", (entry.by, entry.words[2], entry.words[3]), (6, at, user));
    suite.equal("undefined-registers", (entry.words[0], entry.words[1], entry.rax), (3, 2, 1));
    if paravane {
        // Where QEMU emulates the processor, Xen does not get to see RF.
        suite.equal("undefined-flags", entry.words[4], FLAGS | RF);
    }
    suite.holds("its-handler-masks", !event::is_enabled());
    suite.equal("no-error-code", entry.sp, KERNEL.top() - 7 * 8);

    let at = address(breakpoint);
    let entry = go(to(at));
    suite.equal("breakpoint", (entry.by, entry.words[2], entry.words[4]), (3, at + 1, FLAGS));
    suite.holds("its-handler-does-not-mask", event::is_enabled());

    let at = address(privileged);
    let entry = go(to(at));
    suite.equal("privileged", (entry.by, entry.words[2], entry.words[3]), (13, 0, at));

    for (name, code) in PORTS {
        let at = address(*code) + ACCESS_AT;
        let entry = go(to(at - ACCESS_AT));
        let found = (entry.by, entry.words[2], entry.words[3], entry.rax, entry.rdx, entry.rsi);
        suite.equal(name, found, (13, 0, at, 1, 0x7e, user_stack() - 64));
    }

    let entry = go(to(NOWHERE));
    let fetched = entry.words[2] & !u64::from(PFEC_FETCH);
    suite.equal("page-fault", (entry.by, fetched, entry.words[3]), (14, PFEC_USER.into(), NOWHERE));
    let at = address(store) + STORE_AT;
    TARGET.store(table, Ordering::Relaxed);
    let entry = go(to(address(store)));
    let code = PFEC_USER | PFEC_WRITE | PFEC_PRESENT;
    suite.equal("page-fault-of-rights", (entry.by, entry.words[2], entry.words[3]), (14, code.into(), at));

    let at = address(interrupt_80);
    let entry = go(to(at));
    suite.equal("interrupt", (entry.by, entry.words[2], entry.words[3]), (0x80, at + 2, user));
    let at = address(interrupt_81);
    let entry = go(to(at));
    suite.equal("interrupt-of-the-kernel", (entry.by, entry.words[3]), (13, at));
    if paravane {
        // The error code of QEMU's emulated processors, which Xen passes on, says twice the vector.
        suite.equal("interrupt-of-the-kernel-says-which", entry.words[2], 0x81 << 3 | 2);
    }

    let none = register(CALLBACKTYPE_SYSCALL, 0, 0);
    let at = address(call) + CALL_LENGTH - 2;
    let entry = go(to(address(call)));
    suite.equal("no-system-calls", (none, entry.by, entry.words[2]), (Ok(0), 6, at));
    let back = register(CALLBACKTYPE_SYSCALL, 0, enter::<BY_SYSCALL> as *const () as u64);
    suite.equal("system-calls-again", back, Ok(0));
}

/// What cannot be entered is a protection fault of where it would be: a frame of the target, and not of the call.
fn failures(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let rip = address(call);
    for (name, frame, error_code) in [
        ("code-selector-of-nothing", IretContext { cs: 0x73, ..to(rip) }, 0x70),
        ("stack-selector-of-nothing", IretContext { ss: 0x43, ..to(rip) }, 0x40),
        ("address-not-canonical", IretContext { rip: 1 << 47, ..to(rip) }, 0),
        (
            "address-not-canonical-by-sysret",
            IretContext { rip: 1 << 47, flags: VGCF_IN_SYSCALL, ..to(rip) },
            0,
        ),
    ] {
        event::enable();
        let entry = go(frame);
        let found = (entry.by, entry.words[2], entry.words[3], entry.words[4] & 3);
        suite.equal(name, found, (13, error_code, frame.rip, 3));
        suite.holds("its-handler-masks-events", !event::is_enabled());
    }
}
