//! Exceptions and upcalls: what handlers see, and that interrupted code does not notice them.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use paravane_guest::abi::trap::{
    PFEC_FETCH, PFEC_PRESENT, PFEC_WRITE, TRAP_DIVIDE_ERROR, TRAP_GP_FAULT, TRAP_INT3, TRAP_INVALID_OP,
};
use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::vcpu;
use paravane_guest::trap::{TrapFrame, set_handler};
use paravane_guest::{println, time};

use super::Bench;
use super::calls::NOWHERE;
use crate::probe::{self, PageFault};

static SEEN: AtomicU64 = AtomicU64::new(u64::MAX);
static ENABLED: AtomicU32 = AtomicU32::new(0);

/// Records the vector and skips an instruction of two bytes, except after INT3, a trap.
fn note(frame: &mut TrapFrame) {
    SEEN.store(frame.vector, Ordering::Relaxed);
    ENABLED.store(u32::from(event::is_enabled()), Ordering::Relaxed);
    if frame.vector != u64::from(TRAP_INT3) {
        frame.rip += 2;
    }
}

fn seen() -> u64 {
    SEEN.swap(u64::MAX, Ordering::Relaxed)
}

pub(super) fn run(bench: &mut Bench) {
    exceptions(bench);
    page_faults(bench);
    upcalls(bench);
}

fn exceptions(bench: &mut Bench) {
    let suite = &mut bench.suite;
    for vector in [TRAP_INT3, TRAP_INVALID_OP, TRAP_DIVIDE_ERROR, TRAP_GP_FAULT] {
        suite.holds("set-handler", set_handler(vector, Some(note)));
    }
    event::enable();
    // SAFETY: the handler resumes after it.
    unsafe { asm!("int3") };
    suite.equal("int3", seen(), u64::from(TRAP_INT3));
    suite.equal("handlers-run-with-events-disabled", ENABLED.load(Ordering::Relaxed), 0);
    suite.holds("and-they-are-enabled-after", event::is_enabled());
    // SAFETY: as above.
    unsafe { asm!("ud2") };
    suite.equal("undefined-instruction", seen(), u64::from(TRAP_INVALID_OP));
    // SAFETY: as above; DIV ECX is two bytes long.
    unsafe { asm!("div ecx", inout("eax") 1 => _, in("ecx") 0, inout("edx") 0 => _) };
    suite.equal("divide-error", seen(), u64::from(TRAP_DIVIDE_ERROR));
    event::disable();
    // SAFETY: as above.
    unsafe { asm!("int3") };
    suite.equal("int3-while-disabled", seen(), u64::from(TRAP_INT3));
    suite.holds("and-they-stay-disabled", !event::is_enabled());
    event::enable();
    for vector in [TRAP_INT3, TRAP_INVALID_OP, TRAP_DIVIDE_ERROR, TRAP_GP_FAULT] {
        set_handler(vector, None);
    }
    suite.holds("no-such-vector", !set_handler(32, Some(note)));
}

fn page_faults(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let fault = |code: u32| Err(PageFault { address: NOWHERE, error_code: u64::from(code) });
    suite.equal("read-nothing", probe::read(NOWHERE), fault(0).map(|()| 0));
    // SAFETY: nothing is mapped there.
    suite.equal("write-nothing", unsafe { probe::write(NOWHERE, 1) }, fault(PFEC_WRITE));
    // SAFETY: nothing is mapped there.
    let executed = unsafe { probe::execute(NOWHERE) };
    let without_fetch = executed.map_err(|f| f.error_code & !u64::from(PFEC_FETCH));
    suite.equal("execute-nothing", without_fetch, Err(0));
    let table = bench.mmu.memory().va(bench.boot.root());
    let refused =
        Err(PageFault { address: table + 511 * 8, error_code: u64::from(PFEC_PRESENT | PFEC_WRITE) });
    // SAFETY: the table is read-only; if it were not, slot 511 of a low kernel is empty and stays so.
    suite.equal("write-page-table", unsafe { probe::write(table + 511 * 8, 0) }, refused);
    suite.holds("read-page-table", probe::read(table).is_ok());
}

static FIRED: AtomicU32 = AtomicU32::new(0);

