//! The engine's code that runs inside a guest process.
//!
//! Three parts, all position-independent, without a stack of their own and without data other than the room
//! and the board (see [`super::area`]). Each lane has a copy of all of it, which finds that lane's room and board
//! because they are equally far from it:
//!
//! * the *interpreter* of scripts, with which a fresh process sets itself up and the mapper thread carries
//!   out batches of mapping calls that the monitor wrote on the read-only board;
//! * the *hand-over*: whatever stopped the guest ends at one SYSCALL instruction, which the listener filter
//!   turns into a notification to the monitor and which blocks until the monitor answers. It is the only
//!   system call that a guest thread can make, and Linux never executes it;
//! * the *ways to the hand-over*: hypercalls arrive by a jump from the hypercall page, everything else as a
//!   signal. Neither returns by `rt_sigreturn`: the monitor's register block is loaded and IRETQ, which CPL 3
//!   may execute, restores rip, rflags and rsp in one step.
//!
//! Guest code may jump anywhere in here with any registers: it can only make itself stop (see the threat
//! model in `docs/process-engine.md`). What may not be done here: holding a secret, trusting a register.

use std::arch::global_asm;

use paravane_abi::hypercall::IRET;

use super::area::{BOARD, CODE, CODE_SIZE, Lane, ROOM, ROOM_SIZE, STEP, STRIDE, board, room};

/// The number with which the stub hands over: `getpid`, harmless and allowed under every container's filter,
/// should it ever reach Linux.
pub(super) const HANDOVER_NR: u32 = libc::SYS_getpid as u32;
/// Why a guest thread handed over, where no signal number says it: by the hypercall page.
pub(super) const KIND_HYPERCALL: u64 = 0x100;
/// It is set up and has no guest state yet.
pub(super) const KIND_READY: u64 = 0x101;
/// A kick found it on the way into the guest: its state is what it was to be resumed with.
pub(super) const KIND_KICKED: u64 = 0x102;
/// A mapper that is one of several waits for an errand; the last is done.
pub(super) const KIND_DONE: u64 = 0x103;
/// The signal that kicks.
pub(super) const KICK_SIGNAL: i32 = libc::SIGUSR1;
/// PKRU's state component.
pub(super) const PKRU: u64 = 1 << 9;
/// The state components (SDM volume 1, 13.1) that belong to a guest: all but two. AMX's tiles and
/// their configuration Linux leaves out of the signal frame of a program that has not asked for them, and XRSTOR may
/// touch the whole extent of what its mask names. PKRU, where a processor has it, takes away our own memory as well
/// as the guest's: a guest has no protection keys, and Linux gives it a fresh PKRU with every signal.
pub(super) const FPU_COMPONENTS: u64 = !(0b11 << 17 | PKRU);
/// The step number that means: jump to the address in the first argument.
pub(super) const STEP_JUMP: u64 = 0xffff_ffff;

