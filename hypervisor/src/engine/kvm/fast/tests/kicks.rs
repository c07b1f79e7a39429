//! Kicks from another thread, while a program calls its kernel as fast as it can.

use super::super::{STATE_VA, WAYS_VA};
use super::{FLAGS, KERNEL_GS, Modes, PROGRAM_VA, USER_GS, world};
use crate::engine::Exit;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::testing::engine::kicked::Kicked;
use crate::testing::engine::{CODE_VA, STACK_TOP, World, code, fault};
use paravane_abi::pte;
use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};

/// The program counts in r12 and the kernel in r13; both in memory would not show a register that was lost.
fn counters() -> Option<Modes> {
    let program = code!(
        "4:",
        "inc r12",
        "mov r14, r12",
        "syscall",
        "cmp r12, r13",
        "jne 5f",
        "cmp rax, r14",
        "je 4b",
        "5:",
        "ud2"
    );
    let kernel = code!("inc r13", "mov rax, r13", "pop rcx", "pop r11", "push 0", "jmp rbx");
    Modes::new(&program, &kernel)
}

impl Modes {
    /// What the host does for a call.
    fn call(&mut self) {
        let regs = &mut self.w.regs;
        let frame =
            [regs.rip, FLAGS, regs.rip, FLAT_USER_CS.into(), regs.rflags, regs.rsp, FLAT_USER_SS.into()];
        (regs.rip, regs.rsp, regs.gs_base) = (CODE_VA, STACK_TOP - 16 - 56, KERNEL_GS);
        let at = self.stack_at(16 + 56);
        self.w.memory.write_obj(at, &frame).unwrap();
        self.set_upcall(false, true);
        self.enters(false);
    }

    /// What it does for a return.
    fn returns(&mut self) {
        let at = self.stack_at(STACK_TOP - self.w.regs.rsp);
        let [rax, r11, rcx, _, rip, _, rflags, rsp, _] = self.w.memory.read_obj::<[u64; 9]>(at).unwrap();
        let regs = &mut self.w.regs;
        (regs.rax, regs.r11, regs.rcx, regs.rip, regs.rflags, regs.rsp) = (rax, r11, rcx, rip, rflags, rsp);
        regs.gs_base = USER_GS;
        self.set_upcall(false, false);
        self.enters(true);
    }

    fn stack_at(&mut self, below_top: u64) -> Maddr {
        Maddr(self.frame_of(STACK_TOP - PAGE_SIZE).maddr().0 + PAGE_SIZE - below_top)
    }

    fn enters(&mut self, user: bool) {
        self.w.space.set_root(if user { self.user_root } else { self.kernel_root });
        self.w.space.set_user_mode(user);
        self.crossing(|crossing| crossing.other_gs_base = if user { KERNEL_GS } else { USER_GS });
    }
}

#[test]
fn kicks_meet_a_program_or_its_kernel_and_nothing_in_between() {
    let Some(mut m) = counters() else { return };
    let kicked = Kicked::by(m.w.cpu.kicker());
    let deadlines = m.w.cpu.kicker();
    let (mut kicks, mut crossings, mut stops) = (0u64, 0, 0u64);
    while kicks < 2000 || crossings < 2000 {
        stops += 1;
        deadlines.arm(1 + stops * 997 % 60_000);
        let exit = m.w.enter();
        if let Some(crossed) = m.w.cpu.crossed() {
            crossings += crossed.crossings;
            m.enters(crossed.user);
            let wanted = if crossed.user { (USER_GS, KERNEL_GS) } else { (KERNEL_GS, USER_GS) };
            assert_eq!((m.w.regs.gs_base, crossed.other_gs_base), wanted, "{exit:?} at {:#x}", m.w.regs.rip);
        }
        let regs = m.w.regs;
        match exit {
            Exit::Kick => {
                kicks += 1;
                assert!(!(WAYS_VA..STATE_VA).contains(&regs.rip), "{:#x}", regs.rip);
                let place = if m.w.space.user_mode() { PROGRAM_VA } else { CODE_VA };
                let by_page = super::HYPERCALL_VA;
                assert!(
                    (place..place + 64).contains(&regs.rip) || (by_page..by_page + 4096).contains(&regs.rip)
                );
            }
            Exit::Syscall => m.call(),
            Exit::Hypercall => m.returns(),
            other => panic!("{other:?} at {:#x}: {regs:x?}", regs.rip),
        }
        assert!(regs.r12.wrapping_sub(regs.r13) <= 1, "{regs:x?}");
    }
    deadlines.arm(0);
    drop(kicked);
}

