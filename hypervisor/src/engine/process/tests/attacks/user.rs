//! A hostile user program against its own kernel, from inside: what it makes of the process that it runs in.

use super::super::super::area::{CODE, ROOM_SIZE, room, room_va};
use super::super::super::stub::{self, KICK_SIGNAL, KIND_HYPERCALL, KIND_KICKED, KIND_READY, Place};
use super::super::world;
use super::is_well;
use crate::engine::Exit;
use crate::machine::memory::Mfn;
use crate::testing::engine::{CODE_VA, DATA_VA, HYPERCALL_VA, STACK_TOP, World, code, gp, pf};
use crate::x86::exception::Fault;

/// A hand-over that no signal and no hypercall is behind.
#[derive(Clone, Copy, Debug)]
struct Forged {
    kind: u64,
    vector: u64,
    error_code: u64,
    address: u64,
    rip: u64,
    rflags: u64,
    si_code: u64,
    image: u64,
    bases: (u64, u64),
}

impl Default for Forged {
    fn default() -> Self {
        Self {
            kind: libc::SIGSEGV as u64,
            vector: 13,
            error_code: 0,
            address: 0,
            rip: CODE_VA,
            rflags: 0x202,
            si_code: 128,
            image: room_va(room::FPU_IN),
            bases: (0, 0),
        }
    }
}

/// Has the guest hand it over. With the general registers of the frame the same could be done again.
fn hand_over(w: &mut World, f: Forged) -> Exit {
    const INFO: u64 = 0x180;
    for offset in (0..0x200).step_by(8) {
        w.poke(DATA_VA + offset, 0);
    }
    let frame =
        [(168, f.rip), (176, f.rflags), (184, 0x33), (192, f.error_code), (200, f.vector), (216, f.address)];
    let (uc, info) = (room_va(room::STACK), room_va(room::STACK + 0x1000));
    let (number, call) = (stub::HANDOVER_NR.into(), stub::address(Place::HandedOver) - 2);
    let again = [(128, DATA_VA), (72, uc), (80, info), (88, f.kind), (144, number), (48, call)];
    for (offset, value) in frame.into_iter().chain(again).chain([(224, f.image), (INFO + 8, f.si_code)]) {
        w.poke(DATA_VA + offset, value);
    }
    w.load(&code!(
        "cld",
        "mov rsi, rbx",
        "mov rdi, r12",
        "mov ecx, 38",
        "rep movsq",
        "lea rsi, [rbx + 0x180]",
        "mov rdi, r13",
        "mov ecx, 2",
        "rep movsq",
        "mov rdi, r14",
        "mov rsi, r13",
        "mov rdx, r12",
        "jmp r9",
    ));
    (w.regs.rbx, w.regs.r12, w.regs.r13, w.regs.r14) = (DATA_VA, uc, info, f.kind);
    (w.regs.rax, w.regs.r9) = (number, call);
    (w.regs.r10, w.regs.r8) = f.bases;
    // What is done again for as long as the program likes ends with a kick.
    let for_ever = f.kind == KIND_KICKED || (f.vector, f.address) == (14, DATA_VA);
    if for_ever { w.enter() } else { w.run() }
}

/// A world whose user program has an address space of its own, with the same pages; and its kernel's root.
fn user_world() -> Option<(World, Mfn, Mfn)> {
    let mut w = world()?;
    let kernel = w.space.root();
    assert_eq!(w.exec(&code!("cli")), gp(0));
    let user = another_root(&mut w);
    enter_user(&mut w, user);
    Some((w, kernel, user))
}

/// An address space with the pages of the one in use.
fn another_root(w: &mut World) -> Mfn {
    let root = w.new_root();
    for va in [CODE_VA, DATA_VA, STACK_TOP - 0x1000, HYPERCALL_VA] {
        let leaf = w.get(va);
        let entry = w.entry_in(root, va, 1);
        w.write(entry, 1, leaf);
    }
    root
}

fn enter_user(w: &mut World, root: Mfn) {
    w.space.set_root(root);
    w.space.set_user_mode(true);
}

fn enter_kernel(w: &mut World, root: Mfn) {
    w.space.set_root(root);
    w.space.set_user_mode(false);
}