// Register block: rax rbx rcx rdx rsi rdi rbp r8..r15 (the exit block has rsp, rip, rflags after them).
global_asm!(
    ".pushsection .text.paravane_process_stub,\"ax\",@progbits",
    // Other codegen units refer to these.
    ".globl paravane_stub_start", ".hidden paravane_stub_start",
    ".globl paravane_stub_end", ".hidden paravane_stub_end",
    ".globl paravane_stub_mapper", ".hidden paravane_stub_mapper",
    ".globl paravane_stub_answer", ".hidden paravane_stub_answer",
    ".globl paravane_stub_script", ".hidden paravane_stub_script",
    ".globl paravane_stub_errands", ".hidden paravane_stub_errands",
    ".globl paravane_stub_errand", ".hidden paravane_stub_errand",
    ".globl paravane_stub_signal_of_lanes", ".hidden paravane_stub_signal_of_lanes",
    ".globl paravane_stub_ready", ".hidden paravane_stub_ready",
    ".globl paravane_stub_hypercall", ".hidden paravane_stub_hypercall",
    ".globl paravane_stub_handed_over", ".hidden paravane_stub_handed_over",
    ".globl paravane_stub_resume", ".hidden paravane_stub_resume",
    ".globl paravane_stub_window_end", ".hidden paravane_stub_window_end",
    ".globl paravane_stub_signal", ".hidden paravane_stub_signal",
    ".balign 4096",
    "paravane_stub_start:",
    // Entry of the fresh process: map the board, run the script on it.
    "    mov eax, 9",
    "    lea rdi, [rip + paravane_stub_start + {board}]",
    "    mov esi, {board_size}",
    "    mov edx, 1",
    "    mov r10d, 0x11",
    "    mov r8d, 3",
    "    mov r9d, {board_file_offset}",
    "    syscall",
    "    cmp rax, rdi",
    "    jne .Lparavane_end_process",
    "    lea rbx, [rip + paravane_stub_start + {script}]",
    // The interpreter: steps at rbx until one jumps away.
    ".Lparavane_step:",
    "    mov rax, [rbx]",
    "    test eax, eax",
    "    js .Lparavane_jump",
    "    mov rdi, [rbx + 8]",
    "    mov rsi, [rbx + 16]",
    "    mov rdx, [rbx + 24]",
    "    mov r10, [rbx + 32]",
    "    mov r8, [rbx + 40]",
    "    mov r9, [rbx + 48]",
    "    syscall",
    "    cmp rax, -4095",
    "    jae .Lparavane_step_failed",
    "    cmp dword ptr [rbx], {clone}",
    "    je .Lparavane_cloned",
    ".Lparavane_next_step:",
    "    add rbx, {step}",
    "    jmp .Lparavane_step",
    ".Lparavane_jump:",
    "    jmp qword ptr [rbx + 8]",
    // The thread that clone made continues with its own script, of which the step has the address.
    ".Lparavane_cloned:",
    "    test eax, eax",
    "    jnz .Lparavane_next_step",
    "    mov rbx, [rbx + 48]",
    "    jmp .Lparavane_step",
    // A step that jumps here continues with another script, whose address is its second argument.
    "paravane_stub_script:",
    "    mov rbx, [rbx + 16]",
    "    jmp .Lparavane_step",
    // Says which step failed, and ends the process with the error as its status.
    ".Lparavane_step_failed:",
    "    mov [rip + paravane_stub_start + {failed_at}], rbx",
    ".Lparavane_end_process:",
    "    mov edi, eax",
    "    neg edi",
    "    mov eax, 231",
    "    syscall",
    "    ud2",
    // The mapper: waits for a batch and runs it; its last step jumps to the answer below.
    "paravane_stub_mapper:",
    "    xor r12d, r12d",
    ".Lparavane_wait:",
    "    mov eax, [rip + paravane_stub_start + {batch}]",
    "    cmp eax, r12d",
    "    jne .Lparavane_batch",
    "    lea rdi, [rip + paravane_stub_start + {batch}]",
    "    xor esi, esi",
    "    mov edx, r12d",
    "    xor r10d, r10d",
    "    mov eax, 202",
    "    syscall",
    "    jmp .Lparavane_wait",
    ".Lparavane_batch:",
    "    mov r12d, eax",
    "    lea rbx, [rip + paravane_stub_start + {steps}]",
    "    jmp .Lparavane_step",
    "paravane_stub_answer:",
    "    mov eax, 16",
    "    xor edi, edi",
    "    mov esi, {notif_send}",
    "    lea rdx, [rip + paravane_stub_start + {answer}]",
    "    syscall",
    "    test rax, rax",
    "    jns .Lparavane_wait",
    "    jmp .Lparavane_end_process",
    // A mapper that is one of several: it is idle, and done with its last errand, while its hand-over is not answered.
    // Its last step jumps here. Every lane's steps are those on the first board.
    "paravane_stub_errands:",
    "    mov edi, {kind_done}",
    "    mov eax, {handover}",
    "    syscall",
    "paravane_stub_errand:",
    "    test rax, rax",
    "    js paravane_stub_errands",
    "    movabs rbx, {first_steps}",
    "    jmp .Lparavane_step",
    // The guest thread's first hand-over.
    "paravane_stub_ready:",
    "    lea rsp, [rip + paravane_stub_start + {stack_top}]",
    "    mov edi, {kind_ready}",
    "    jmp .Lparavane_no_signal",
    // From the hypercall page: `call` pushed the address to go on at.
    "paravane_stub_hypercall:",
    "    mov [rip + paravane_stub_start + {exit} + 0x00], rax",
    "    mov [rip + paravane_stub_start + {exit} + 0x08], rbx",
    "    mov [rip + paravane_stub_start + {exit} + 0x10], rcx",
    "    mov [rip + paravane_stub_start + {exit} + 0x18], rdx",
    "    mov [rip + paravane_stub_start + {exit} + 0x20], rsi",
    "    mov [rip + paravane_stub_start + {exit} + 0x28], rdi",
    "    mov [rip + paravane_stub_start + {exit} + 0x30], rbp",
    "    mov [rip + paravane_stub_start + {exit} + 0x38], r8",
    "    mov [rip + paravane_stub_start + {exit} + 0x40], r9",
    "    mov [rip + paravane_stub_start + {exit} + 0x48], r10",
    "    mov [rip + paravane_stub_start + {exit} + 0x50], r11",
    "    mov [rip + paravane_stub_start + {exit} + 0x58], r12",
    "    mov [rip + paravane_stub_start + {exit} + 0x60], r13",
    "    mov [rip + paravane_stub_start + {exit} + 0x68], r14",
    "    mov [rip + paravane_stub_start + {exit} + 0x70], r15",
    "    pop qword ptr [rip + paravane_stub_start + {exit} + 0x80]",
    "    mov [rip + paravane_stub_start + {exit} + 0x78], rsp",
    "    lea rsp, [rip + paravane_stub_start + {stack_top}]",
    "    pushfq",
    "    pop qword ptr [rip + paravane_stub_start + {exit} + 0x88]",
    "    push 0x202",
    "    popfq",
    "    mov edi, {kind_hypercall}",
    // The FPU state goes beside the registers: a change of root may take it to another process.
    ".Lparavane_save_fpu:",
    "    mov eax, {components_low}",
    "    mov edx, {components_high}",
    "    xsaveopt64 [rip + paravane_stub_start + {fpu_out}]",
    ".Lparavane_no_signal:",
    "    xor esi, esi",
    "    xor edx, edx",
    ".Lparavane_hand_over:",
    "    rdfsbase r10",
    "    rdgsbase r8",
    // An error means that nobody listens any more: the parent's death is about to end this process.
    ".Lparavane_call:",
    "    mov eax, {handover}",
    "    syscall",
    "paravane_stub_handed_over:",
    "    test rax, rax",
    "    js .Lparavane_call",
    "paravane_stub_resume:",
    "    mov rbx, [rip + paravane_stub_start + {load_fpu}]",
    "    test rbx, rbx",
    "    jz 2f",
    "    mov eax, {components_low}",
    "    mov edx, {components_high}",
    "    xrstor64 [rbx]",
    "2:  mov eax, [rip + paravane_stub_start + {load_bases}]",
    "    test al, 1",
    "    jz 2f",
    "    mov rbx, [rip + paravane_stub_start + {fs}]",
    "    wrfsbase rbx",
    "2:  test al, 2",
    "    jz 2f",
    "    mov rbx, [rip + paravane_stub_start + {gs}]",
    "    wrgsbase rbx",
    "2:",
    // From here to IRETQ only registers change, all of them from the block: a kick can restart it.
    "paravane_stub_window:",
    "    cmp dword ptr [rip + paravane_stub_start + {kicked}], 0",
    "    jne .Lparavane_kicked",
    "    mov rax, [rip + paravane_stub_start + {resume} + 0x00]",
    "    mov rbx, [rip + paravane_stub_start + {resume} + 0x08]",
    "    mov rcx, [rip + paravane_stub_start + {resume} + 0x10]",
    "    mov rdx, [rip + paravane_stub_start + {resume} + 0x18]",
    "    mov rsi, [rip + paravane_stub_start + {resume} + 0x20]",
    "    mov rdi, [rip + paravane_stub_start + {resume} + 0x28]",
    "    mov rbp, [rip + paravane_stub_start + {resume} + 0x30]",
    "    mov r8, [rip + paravane_stub_start + {resume} + 0x38]",
    "    mov r9, [rip + paravane_stub_start + {resume} + 0x40]",
    "    mov r10, [rip + paravane_stub_start + {resume} + 0x48]",
    "    mov r11, [rip + paravane_stub_start + {resume} + 0x50]",
    "    mov r12, [rip + paravane_stub_start + {resume} + 0x58]",
    "    mov r13, [rip + paravane_stub_start + {resume} + 0x60]",
    "    mov r14, [rip + paravane_stub_start + {resume} + 0x68]",
    "    mov r15, [rip + paravane_stub_start + {resume} + 0x70]",
    "    lea rsp, [rip + paravane_stub_start + {iret}]",
    "    iretq",
    "paravane_stub_window_end:",
    ".Lparavane_kicked:",
    "    mov dword ptr [rip + paravane_stub_start + {kicked}], 0",
    "    lea rsp, [rip + paravane_stub_start + {stack_top}]",
    "    mov edi, {kind_kicked}",
    "    jmp .Lparavane_save_fpu",
    // A process has one handler for each signal: the signal stack says in whose lane it is to be handled.
    "paravane_stub_signal_of_lanes:",
    "    mov rax, rsp",
    "    and rax, -{stride}",
    "    lea rcx, [rip + paravane_stub_signal]",
    "    and ecx, {stride} - 1",
    "    add rax, rcx",
    "    jmp rax",
    "paravane_stub_signal_of_lanes_end:",
    // Every signal: rdi number, rsi siginfo, rdx ucontext, on the signal stack. The flags that Linux leaves
    // as the guest had them (NT would break IRETQ, AC our own accesses) go first.
    "paravane_stub_signal:",
    "    push 0x202",
    "    popfq",
    "    cmp edi, {kick_signal}",
    "    je 2f",
    "    cmp dword ptr [rsi + 8], 0",
    "    jg .Lparavane_hand_over",
    "2:",
    "    mov rcx, [rdx + 168]",
    "    lea rbx, [rip + paravane_stub_start]",
    "    mov rax, rcx",
    "    sub rax, rbx",
    "    cmp rax, {code_size}",
    "    jb 2f",
    // Whoever has its signals come by the first lane's code is in ours there as well.
    "    movabs rax, {first_code}",
    "    sub rax, rbx",
    "    neg rax",
    "    add rax, rcx",
    "    lea r8, [rip + paravane_stub_signal_of_lanes]",
    "    cmp rax, r8",
    "    jb .Lparavane_hand_over",
    "    lea r8, [rip + paravane_stub_signal_of_lanes_end]",
    "    cmp rax, r8",
    "    jae .Lparavane_hand_over",
    "2:",
    // A kick (or another signal that someone sent) that arrives in the stub leaves a mark; then the stub continues, or
    // the window begins anew.
    "    inc dword ptr [rip + paravane_stub_start + {kicked}]",
    // Ours takes a microsecond; kicks are repeated every millisecond. So many in a row: a guest hides here.
    "    cmp dword ptr [rip + paravane_stub_start + {kicked}], 16",
    "    ja .Lparavane_hand_over",
    "    mov rsi, rdx",
    "    mov rbx, [rdx + 224]",
    "    mov eax, {components_low}",
    "    mov edx, {components_high}",
    "    xrstor64 [rbx]",
    "    lea rbx, [rip + paravane_stub_window]",
    "    cmp rcx, rbx",
    "    jb 2f",
    "    lea rbx, [rip + paravane_stub_window_end]",
    "    cmp rcx, rbx",
    "    jb .Lparavane_kicked",
    "2:  push 0x2b",
    "    push qword ptr [rsi + 160]",
    "    push qword ptr [rsi + 176]",
    "    push 0x33",
    "    push qword ptr [rsi + 168]",
    "    mov r8, [rsi + 40]",
    "    mov r9, [rsi + 48]",
    "    mov r10, [rsi + 56]",
    "    mov r11, [rsi + 64]",
    "    mov r12, [rsi + 72]",
    "    mov r13, [rsi + 80]",
    "    mov r14, [rsi + 88]",
    "    mov r15, [rsi + 96]",
    "    mov rdi, [rsi + 104]",
    "    mov rbp, [rsi + 120]",
    "    mov rbx, [rsi + 128]",
    "    mov rdx, [rsi + 136]",
    "    mov rax, [rsi + 144]",
    "    mov rcx, [rsi + 152]",
    "    mov rsi, [rsi + 112]",
    "    iretq",
    "paravane_stub_end:",
    ".popsection",
    board = const BOARD,
    board_size = const super::area::BOARD_SIZE,
    board_file_offset = const super::area::BOARD_FILE_OFFSET,
    script = const BOARD + board::SCRIPT,
    batch = const BOARD + board::BATCH,
    answer = const BOARD + board::ANSWER,
    steps = const BOARD + board::STEPS,
    first_code = const CODE,
    first_steps = const CODE + BOARD + board::STEPS,
    stride = const STRIDE,
    step = const STEP,
    failed_at = const ROOM + room::FAILED_AT,
    exit = const ROOM + room::EXIT,
    resume = const ROOM + room::RESUME,
    iret = const ROOM + room::IRET,
    fs = const ROOM + room::FS,
    gs = const ROOM + room::GS,
    load_fpu = const ROOM + room::LOAD_FPU,
    load_bases = const ROOM + room::LOAD_BASES,
    kicked = const ROOM + room::KICKED,
    fpu_out = const ROOM + room::FPU_OUT,
    stack_top = const ROOM + ROOM_SIZE,
    clone = const libc::SYS_clone,
    notif_send = const libc::SECCOMP_IOCTL_NOTIF_SEND,
    handover = const HANDOVER_NR,
    kind_hypercall = const KIND_HYPERCALL,
    kind_ready = const KIND_READY,
    kind_kicked = const KIND_KICKED,
    kind_done = const KIND_DONE,
    kick_signal = const KICK_SIGNAL,
    code_size = const CODE_SIZE,
    components_low = const FPU_COMPONENTS as u32 as i32,
    components_high = const (FPU_COMPONENTS >> 32) as i32,
);