/// Overwrites vector registers, as handlers may.
fn fire(_: Port) {
    // SAFETY: the operands name everything that it changes.
    unsafe { asm!("pcmpeqd xmm0, xmm0", "pcmpeqd xmm15, xmm15", out("xmm0") _, out("xmm15") _) };
    FIRED.fetch_add(1, Ordering::Relaxed);
}

fn upcalls(bench: &mut Bench) {
    let Ok(port) = event::handle_virq(VIRQ_TIMER, fire) else { return bench.suite.holds("timer", false) };
    let mut changed = 0;
    for _ in 0..50 {
        FIRED.store(0, Ordering::Relaxed);
        if let Err(errno) = vcpu::set_timer(time::now() + 200_000) {
            println!("set_timer: {errno}");
            break;
        }
        // SAFETY: it reads the flag, and restores the registers that a function must preserve.
        changed |= unsafe { spin_with_patterns(FIRED.as_ptr()) };
    }
    bench.suite.equal("upcalls-change-no-register", changed & 3, 0);
    if bench.paravane {
        bench.suite.equal("upcalls-leave-the-red-zone", changed & 4, 0);
    }
    let _ = event::close(port);
}

/// Fills the registers with patterns, spins until an upcall sets the flag, and returns which changed.
///
/// Bit 0: a general register; bit 1: a vector register; bit 2: the red zone.
#[unsafe(naked)]
unsafe extern "C" fn spin_with_patterns(flag: *const u32) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov rax, 0x1111222233334444",
        "lea rbx, [rax + 1]",
        "lea rcx, [rax + 2]",
        "lea rdx, [rax + 3]",
        "lea rsi, [rax + 4]",
        "lea rbp, [rax + 5]",
        "lea r8, [rax + 8]",
        "lea r9, [rax + 9]",
        "lea r10, [rax + 10]",
        "lea r11, [rax + 11]",
        "lea r12, [rax + 12]",
        "lea r13, [rax + 13]",
        "lea r14, [rax + 14]",
        "lea r15, [rax + 15]",
        "movq xmm0, rax",
        "movq xmm7, r8",
        "movq xmm15, r15",
        "mov [rsp - 8], rax",
        "mov [rsp - 128], r15",
        "2:",
        "pause",
        "cmp dword ptr [rdi], 0",
        "je 2b",
        // Add up the difference of each register from its pattern.
        "sub rbx, rax",
        "sub rcx, rax",
        "sub rdx, rax",
        "sub rsi, rax",
        "sub rbp, rax",
        "sub r8, rax",
        "sub r9, rax",
        "sub r10, rax",
        "sub r11, rax",
        "sub r12, rax",
        "sub r13, rax",
        "sub r14, rax",
        "sub r15, rax",
        "lea rbx, [rbx + rcx]",
        "lea rbx, [rbx + rdx]",
        "lea rbx, [rbx + rsi]",
        "lea rbx, [rbx + rbp]",
        "lea rbx, [rbx + r8]",
        "lea rbx, [rbx + r9]",
        "lea rbx, [rbx + r10]",
        "lea rbx, [rbx + r11]",
        "lea rbx, [rbx + r12]",
        "lea rbx, [rbx + r13]",
        "lea rbx, [rbx + r14]",
        "lea rbx, [rbx + r15 - 107]",
        "mov rcx, 0x1111222233334444",
        "xor rcx, rax",
        "or rbx, rcx",
        "xor edx, edx",
        "test rbx, rbx",
        "setnz dl",
        "movq rbx, xmm0",
        "xor rbx, rax",
        "movq rcx, xmm7",
        "sub rcx, rax",
        "sub rcx, 8",
        "or rbx, rcx",
        "movq rcx, xmm15",
        "sub rcx, rax",
        "sub rcx, 15",
        "or rbx, rcx",
        "lea rcx, [rdx + 2]",
        "test rbx, rbx",
        "cmovnz rdx, rcx",
        "mov rbx, [rsp - 8]",
        "xor rbx, rax",
        "mov rcx, [rsp - 128]",
        "sub rcx, rax",
        "sub rcx, 15",
        "or rbx, rcx",
        "lea rcx, [rdx + 4]",
        "cmovnz rdx, rcx",
        "mov rax, rdx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