/// Both worlds are well: the kernel, whatever the user program was told last, and then the program.
fn both_are_well(w: &mut World, kernel: Mfn, user: Mfn) {
    // As the fault is delivered: on the kernel's stack, with the bases and flags that the program had.
    enter_kernel(w, kernel);
    w.regs.rsp = STACK_TOP;
    w.load(&code!("nop", "movaps xmm0, xmm1", "cli"));
    assert_eq!((w.run(), w.regs.rip), (gp(0), CODE_VA + 4), "the kernel is not disturbed");
    (w.regs.fs_base, w.regs.gs_base, w.regs.rflags) = (0, 0, 0x202);
    is_well(w);
    enter_user(w, user);
    is_well(w);
}

/// Whether code at CPL 3 can raise this.
fn is_honest(fault: Fault) -> bool {
    match fault.vector {
        0 | 1 | 3..=6 | 16 | 17 | 19 => fault.error_code == 0,
        11..=13 => fault.error_code & !0xfffe == 0,
        14 => fault.error_code & !0b1_1111 == 0 && fault.error_code & 0b100 != 0,
        _ => false,
    }
}

#[test]
fn a_forged_exit_is_one_that_cpl_3_can_bring_about() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    let signals = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
    for (kind, vector) in signals.into_iter().flat_map(|s| (0..40).map(move |v| (s as u64, v))) {
        for error_code in [0, 0xffff_ffff, 1, 0x7ff] {
            let forged = Forged { kind, vector, error_code, ..Forged::default() };
            match hand_over(&mut w, forged) {
                Exit::Fault(fault) => assert!(is_honest(fault), "{forged:x?}: {fault:x?}"),
                exit => panic!("{forged:x?}: {exit:?}"),
            }
        }
    }
    for vector in [256, 270, 1 << 32 | 2, u64::MAX] {
        assert_eq!(hand_over(&mut w, Forged { vector, ..Forged::default() }), gp(0));
    }
    both_are_well(&mut w, kernel, user);
}

#[test]
fn a_forged_page_fault_is_at_an_address_that_could_be_accessed() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    let fault = |error_code, address| Forged { vector: 14, error_code, address, ..Forged::default() };
    // Without the bits that are ignored, an address that is not canonical is that of a mapped page.
    for address in [1 << 63 | DATA_VA, 1 << 47, 1 << 48 | CODE_VA] {
        assert_eq!(hand_over(&mut w, fault(0, address)), gp(0), "{address:#x}");
    }
    // The error code is that of the tables.
    assert_eq!(hand_over(&mut w, fault(u64::MAX, CODE_VA)), pf(0b1_0111, CODE_VA), "a store to code");
    assert_eq!(hand_over(&mut w, fault(0xff00 | 2, 0x1234_5000)), pf(0b110, 0x1234_5000));
    both_are_well(&mut w, kernel, user);
}

#[test]
fn page_faults_that_did_not_happen_are_endured() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    let forged = Forged { vector: 14, address: DATA_VA, ..Forged::default() };
    // The program continues where the hand-over is made again.
    for _ in 0..3 {
        w.cpu.kicker().arm(5_000_000);
        assert_eq!(hand_over(&mut w, forged), Exit::Kick);
        both_are_well(&mut w, kernel, user);
    }
}

/// What the stub never says, and frames that are not in the room, cost the program its process and nothing else.
#[test]
fn a_spoilt_process_is_replaced() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    let forged = Forged::default();
    let mut processes = w.cpu.processes();
    for kind in [0, 1, 9, 64, 65, KIND_READY, KIND_KICKED + 1, 1 << 32 | 11, u64::MAX] {
        assert_eq!(hand_over(&mut w, Forged { kind, ..forged }), gp(0), "{kind:#x}");
        both_are_well(&mut w, kernel, user);
    }
    for image in [0, room_va(room::FPU_IN) + 1, room_va(ROOM_SIZE - 64), u64::MAX] {
        assert_eq!(hand_over(&mut w, Forged { image, ..forged }), gp(0), "{image:#x}");
        both_are_well(&mut w, kernel, user);
    }
    processes.retain(|process| w.cpu.processes().contains(process));
    assert_eq!((processes.len(), w.cpu.processes().len()), (1, 2), "the kernel's, and one for the program");
}