// SAFETY: labels of the assembly above, of which only the addresses are taken.
unsafe extern "C" {
    static paravane_stub_start: u8;
    static paravane_stub_end: u8;
    static paravane_stub_mapper: u8;
    static paravane_stub_answer: u8;
    static paravane_stub_script: u8;
    static paravane_stub_errands: u8;
    static paravane_stub_errand: u8;
    static paravane_stub_signal_of_lanes: u8;
    static paravane_stub_ready: u8;
    static paravane_stub_hypercall: u8;
    static paravane_stub_handed_over: u8;
    static paravane_stub_resume: u8;
    static paravane_stub_window_end: u8;
    static paravane_stub_signal: u8;
}

/// A place in the stub.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Where the mapper waits.
    Mapper,
    /// Where it answers the guest's notification.
    Answer,
    /// Where a script continues with another.
    Script,
    /// Where a mapper that is one of several waits.
    Errands,
    /// The instruction after the SYSCALL with which it waits.
    Errand,
    /// The guest thread's start.
    Ready,
    /// Where the hypercall page calls.
    Hypercall,
    /// The instruction after the hand-over's SYSCALL.
    HandedOver,
    /// The handler of every signal.
    Signal,
    /// The same where there are several lanes.
    SignalOfLanes,
}

/// The address of `place` in the first lane of a guest process.
pub(super) fn address(place: Place) -> u64 {
    let symbol = match place {
        Place::Mapper => &raw const paravane_stub_mapper,
        Place::Answer => &raw const paravane_stub_answer,
        Place::Script => &raw const paravane_stub_script,
        Place::Errands => &raw const paravane_stub_errands,
        Place::Errand => &raw const paravane_stub_errand,
        Place::Ready => &raw const paravane_stub_ready,
        Place::Hypercall => &raw const paravane_stub_hypercall,
        Place::HandedOver => &raw const paravane_stub_handed_over,
        Place::Signal => &raw const paravane_stub_signal,
        Place::SignalOfLanes => &raw const paravane_stub_signal_of_lanes,
    };
    from_symbol(symbol)
}

