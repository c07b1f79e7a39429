//! A program and a kernel of a few instructions each, on real vCPUs: what they find, stopped at every instruction in
//! between, and what a program that means harm achieves.

mod attacks;
mod kicks;
mod steps;

use super::text::{self, ways};
use super::{STATE_SLOT, State};
use crate::engine::kvm::{KvmError, KvmMachine, Transport};
use crate::engine::{Exit, Machine};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::crossing::{Crossed, Crossing};
use crate::testing::engine::{CODE_VA, DATA, HYPERCALL_VA, STACK_TOP, TEXT, World, code, gp};
use crate::testing::skip::skip;
use crate::x86::registers::Regs;
use crate::x86::rflags;
use paravane_abi::pte;
use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};

/// Where the program is.
const PROGRAM_VA: u64 = 0x8_0000_0000;
/// The end of its stack.
const PROGRAM_STACK: u64 = 0x8_0010_1000;
/// Bases of GS.
const KERNEL_GS: u64 = 0x1111_0000;
const USER_GS: u64 = 0x2222_0000;
/// Flags of a program: all that the ways must carry over.
const FLAGS: u64 = rflags::ALWAYS_AT_CPL3 | rflags::CF | rflags::DF | rflags::OF | rflags::ID;

/// A kernel whose entry is at [`CODE_VA`], and a program.
struct Modes {
    w: World,
    kernel_root: Mfn,
    user_root: Mfn,
    info: Mfn,
}