#[test]
fn a_process_that_ended_is_replaced() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    for offset in [8, 0x200, 0x800] {
        w.load(&code!("cli"));
        w.regs.rsp = room_va(room::STACK) + offset;
        assert_eq!(w.run(), gp(0), "no room for a signal's frame");
        both_are_well(&mut w, kernel, user);
    }
    // A program that hides in the stub, where kicks only leave a mark, does not hold up the vCPU.
    let hide = (0..stub::code().len() as u64).map(|offset| CODE + offset);
    for place in hide.step_by(7) {
        w.load(&code!("jmp rcx"));
        (w.regs.rcx, w.regs.rdi, w.regs.rsp) = (place, KICK_SIGNAL as u64, STACK_TOP);
        w.cpu.kicker().arm(1_000_000);
        let exit = w.enter();
        w.cpu.kicker().arm(0);
        assert!(!matches!(exit, Exit::Dead(_)), "{place:#x}: {exit:?}");
        both_are_well(&mut w, kernel, user);
    }
}

/// A program has no hypercalls, by whatever way into the stub.
#[test]
fn a_user_program_s_hypercall_is_a_fault_at_the_call() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    w.regs.rbx = HYPERCALL_VA + 17 * 32;
    (w.regs.rsp, w.regs.r15) = (STACK_TOP, 0x77);
    assert_eq!(w.exec(&code!("call rbx", "cli")), gp(0));
    assert_eq!((w.regs.rip, w.regs.rsp, w.regs.r15), (HYPERCALL_VA + 17 * 32 + 5, STACK_TOP - 8, 0x77));
    both_are_well(&mut w, kernel, user);
    assert_eq!(hand_over(&mut w, Forged { kind: KIND_HYPERCALL, ..Forged::default() }), gp(0));
    both_are_well(&mut w, kernel, user);
}

/// Registers that no program can have would be those with which its kernel is entered.
#[test]
fn forged_registers_do_not_keep_the_kernel_from_running() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    for value in [1 << 63, 1 << 47, 0x8000_0000_0000_1234] {
        let forged = Forged { bases: (value, value), rip: value, rflags: u64::MAX, ..Forged::default() };
        assert_eq!(hand_over(&mut w, forged), gp(0));
        const SETTABLE: u64 = 0x24_4dd7;
        assert_eq!(w.regs.rflags & !SETTABLE, 0x200);
        let canonical = [w.regs.rip, w.regs.fs_base, w.regs.gs_base];
        assert!(canonical.iter().all(|va| paravane_abi::addr::is_canonical(*va)), "{canonical:x?}");
        (w.regs.rflags, w.regs.rip) = (0x202, CODE_VA);
        both_are_well(&mut w, kernel, user);
    }
    // What it says of its bases is not believed when somebody else's are to be loaded.
    let (fs, gs) = (DATA_VA, DATA_VA + 8);
    assert_eq!(w.exec(&code!("xor eax, eax", "wrfsbase rax", "wrgsbase rax", "cli")), gp(0));
    assert_eq!(hand_over(&mut w, Forged { bases: (fs, gs), ..Forged::default() }), gp(0));
    enter_kernel(&mut w, user);
    (w.regs.fs_base, w.regs.gs_base) = (fs, gs);
    assert_eq!(w.exec(&code!("rdfsbase rax", "rdgsbase rbx", "cli")), gp(0));
    assert_eq!((w.regs.rax, w.regs.rbx), (fs, gs));
}

/// A single step of our own code is made up for at the next hypercall: a kernel's, if a program may claim one.
#[test]
fn a_forged_single_step_does_not_single_step_the_kernel() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    let step = Forged { kind: libc::SIGTRAP as u64, vector: 1, rip: CODE + 0x10, ..Forged::default() };
    assert_eq!(hand_over(&mut w, step), gp(0));
    (w.regs.rip, w.regs.rflags) = (CODE_VA, 0x202);
    enter_kernel(&mut w, kernel);
    (w.regs.rbx, w.regs.rsp) = (HYPERCALL_VA, STACK_TOP);
    assert_eq!(w.exec(&code!("call rbx", "nop", "cli")), Exit::Hypercall);
    assert_eq!((w.run(), w.regs.rip), (gp(0), CODE_VA + 3));
    both_are_well(&mut w, kernel, user);
}

/// An FPU image that the processor refuses would be refused when the kernel is entered.
#[test]
fn a_broken_fpu_image_is_not_the_kernel_s_problem() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    let breaks: [(u64, u64); 4] = [(512, 1 << 62), (520, 1 << 63), (528, 1), (24, 0x8000_0000)];
    for (offset, value) in breaks {
        for kind in [libc::SIGSEGV as u64, KIND_HYPERCALL, KIND_KICKED] {
            for image in [room::FPU_IN, room::FPU_OUT] {
                (w.regs.rax, w.regs.rbx) = (room_va(image) + offset, value);
                assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
                w.cpu.kicker().arm(20_000_000);
                hand_over(&mut w, Forged { kind, image: room_va(image), ..Forged::default() });
                w.cpu.kicker().arm(0);
                both_are_well(&mut w, kernel, user);
            }
        }
    }
}