/// The same in the copy of a lane.
pub(super) fn address_in(lane: Lane, place: Place) -> u64 {
    lane.start() - CODE + address(place)
}

fn from_symbol(symbol: *const u8) -> u64 {
    let start = &raw const paravane_stub_start;
    CODE + (symbol.addr() - start.addr()) as u64
}

/// Whether `rip` lies in the stub at all, in any of the copies.
pub(super) fn contains(rip: u64, lane: Lane) -> bool {
    rip.checked_sub(CODE).is_some_and(|at| at / STRIDE < lane.count() && at % STRIDE < CODE_SIZE)
}

/// Whether `rip` lies where the state of a lane's guest is being loaded: a fault there is one of that state.
pub(super) fn is_loading(rip: u64, lane: Lane) -> bool {
    let loading =
        from_symbol(&raw const paravane_stub_resume)..from_symbol(&raw const paravane_stub_window_end);
    rip.checked_sub(lane.start() - CODE).is_some_and(|rip| loading.contains(&rip))
}

/// The stub's machine code.
pub(super) fn code() -> &'static [u8] {
    let (start, end) = (&raw const paravane_stub_start, &raw const paravane_stub_end);
    // SAFETY: both symbols delimit one section of this program's text, which is readable and never changes.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Bytes of `call [rip + disp32]`.