/// Counts in r12 and in memory, with a #BP each time, which the fast paths' gate passes on.
fn breakpoints() -> Vec<u8> {
    code!("4:", "inc r12", "inc qword ptr [rsp - 8]", "int3", "jmp 4b")
}

/// Runs that with deadlines of every length: what the registers have is what memory has, give or take the one
/// instruction in between. `counted` is the word of memory. How many #BP there are is not compared: a KVM that does not
/// report one that it is about to deliver, and has moved RIP, has it lost when registers are loaded.
fn break_and_kick(w: &mut World, counted: Maddr) {
    let deadlines = w.cpu.kicker();
    let (mut kicks, mut breakpoints, mut stops) = (0u64, 0u64, 0u64);
    while kicks < 2000 || breakpoints < 2000 {
        stops += 1;
        deadlines.arm(1 + stops * 997 % 60_000);
        let exit = w.enter();
        w.cpu.crossed();
        let (registers, memory) = (w.regs.r12, w.memory.load_u64(counted).unwrap());
        if exit == Exit::Kick {
            kicks += 1;
            assert!(registers.wrapping_sub(memory) <= 1, "{registers} and {memory}");
        } else {
            breakpoints += 1;
            assert_eq!((exit, registers), (fault(3), memory));
        }
    }
    deadlines.arm(0);
}

#[test]
fn kicks_take_no_breakpoint_of_a_program_back() {
    let Some(mut m) = Modes::new(&breakpoints(), &code!("cli")) else { return };
    let entry = m.w.entry_in(m.user_root, super::PROGRAM_STACK - PAGE_SIZE, 1);
    let stack = pte::mfn(m.w.memory.load_u64(entry).unwrap());
    break_and_kick(&mut m.w, Maddr(Mfn(stack).maddr().0 + PAGE_SIZE - 8));
}

#[test]
fn kicks_take_no_breakpoint_of_a_kernel_back_whose_fast_paths_are_not_armed() {
    let Some(mut w) = world() else { return };
    w.load(&breakpoints());
    w.regs.rsp = STACK_TOP;
    let stack = w.mfn_of(STACK_TOP - PAGE_SIZE).maddr();
    break_and_kick(&mut w, Maddr(stack.0 + PAGE_SIZE - 8));
}

/// The kernel that has been reached without an exit: the last entry was to the program.
#[test]
fn kicks_take_no_breakpoint_of_a_kernel_back_that_a_program_called() {
    let program = code!("4:", "inc r12", "syscall", "jmp 4b");
    let kernel = code!("inc r13", "int3", "pop rcx", "pop r11", "push 0", "jmp rbx");
    let Some(mut m) = Modes::new(&program, &kernel) else { return };
    let deadlines = m.w.cpu.kicker();
    let (mut kicks, mut breakpoints, mut stops) = (0u64, 0u64, 0u64);
    while kicks < 2000 || breakpoints < 2000 {
        stops += 1;
        deadlines.arm(1 + stops * 997 % 60_000);
        let exit = m.w.enter();
        if let Some(crossed) = m.w.cpu.crossed() {
            m.enters(crossed.user);
            let wanted = if crossed.user { (USER_GS, KERNEL_GS) } else { (KERNEL_GS, USER_GS) };
            assert_eq!((m.w.regs.gs_base, crossed.other_gs_base), wanted, "{exit:?} at {:#x}", m.w.regs.rip);
        }
        match exit {
            Exit::Kick => kicks += 1,
            Exit::Syscall => m.call(),
            Exit::Hypercall => m.returns(),
            exit => {
                breakpoints += 1;
                let regs = m.w.regs;
                assert_eq!((exit, regs.r12), (fault(3), regs.r13));
            }
        }
    }
    deadlines.arm(0);
}