/// The kernel's registers, general and vector, are marked; whoever runs in a room of its later looks for the mark.
const MARK: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// Leaves marks by every kind of exit.
fn leave_marks(w: &mut World) {
    let r = &mut w.regs;
    (r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp) = (MARK, MARK, MARK, MARK, MARK, MARK);
    (r.r8, r.r9, r.r10, r.r12, r.r13, r.r14, r.r15) = (MARK, MARK, MARK, MARK, MARK, MARK, MARK);
    (r.rbx, r.rsp) = (HYPERCALL_VA, STACK_TOP);
    w.load(&code!("movq xmm7, rdx", "call rbx", "mov rax, rdx", "syscall", "pxor xmm7, xmm7", "cli"));
    assert_eq!((w.run(), w.run(), w.run()), (Exit::Hypercall, Exit::Syscall, gp(0)));
    w.regs = crate::x86::registers::Regs { rsp: STACK_TOP, rflags: 0x202, ..Default::default() };
}

/// How many words of the room are the mark, as the guest reads them. The mark is not in a register of its own.
fn marks(w: &mut World) -> u64 {
    w.regs = crate::x86::registers::Regs { rsp: STACK_TOP, rflags: 0x202, ..Default::default() };
    (w.regs.rsi, w.regs.rcx, w.regs.rdx) = (room_va(0), ROOM_SIZE / 8, !MARK);
    let exit = w.exec(&code!(
        "xor ebx, ebx",
        "4:",
        "lodsq",
        "not rax",
        "cmp rax, rdx",
        "jne 5f",
        "inc rbx",
        "5:",
        "loop 4b",
        "cli",
    ));
    assert_eq!(exit, gp(0));
    w.regs.rbx
}

#[test]
fn a_room_holds_nothing_of_another_address_space() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    enter_kernel(&mut w, kernel);
    leave_marks(&mut w);
    assert_ne!(marks(&mut w), 0, "the kernel itself may find them");
    leave_marks(&mut w);
    enter_user(&mut w, user);
    assert_eq!(marks(&mut w), 0, "a room of its own");
    // Roots in turn, until each process has served a kernel and then another root's user program.
    let roots: Vec<_> =
        (0..3 * crate::engine::process::space::MAX_SPACES).map(|_| another_root(&mut w)).collect();
    for (n, root) in roots.iter().enumerate() {
        let program = n >= crate::engine::process::space::MAX_SPACES;
        w.space.set_root(*root);
        w.space.set_user_mode(program);
        if program {
            assert_eq!(marks(&mut w), 0, "root {n}");
            w.space.set_user_mode(false);
        }
        leave_marks(&mut w);
    }
}

#[test]
fn a_room_holds_nothing_of_a_root_that_was_another_table_meanwhile() {
    let Some((mut w, kernel, user)) = user_world() else { return };
    for overflow in [false, true] {
        w.space.set_user_mode(false);
        leave_marks(&mut w);
        enter_kernel(&mut w, kernel);
        assert_eq!(w.exec(&code!("pxor xmm7, xmm7", "cli")), gp(0));
        if overflow {
            w.log.invalidate_all()
        } else {
            w.log.reused_table(user)
        }
        enter_user(&mut w, user);
        assert_eq!(marks(&mut w), 0);
    }
}

/// One address space for both: what the kernel leaves in the room goes when its program runs, whose FPU state stays.
#[test]
fn a_room_that_kernel_and_program_share_is_emptied() {
    let Some(mut w) = world() else { return };
    for _ in 0..3 {
        w.space.set_user_mode(false);
        leave_marks(&mut w);
        w.regs.rdx = !MARK;
        assert_eq!(w.exec(&code!("movq xmm3, rdx", "cli")), gp(0));
        w.space.set_user_mode(true);
        assert_eq!(marks(&mut w), 0);
        assert_eq!(w.exec(&code!("movq rax, xmm3", "cli")), gp(0));
        assert_eq!(w.regs.rax, !MARK);
    }
    is_well(&mut w);
}