pub(super) const CALL_LENGTH: u64 = 6;
/// Bytes of `syscall`.
pub(super) const SYSCALL_LENGTH: u64 = 2;

/// The hypercall page's entry `number` where there are several lanes: a SYSCALL, between what keeps rcx and r11 on the
/// stack. The entry for `iret` pushes them, and rax, as part of its frame.
///
/// Code that they all execute cannot tell whose room to save its registers in; the signal stack of a thread can.
pub(super) fn hypercall_entry_of_lanes(number: u32) -> [u8; 32] {
    let is_iret = u64::from(number) == IRET;
    let pushes: &[u8] = if is_iret { &[0x51, 0x41, 0x53, 0x50] } else { &[0x51, 0x41, 0x53] };
    let pops: &[u8] = if is_iret { &[] } else { &[0x41, 0x5b, 0x59, 0xc3] };
    let load = [0xb8].into_iter().chain(number.to_le_bytes()).chain([0x0f, 0x05]);
    let mut entry = [0xcc; 32];
    for (to, from) in entry.iter_mut().zip(pushes.iter().copied().chain(load).chain(pops.iter().copied())) {
        *to = from;
    }
    entry
}

/// The hypercall page's entry `number`: `mov eax, number; call [stub]; ret`, and the stub's address in its last
/// 8 bytes. No SYSCALL: a call costs a signal less than a trap.
///
/// The entry for `iret` pushes rcx, r11 and rax first, as Xen's does: they are the low end of its frame.
pub(super) fn hypercall_entry(number: u32) -> [u8; 32] {
    const LITERAL: usize = 24;
    let pushes: &[u8] = if u64::from(number) == IRET { &[0x51, 0x41, 0x53, 0x50] } else { &[] };
    // From the end of the call instruction to the address.
    let distance = LITERAL as u8 - (pushes.len() as u8 + 5 + CALL_LENGTH as u8);
    let load = [0xb8].into_iter().chain(number.to_le_bytes());
    let code = pushes.iter().copied().chain(load).chain([0xff, 0x15, distance, 0, 0, 0, 0xc3]);
    let mut entry = [0xcc; 32];
    let (text, literal) = entry.split_at_mut(LITERAL);
    for (to, from) in text.iter_mut().zip(code) {
        *to = from;
    }
    literal.copy_from_slice(&address(Place::Hypercall).to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_fits_its_page_and_makes_few_calls() {
        assert!(code().len() as u64 <= CODE_SIZE);
        let calls = code().windows(2).filter(|w| *w == [0x0f, 0x05]).count();
        assert_eq!(calls, 7, "entry, step, end, wait, answer, errand, hand-over");
    }

    #[test]
    fn the_hypercall_page_of_several_keeps_what_syscall_clobbers() {
        let call = [0x51, 0x41, 0x53, 0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3, 0xcc];
        assert_eq!(hypercall_entry_of_lanes(1)[..15], call);
        let iret = [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xcc];
        assert_eq!(hypercall_entry_of_lanes(23)[..12], iret);
    }

    #[test]
    fn the_hypercall_page_calls_the_stub() {
        let entry = hypercall_entry(0x1234);
        assert_eq!(entry[..12], [0xb8, 0x34, 0x12, 0, 0, 0xff, 0x15, 13, 0, 0, 0, 0xc3]);
        assert_eq!(entry[24..], address(Place::Hypercall).to_le_bytes());
        let iret = hypercall_entry(23);
        assert_eq!(iret[..11], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0xff, 0x15]);
        assert_eq!((iret[11], iret[15]), (9, 0xc3));
        let one = Lane::all(1)[0];
        assert!(contains(address(Place::Hypercall), one) && !contains(CODE + CODE_SIZE, one));
        assert!(!contains(CODE + STRIDE, one) && contains(CODE + STRIDE, Lane::all(2)[0]));
    }
}