fn world() -> Option<World> {
    let make = |memory: &MachineMemory, layout: &HypervisorLayout| {
        KvmMachine::new(memory, layout, Some(Transport::Pio), 1).map(|e| Box::new(e) as Box<dyn Machine>)
    };
    match World::new(Backing::Anonymous, make) {
        Ok(world) => Some(world),
        Err(why @ (KvmError::Absent | KvmError::Permission)) => {
            skip("kvm", why);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Modes {
    /// About to run `program`; its first SYSCALL goes to `kernel`.
    fn new(program: &[u8], kernel: &[u8]) -> Option<Self> {
        let mut w = world()?;
        let kernel_root = w.space.root();
        let user_root = w.new_root();
        for (va, flags) in [(PROGRAM_VA, TEXT), (PROGRAM_STACK - PAGE_SIZE, DATA)] {
            let frame = w.frame();
            let entry = w.entry_in(user_root, va, 1);
            w.write(entry, 1, pte::make(frame.0, flags));
            if va == PROGRAM_VA {
                w.memory.write(frame.maddr(), program).unwrap();
            }
        }
        w.load(kernel);
        let info = w.frame();
        let mut modes = Self { w, kernel_root, user_root, info };
        modes.start();
        Some(modes)
    }

    /// A program that makes one call and is at its end then, and a kernel that returns from it.
    fn round_trip() -> Option<Self> {
        Self::new(&code!("syscall", "cli"), &code!("pop rcx", "pop r11", "push 0", "mov eax, 42", "jmp rbx"))
    }

    /// The program is at its beginning.
    fn start(&mut self) {
        self.w.space.set_root(self.user_root);
        self.w.space.set_user_mode(true);
        self.w.regs = Regs {
            rip: PROGRAM_VA,
            rsp: PROGRAM_STACK,
            rflags: FLAGS,
            gs_base: USER_GS,
            rax: 0xa0a0,
            rbx: HYPERCALL_VA + paravane_abi::hypercall::IRET * 32,
            r15: 0xf0f0,
            ..Regs::default()
        };
        let crossing = Crossing {
            kernel_root: self.kernel_root,
            user_root: self.user_root,
            kernel_sp: STACK_TOP - 8,
            entry: CODE_VA,
            masks_upcalls: true,
            vcpu_info: Maddr(self.info.maddr().0 + 0x40),
            other_gs_base: KERNEL_GS,
            user_selectors: (FLAT_USER_CS, FLAT_USER_SS),
        };
        self.w.space.set_crossing(Some(crossing));
        self.set_upcall(false, false);
    }

    fn crossing(&mut self, change: impl FnOnce(&mut Crossing)) {
        let mut crossing = *self.w.space.crossing().unwrap();
        change(&mut crossing);
        self.w.space.set_crossing(Some(crossing));
    }

    fn set_upcall(&self, pending: bool, masked: bool) {
        let word = u64::from(pending) | u64::from(masked) << 8;
        self.w.memory.store_u64(Maddr(self.info.maddr().0 + 0x40), word).unwrap();
    }

    /// (pending, masked)
    fn upcall(&self) -> (bool, bool) {
        let word = self.w.memory.load_u64(Maddr(self.info.maddr().0 + 0x40)).unwrap();
        (word & 0xff != 0, word & 0xff00 != 0)
    }

    /// Runs on to something other than a kick; where it was left.
    fn run(&mut self) -> (Exit, Crossed) {
        let exit = self.w.run();
        (exit, self.w.cpu.crossed().expect("there are fast paths"))
    }

    /// A word of the kernel's stack.
    fn on_stack(&mut self, below_top: u64) -> u64 {
        let page = self.frame_of(STACK_TOP - PAGE_SIZE);
        self.w.memory.load_u64(Maddr(page.maddr().0 + PAGE_SIZE - below_top)).unwrap()
    }

    fn put_kernel(&mut self, code: &[u8]) {
        let page = self.frame_of(CODE_VA).maddr();
        self.w.memory.write(page, code).unwrap();
    }

    fn frame_of(&mut self, va: u64) -> Mfn {
        let entry = self.w.entry_in(self.kernel_root, va, 1);
        Mfn(pte::mfn(self.w.memory.load_u64(entry).unwrap()))
    }
}

fn in_user(crossings: u64) -> Crossed {
    Crossed { user: true, other_gs_base: KERNEL_GS, crossings }
}

fn in_kernel(crossings: u64) -> Crossed {
    Crossed { user: false, other_gs_base: USER_GS, crossings }
}

#[test]
fn the_kernel_finds_what_an_exit_would_have_pushed() {
    let Some(mut m) = Modes::new(&code!("syscall"), &code!("cli")) else { return };
    let before = m.w.regs;
    assert_eq!(m.run(), (gp(0), in_kernel(1)));
    // Below the stack, aligned.
    let sp = STACK_TOP - 16 - 56;
    let frame: Vec<_> = (0..7).map(|n| m.on_stack(STACK_TOP - sp - n * 8)).collect();
    let rip = PROGRAM_VA + 2;
    assert_eq!(frame, [rip, FLAGS, rip, FLAT_USER_CS.into(), FLAGS, PROGRAM_STACK, FLAT_USER_SS.into()]);
    let entered = Regs {
        rip: CODE_VA,
        rsp: sp,
        rcx: rip,
        r11: FLAGS,
        gs_base: KERNEL_GS,
        rflags: m.w.regs.rflags,
        ..before
    };
    assert_eq!(m.w.regs, entered);
    let all = rflags::LOADED_AT_CPL3 & !rflags::RF;
    assert_eq!(m.w.regs.rflags & all, FLAGS & all, "arithmetic, direction, ID");
    assert_eq!(m.upcall(), (false, true));

    // Without a mask there is none.
    m.start();
    m.crossing(|crossing| crossing.masks_upcalls = false);
    assert_eq!(m.run(), (gp(0), in_kernel(1)));
    assert_eq!(m.upcall(), (false, false));
}

#[test]
fn a_call_and_its_return_take_no_exit() {
    let Some(mut m) = Modes::round_trip() else { return };
    let before = m.w.regs;
    for _ in 0..3 {
        m.start();
        assert_eq!(m.run(), (gp(0), in_user(2)));
        let rip = PROGRAM_VA + 2;
        let returned = Regs { rip, rax: 42, rcx: rip, r11: FLAGS, rflags: m.w.regs.rflags, ..before };
        assert_eq!(m.w.regs, returned);
        let all = rflags::LOADED_AT_CPL3 & !rflags::RF;
        assert_eq!(m.w.regs.rflags & all, FLAGS & all);
        assert_eq!(m.upcall(), (false, false));
    }
}

/// The kernel's part of a return, after which nothing may have changed but that it is left to the host.
fn left_to_the_host(m: &mut Modes, kernel: &[u8]) {
    m.put_kernel(kernel);
    m.start();
    let (exit, crossed) = m.run();
    assert_eq!((exit, crossed), (Exit::Hypercall, in_kernel(1)));
    assert_eq!((m.w.regs.rax, m.w.regs.gs_base), (paravane_abi::hypercall::IRET, KERNEL_GS));
    assert_eq!(m.w.regs.rsp, STACK_TOP - 16 - 72, "at the frame");
    assert_eq!(m.on_stack(16 + 72), 42, "rax");
}

#[test]
fn what_is_unusual_is_left_to_the_host() {
    let Some(mut m) = Modes::round_trip() else { return };
    // In the frame that the entry has pushed: rcx, r11, rip, cs, rflags, rsp, ss.
    macro_rules! unusual {
        ($($line:literal),*) => {
            left_to_the_host(&mut m, &code!($($line,)* "pop rcx", "pop r11", "push 0", "mov eax, 42", "jmp rbx"));
        };
    }
    // The kernel's own selector; another one.
    unusual!("mov dword ptr [rsp + 24], 0xe030");
    unusual!("mov dword ptr [rsp + 24], 0x33");
    unusual!("mov word ptr [rsp + 48], 0x2b");
    // Masked upcalls; a single step.
    unusual!("and dword ptr [rsp + 32], -513");
    unusual!("or dword ptr [rsp + 32], 256");
    // To elsewhere than rcx; to, and with a stack at, an address that is none.
    unusual!("inc qword ptr [rsp]");
    unusual!("mov rax, 0x800000000000", "mov [rsp], rax", "mov [rsp + 16], rax");
    unusual!("mov rax, 0x800000000000", "mov [rsp + 40], rax");
    // SYSRET's form.
    left_to_the_host(&mut m, &code!("pop rcx", "pop r11", "push 256", "mov eax, 42", "jmp rbx"));
    // Bits that do not count are no reason.
    let odd = code!(
        "or dword ptr [rsp + 32], 0x1f7000",
        "mov dword ptr [rsp + 28], 0x5a5a5a5a",
        "pop rcx",
        "pop r11",
        "push 0",
        "mov eax, 42",
        "jmp rbx"
    );
    m.put_kernel(&odd);
    m.start();
    assert_eq!(m.run(), (gp(0), in_user(2)));
    let never = rflags::NT | rflags::IOPL | rflags::VM;
    assert_eq!(m.w.regs.rflags & never, 0);
}

#[test]
fn a_pending_upcall_is_left_to_the_host() {
    let pends = code!(
        "mov rax, 0x700000000",
        "mov byte ptr [rax + 0x40], 1",
        "pop rcx",
        "pop r11",
        "push 0",
        "mov eax, 42",
        "jmp rbx"
    );
    let Some(mut m) = Modes::round_trip() else { return };
    let (root, info) = (m.kernel_root, m.info);
    let entry = m.w.entry_in(root, 0x7_0000_0000, 1);
    m.w.write(entry, 1, pte::make(info.0, DATA));
    left_to_the_host(&mut m, &pends);
    assert_eq!(m.upcall(), (true, false), "as the frame has it");
}

#[test]
fn a_call_while_upcalls_are_masked_is_left_to_the_host() {
    let Some(mut m) = Modes::round_trip() else { return };
    let before = m.w.regs;
    m.set_upcall(true, true);
    assert_eq!(m.run(), (Exit::Syscall, in_user(0)));
    let (rip, rflags) = (PROGRAM_VA + 2, m.w.regs.rflags);
    assert_eq!(m.w.regs, Regs { rip, rcx: rip, r11: FLAGS, rflags, ..before });
    assert_eq!((rflags, m.upcall()), (FLAGS, (true, true)));
}

#[test]
fn a_kernel_that_makes_a_syscall_makes_a_hypercall() {
    let Some(mut m) = Modes::new(&code!("syscall"), &code!("mov eax, 7", "syscall", "cli")) else { return };
    assert_eq!(m.run(), (Exit::Syscall, in_kernel(1)));
    assert_eq!((m.w.regs.rax, m.w.regs.rip, m.w.regs.gs_base), (7, CODE_VA + 7, KERNEL_GS));
    // Entered by the host as well.
    m.w.space.set_root(m.kernel_root);
    m.w.space.set_user_mode(false);
    m.crossing(|crossing| crossing.other_gs_base = USER_GS);
    m.w.regs.rip = CODE_VA;
    assert_eq!(m.run(), (Exit::Syscall, in_kernel(0)));
}

/// A stack that cannot be used is the host's to judge, which has a call as if nothing had been tried.
#[test]
fn an_entry_that_faults_is_taken_back() {
    let Some(mut m) = Modes::round_trip() else { return };
    let before = m.w.regs;
    for sp in [0x1000, 1 << 47, STACK_TOP - PAGE_SIZE + 16, CODE_VA + 64] {
        m.start();
        m.crossing(|crossing| crossing.kernel_sp = sp);
        assert_eq!(m.run(), (Exit::Syscall, in_user(0)), "{sp:#x}");
        let rip = PROGRAM_VA + 2;
        assert_eq!(m.w.regs, Regs { rip, rcx: rip, r11: FLAGS, rflags: FLAGS, ..before });
    }
}

/// No program finds the shared page, also on a root that a kernel had.
#[test]
fn a_root_loses_the_shared_page_before_a_program_runs_on_it() {
    let Some(mut m) = Modes::round_trip() else { return };
    assert_eq!(m.run(), (gp(0), in_user(2)));
    let (kernel, user) = (m.kernel_root, m.user_root);
    let slot = |m: &Modes, root: Mfn| m.w.memory.load_u64(Maddr(root.maddr().0 + STATE_SLOT * 8)).unwrap();
    assert!(slot(&m, kernel) != 0 && slot(&m, user) == 0);
    // A program that reads it, on the root of the kernel; which has it in its TLB.
    m.put_kernel(&code!("mov rax, [rdi]", "cli"));
    m.w.space.set_crossing(None);
    m.w.space.set_root(kernel);
    m.w.regs.rip = CODE_VA;
    m.w.regs.rdi = super::STATE_VA;
    let exit = m.w.run();
    assert!(matches!(exit, Exit::Fault(fault) if fault.vector == 14), "{exit:?}");
    assert_eq!(slot(&m, kernel), 0);
}

/// Some KVMs interpret a SYSCALL there, at whose end no RIP can be: it arrives at CPL 0, with the program's stack.
#[test]
fn a_call_at_the_end_of_the_lower_half() {
    const LAST: u64 = (1 << 47) - PAGE_SIZE;
    let Some(mut m) = Modes::round_trip() else { return };
    let frame = m.w.frame();
    let entry = m.w.entry_in(m.user_root, LAST, 1);
    m.w.write(entry, 1, pte::make(frame.0, TEXT));
    m.w.memory.write(Maddr(frame.maddr().0 + PAGE_SIZE - 2), &code!("syscall")).unwrap();
    for rsp in [PROGRAM_STACK, 0, 1 << 47, super::STATE_VA + 64, u64::MAX] {
        m.start();
        (m.w.regs.rip, m.w.regs.rsp) = (LAST + PAGE_SIZE - 2, rsp);
        let before = m.w.regs;
        let (exit, crossed) = m.run();
        if crossed.user {
            assert_eq!(exit, Exit::Syscall);
            let (rip, rflags) = (1 << 47, m.w.regs.rflags);
            assert_eq!(m.w.regs, Regs { rip, rcx: rip, r11: m.w.regs.r11, rflags, ..before });
        } else {
            // The kernel was entered, and its return is one that only the host can judge.
            assert_eq!(exit, Exit::Hypercall);
        }
    }
}

#[test]
fn the_words_are_where_the_code_has_them() {
    assert_eq!(std::mem::size_of::<State>(), 15 * 8);
    assert!(text::ways_text().len() < 512 && text::gate_text().len() < 192);
    assert_eq!(text::ways_text()[ways::entry() as usize - 1], 0xcc);
    assert_eq!(text::ways_text()[ways::leap() as usize - 1], 0xcc);
    assert_eq!(text::ways_text()[ways::leap() as usize..][..2], [0xff, 0xe1]);
}
