//! Ports: what code at CPL 3 may do with them, which is nothing, whatever an engine opens for its own sake.

use super::{CODE_VA, DATA_VA, STACK_TOP, World, code, gp};
use crate::engine::Exit;

/// The port by which an engine may have the hypercall page enter the host.
const PORT: u64 = 0x7e;

/// Every form of an access to the port: the code, and where in it the instruction is.
fn accesses() -> Vec<(Vec<u8>, u64)> {
    [
        (code!("in al, 0x7e", "cli"), 0),
        (code!("in ax, 0x7e", "cli"), 0),
        (code!("in eax, 0x7e", "cli"), 0),
        (code!("in al, dx", "cli"), 0),
        (code!("in ax, dx", "cli"), 0),
        (code!("in eax, dx", "cli"), 0),
        (code!("nop", "out dx, al", "cli"), 1),
        (code!("out dx, ax", "cli"), 0),
        (code!("out dx, eax", "cli"), 0),
        (code!("out 0x7e, ax", "cli"), 0),
        (code!("out 0x7e, eax", "cli"), 0),
        (code!("insb", "cli"), 0),
        (code!("insw", "cli"), 0),
        (code!("insd", "cli"), 0),
        (code!("outsb", "cli"), 0),
        (code!("outsw", "cli"), 0),
        (code!("outsd", "cli"), 0),
        (code!("std", "insb", "cli"), 1),
        (code!("std", "outsb", "cli"), 1),
        (code!("nop", "rep insb", "cli"), 1),
        (code!("rep insd", "cli"), 0),
        (code!("nop", "rep outsb", "cli"), 1),
        (code!("std", "rep outsb", "cli"), 1),
        (code!("rep outsd", "cli"), 0),
    ]
    .into()
}

/// Executes one access; it must be refused and have no effect.
fn is_refused(w: &mut World, code: &[u8], at: u64, count: u64) {
    const WORD: u64 = 0x5555_6666_7777_8888;
    for word in 0..4 {
        w.poke(DATA_VA + 0x100 + word * 8, WORD);
    }
    w.load(code);
    (w.regs.rax, w.regs.rdx, w.regs.rcx) = (0x1234_5678_9abc_def0, PORT, count);
    (w.regs.rsi, w.regs.rdi, w.regs.rflags) = (DATA_VA + 0x110, DATA_VA + 0x110, 0x202);
    let before = w.regs;
    assert_eq!(w.run(), gp(0), "{code:x?}");
    let (mut expected, mut found) = (before, w.regs);
    // The code sets DF where it wants to.
    (expected.rip, expected.rflags, found.rflags) = (CODE_VA + at, 0, 0);
    assert_eq!(found, expected, "{code:x?}");
    for word in 0..4 {
        assert_eq!(w.peek(DATA_VA + 0x100 + word * 8), WORD, "{code:x?} stores");
    }
    // Nor later: what KVM may have left to do is done by now.
    let (rax, rdi) = (w.regs.rax, w.regs.rdi);
    assert_eq!(w.exec(&code!("nop", "cli")), gp(0), "after {code:x?}");
    assert_eq!((w.regs.rip, w.regs.rax, w.regs.rdi), (CODE_VA + 1, rax, rdi), "after {code:x?}");
}

/// No access to the port does anything but fault: in a user program, and in a kernel if it is not a hypercall.
pub(crate) fn port_accesses(w: &mut World) {
    for user in [true, false] {
        w.space.set_user_mode(user);
        for (code, at) in accesses() {
            for count in [1, 3, 5000] {
                is_refused(w, &code, at, count);
            }
        }
        // The destination of an input that is not writable, or not there, is not looked at.
        for place in [CODE_VA, 0x1234_5000] {
            w.load(&code!("insb", "cli"));
            (w.regs.rdi, w.regs.rdx) = (place, PORT);
            assert_eq!((w.run(), w.regs.rip), (gp(0), CODE_VA));
        }
    }
    w.space.set_user_mode(true);
    is_refused(w, &code!("nop", "out 0x7e, al", "cli"), 1, 1);
}

/// A user program has no hypercalls, and a kernel has them again after one.
pub(crate) fn no_hypercall_in_user_mode(w: &mut World) {
    for round in 0..3 {
        w.load(&code!("call rbx", "cli"));
        (w.regs.rbx, w.regs.rsp) = (super::HYPERCALL_VA + 17 * 32, STACK_TOP);
        w.space.set_user_mode(true);
        let exit = w.run();
        // By a SYSCALL it is a system call.
        let refused = if w.by_page == Exit::Syscall { Exit::Syscall } else { gp(0) };
        assert_eq!(exit, refused, "round {round}");
        w.load(&code!("syscall", "nop", "cli"));
        assert_eq!((w.run(), w.regs.rip), (Exit::Syscall, CODE_VA + 2));
        assert_eq!((w.run(), w.regs.rip), (gp(0), CODE_VA + 3));
        w.space.set_user_mode(false);
        w.load(&code!("call rbx", "cli"));
        (w.regs.rbx, w.regs.rsp) = (super::HYPERCALL_VA + 17 * 32, STACK_TOP);
        assert_eq!(w.run(), w.by_page, "round {round}");
        assert_eq!((w.run(), w.regs.rip), (gp(0), CODE_VA + 2), "round {round}");
    }
}
