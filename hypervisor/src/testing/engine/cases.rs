//! What every engine must do, as small guests and the exits that they must bring about.

use paravane_abi::pte;

use super::kicked::Kicked;
pub(crate) use super::selectors::{guests_descriptors, selectors};
use super::{CODE_VA, DATA, DATA_VA, HYPERCALL_VA, STACK_TOP, TABLE, TEXT, World, code, fault, gp, pf};
use crate::engine::Exit;
use crate::machine::memory::PAGE_SIZE;
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;

/// A hypercall by the page returns behind the call with rax changed and everything else kept.
pub(crate) fn hypercall_by_the_page(w: &mut World) {
    w.load(&code!("call rbx", "mov r15, rax", "cli"));
    w.regs.rbx = HYPERCALL_VA + 17 * 32;
    (w.regs.rcx, w.regs.r11, w.regs.rdi, w.regs.r9) = (0x11, 0x22, 0x33, 0x44);
    let before = w.regs;
    assert_eq!(w.run(), w.by_page);
    assert_eq!((w.regs.rax & 0xffff_ffff, w.peek(STACK_TOP - 8)), (17, CODE_VA + 2));
    let same = Regs { rax: before.rax, rip: before.rip, rsp: before.rsp, rflags: before.rflags, ..w.regs };
    // A stub that is a SYSCALL keeps rcx and r11 on the stack; they must be back after the call only.
    let Regs { rcx, r11, .. } = if w.by_page == Exit::Syscall { same } else { before };
    assert_eq!(same, Regs { rcx, r11, ..before });
    w.regs.rax = 0xfeed_0000_dead;
    assert_eq!(w.run(), gp(0));
    assert_eq!((w.regs.r15, w.regs.rip, w.regs.rsp), (0xfeed_0000_dead, CODE_VA + 5, STACK_TOP));
    assert_eq!((w.regs.rcx, w.regs.r11, w.regs.rdi, w.regs.r9), (0x11, 0x22, 0x33, 0x44));
}

/// The page's entry of iret leaves rcx, r11 and rax on the stack, on top of the frame that was there.
pub(crate) fn iret_by_the_page(w: &mut World) {
    w.load(&code!("mov rcx, 1", "mov r11, 2", "mov rax, 3", "jmp rbx"));
    w.regs.rbx = HYPERCALL_VA + 23 * 32;
    assert_eq!(w.run(), w.by_page);
    assert_eq!((w.regs.rax & 0xffff_ffff, w.regs.rsp), (23, STACK_TOP - 24));
    let stack = [w.peek(STACK_TOP - 8), w.peek(STACK_TOP - 16), w.peek(STACK_TOP - 24)];
    assert_eq!(stack, [1, 2, 3]);
}

/// A bare SYSCALL is reported as such, rip behind it, rcx and r11 as the architecture leaves them.
pub(crate) fn bare_syscall(w: &mut World) {
    w.regs.rax = 0x1234_5678_9abc_def0;
    assert_eq!(w.exec(&code!("stc", "syscall", "nop", "cli")), Exit::Syscall);
    assert_eq!((w.regs.rip, w.regs.rcx), (CODE_VA + 3, CODE_VA + 3));
    assert_eq!((w.regs.rax, w.regs.r11 & 1, w.regs.rflags & 1), (0x1234_5678_9abc_def0, 1, 1));
    assert_eq!(w.run(), gp(0));
    assert_eq!(w.regs.rip, CODE_VA + 4);
}

/// Privileged instructions are general protection faults at the instruction.
pub(crate) fn privileged_instructions(w: &mut World) {
    let all = [
        code!("cli"),
        code!("sti"),
        code!("hlt"),
        code!("mov rax, cr3"),
        code!("mov cr0, rax"),
        code!("rdmsr"),
        code!("wrmsr"),
        code!("invlpg [rax]"),
        code!("lgdt [rsp - 16]"),
        code!("in al, dx"),
        code!("mov rax, dr7"),
        code!("swapgs"),
        code!("sysretq"),
    ];
    for one in all {
        w.regs.rdx = 0x3f8;
        assert_eq!(w.exec(&one), gp(0), "{one:x?}");
        assert_eq!(w.regs.rip, CODE_VA, "{one:x?}");
    }
}

/// Exceptions that are not about privilege come with their vectors.
pub(crate) fn exceptions(w: &mut World) {
    assert_eq!(w.exec(&code!("ud2")), fault(6));
    assert_eq!(w.regs.rip, CODE_VA);
    assert_eq!(w.exec(&code!("int3")), fault(3));
    assert_eq!(w.regs.rip, CODE_VA + 1, "a trap: rip is behind it");
    assert_eq!(w.exec(&code!("xor ecx, ecx", "div ecx")), fault(0));
    assert_eq!(w.regs.rip, CODE_VA + 2);
    assert_eq!(w.exec(&code!("movabs rax, 0x8000000000000000", "mov rax, [rax]")), gp(0));
    assert_eq!(w.regs.rip, CODE_VA + 10);
}

/// CR0.TS makes vector instructions trap, where the engine can do that, and is lifted again.
pub(crate) fn task_switched(w: &mut World) {
    let code = code!("movaps xmm0, xmm1", "cli");
    assert_eq!(w.exec(&code), gp(0));
    w.space.set_task_switched(true);
    match w.exec(&code) {
        Exit::Fault(Fault { vector: 7, .. }) => assert_eq!(w.regs.rip, CODE_VA),
        exit => {
            println!("SKIP: this engine cannot make vector instructions trap");
            assert_eq!((exit, w.regs.rip), (gp(0), CODE_VA + 3), "the instruction is executed");
        }
    }
    w.space.set_task_switched(false);
    assert_eq!(w.run(), gp(0));
    assert_eq!(w.regs.rip, CODE_VA + 3);
}

/// TF single-steps.
pub(crate) fn single_step(w: &mut World) {
    w.load(&code!("nop", "nop", "cli"));
    w.regs.rflags |= 0x100;
    assert_eq!(w.run(), fault(1));
    assert_eq!(w.regs.rip, CODE_VA + 1);
    assert_eq!(w.run(), fault(1));
    w.regs.rflags &= !0x100;
    assert_eq!(w.run(), gp(0));
}

/// #PF has the address, and the error code that the guest's own tables make.
pub(crate) fn page_faults(w: &mut World) {
    const HOLE: u64 = 0x1234_5000;
    let load = code!("mov rbx, [rax]");
    let store = code!("mov [rax], rbx");
    w.regs.rax = HOLE + 0x678;
    assert_eq!(w.exec(&load), pf(0b100, HOLE + 0x678));
    assert_eq!(w.exec(&store), pf(0b110, HOLE + 0x678));
    let frame = w.frame();
    w.map(HOLE, frame, TEXT | pte::NX);
    assert_eq!(w.exec(&store), pf(0b111, HOLE + 0x678));
    w.map(HOLE, frame, DATA & !pte::USER);
    assert_eq!(w.exec(&load), pf(0b101, HOLE + 0x678));
    w.map(HOLE, frame, DATA);
    assert_eq!(w.exec(&code!("jmp rax")), pf(0b1_0101, HOLE + 0x678), "NX is honoured");
    assert_eq!(w.regs.rip, HOLE + 0x678);
    w.regs.rbx = 77;
    assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
    assert_eq!(w.peek(HOLE + 0x678), 77);
    // Rights are those of all levels.
    let entry = w.entry(HOLE, 2);
    let value = w.memory.load_u64(entry).unwrap();
    w.write(entry, 2, value & !pte::RW);
    assert_eq!(w.exec(&store), pf(0b111, HOLE + 0x678));
    w.write(entry, 2, 0);
    assert_eq!(w.exec(&load), pf(0b100, HOLE + 0x678));
}

/// What `TableLog::wrote` noted is seen at once: mapped, remapped, protected, gone.
pub(crate) fn remapping(w: &mut World) {
    const VA: u64 = 0x2000_0000;
    let (one, two) = (w.frame(), w.frame());
    w.memory.store_u64(one.maddr(), 1).unwrap();
    w.memory.store_u64(two.maddr(), 2).unwrap();
    let load = code!("mov rbx, [rax]", "cli");
    w.regs.rax = VA;
    for (frame, value) in [(one, 1), (two, 2), (one, 1)] {
        w.map(VA, frame, DATA);
        assert_eq!(w.exec(&load), gp(0));
        assert_eq!(w.regs.rbx, value);
    }
    w.map(VA, one, TEXT);
    assert_eq!(w.exec(&load), gp(0));
    assert_eq!(w.exec(&code!("mov [rax], rbx")), pf(0b111, VA));
    w.map(VA, one, DATA);
    assert_eq!(w.exec(&code!("mov qword ptr [rax], 9", "cli")), gp(0));
    assert_eq!(w.memory.load_u64(one.maddr()), Ok(9));
    w.set(VA, 0);
    assert_eq!(w.exec(&load), pf(0b100, VA));
}

/// One frame at several addresses is one memory.
pub(crate) fn aliases(w: &mut World) {
    let frame = w.frame();
    w.map(0x2000_0000, frame, DATA);
    w.map(0x7fff_0000, frame, DATA);
    (w.regs.rax, w.regs.rcx) = (0x2000_0000, 0x7fff_0000);
    assert_eq!(w.exec(&code!("mov qword ptr [rax], 5", "mov rbx, [rcx]", "cli")), gp(0));
    assert_eq!(w.regs.rbx, 5);
}

/// One table under two L2 entries: a change of its entry changes both places.
pub(crate) fn shared_tables(w: &mut World) {
    const A: u64 = 0x2000_0000;
    const B: u64 = 0x2020_0000;
    let (one, two) = (w.frame(), w.frame());
    w.map(A, one, DATA);
    let (from, to) = (w.entry(A, 2), w.entry(B, 2));
    let table = w.memory.load_u64(from).unwrap();
    w.write(to, 2, table);
    (w.regs.rax, w.regs.rcx) = (A, B);
    let both = code!("mov rbx, [rax]", "mov rdx, [rcx]", "cli");
    w.memory.store_u64(one.maddr(), 1).unwrap();
    w.memory.store_u64(two.maddr(), 2).unwrap();
    assert_eq!(w.exec(&both), gp(0));
    assert_eq!((w.regs.rbx, w.regs.rdx), (1, 1));
    w.map(A, two, DATA);
    assert_eq!(w.exec(&both), gp(0));
    assert_eq!((w.regs.rbx, w.regs.rdx), (2, 2));
    w.write(to, 2, 0);
    assert_eq!(w.exec(&both), pf(0b100, B));
    assert_eq!(w.regs.rbx, 2);
}

/// Accessed and dirty bits are set as the processor sets them.
pub(crate) fn accessed_and_dirty(w: &mut World) {
    const VA: u64 = 0x2000_0000;
    const BITS: u64 = pte::ACCESSED | pte::DIRTY;
    let frame = w.frame();
    w.map(VA, frame, DATA & !BITS);
    w.regs.rax = VA;
    assert_eq!(w.exec(&code!("mov rbx, [rax]", "cli")), gp(0));
    assert_eq!(w.get(VA) & BITS, pte::ACCESSED);
    assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
    assert_eq!(w.get(VA) & BITS, BITS);
    // Cleared, they are set again by the next access.
    w.map(VA, frame, DATA & !BITS);
    assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
    assert_eq!(w.get(VA) & BITS, BITS);
}

/// Two roots, two memories; and back.
pub(crate) fn switching_roots(w: &mut World) {
    const VA: u64 = 0x2000_0000;
    let first = w.space.root();
    let second = w.new_root();
    let frames = [w.frame(), w.frame()];
    let shared = w.entry(CODE_VA, 2);
    let table = w.memory.load_u64(shared).unwrap();
    for (root, frame, value) in [(first, frames[0], 1), (second, frames[1], 2)] {
        w.memory.store_u64(frame.maddr(), value).unwrap();
        let entry = w.entry_in(root, VA, 1);
        w.write(entry, 1, pte::make(frame.0, DATA));
        for va in [CODE_VA, DATA_VA, STACK_TOP - PAGE_SIZE] {
            let leaf = w.entry(va, 1);
            let leaf = w.memory.load_u64(leaf).unwrap();
            let entry = w.entry_in(root, va, 1);
            w.write(entry, 1, leaf);
        }
    }
    assert_ne!(table, 0);
    w.regs.rax = VA;
    let load = code!("mov rbx, [rax]", "cli");
    for (root, value) in [(first, 1), (second, 2), (first, 1), (second, 2)] {
        w.space.set_root(root);
        assert_eq!(w.exec(&load), gp(0));
        assert_eq!(w.regs.rbx, value);
    }
    // Tables that were something else in between hold what they say now.
    w.space.set_root(first);
    assert_eq!(w.exec(&load), gp(0));
    let entry = w.entry_in(second, VA, 1);
    for table in [second, entry.mfn()] {
        w.log.reused_table(table);
    }
    w.memory.store_u64(entry, pte::make(frames[0].0, DATA)).unwrap();
    w.space.set_root(second);
    assert_eq!(w.exec(&load), gp(0));
    assert_eq!(w.regs.rbx, 1);
}

/// The vector state, and FS and GS bases, survive exits of every kind and changes of root.
pub(crate) fn vector_state(w: &mut World) {
    let first = w.space.root();
    let second = w.new_root();
    for va in [CODE_VA, DATA_VA, STACK_TOP - PAGE_SIZE, HYPERCALL_VA] {
        let leaf = w.get(va);
        let entry = w.entry_in(second, va, 1);
        w.write(entry, 1, leaf);
    }
    w.poke(DATA_VA, 0x0123_4567_89ab_cdef);
    w.poke(DATA_VA + 8, 0x1f80 | 0x6000);
    w.regs.rax = DATA_VA;
    w.regs.rbx = HYPERCALL_VA + 32;
    (w.regs.fs_base, w.regs.gs_base) = (DATA_VA, DATA_VA + 8);
    w.load(&code!(
        "movq xmm0, [rax]",
        "ldmxcsr [rax + 8]",
        "vinsertf128 ymm1, ymm1, xmm0, 1",
        "cli",
        "call rbx",
        "mov rax, fs:[0]",
        "mov rcx, gs:[0]",
        "movq rdx, xmm0",
        "vextractf128 xmm2, ymm1, 1",
        "movq rsi, xmm2",
        "stmxcsr [rsp - 8]",
        "mov edi, [rsp - 8]",
        "cli",
    ));
    let check = |w: &World| {
        assert_eq!((w.regs.rax, w.regs.rcx), (0x0123_4567_89ab_cdef, 0x1f80 | 0x6000), "FS and GS");
        assert_eq!((w.regs.rdx, w.regs.rsi), (0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef), "xmm, ymm");
        assert_eq!(w.regs.rdi, 0x1f80 | 0x6000, "mxcsr");
    };
    let skip = |w: &mut World| w.regs.rip += 1;
    for roots in [[first; 3], [first, second, first], [second, second, first]] {
        w.regs.rax = DATA_VA;
        w.regs.rip = CODE_VA;
        w.space.set_root(roots[0]);
        assert_eq!(w.run(), gp(0));
        skip(w);
        w.space.set_root(roots[1]);
        assert_eq!(w.run(), w.by_page);
        w.space.set_root(roots[2]);
        assert_eq!(w.run(), gp(0));
        check(w);
    }
}

/// A kick before entry is answered at once, nothing of the guest having run; one that is taken, and only that, is no
/// more.
pub(crate) fn kick_before_entry(w: &mut World) {
    w.load(&code!("cli"));
    for _ in 0..2 {
        w.cpu.kicker().kick();
        assert_eq!(w.enter(), Exit::Kick);
        assert_eq!(w.regs.rip, CODE_VA);
        assert!(!w.cpu.take_kick(), "answered already");
        w.cpu.kicker().kick();
        assert!(w.cpu.take_kick() && !w.cpu.take_kick());
        assert_eq!(w.enter(), gp(0));
    }
    assert_eq!(w.run(), gp(0));
}

/// Kicks, from another thread and by deadline, stop a guest that never would, wherever they find it, and harm nothing.
pub(crate) fn kicks_while_running(w: &mut World) {
    let deadlines = w.cpu.kicker();
    let kicked = Kicked::by(w.cpu.kicker());
    // Counts in rcx and in xmm0; both must agree at every stop. The hypercall makes kicks meet the stub.
    w.load(&code!(
        "pxor xmm0, xmm0",
        "xor ecx, ecx",
        "mov eax, 1",
        "movq xmm1, rax",
        "4:",
        "inc rcx",
        "paddq xmm0, xmm1",
        "movq rdx, xmm0",
        "cmp rcx, rdx",
        "jne 5f",
        "test ecx, 0x3ff",
        "jnz 4b",
        "call rbx",
        "jmp 4b",
        "5:",
        "ud2",
    ));
    w.regs.rbx = HYPERCALL_VA;
    deadlines.arm(1);
    let (mut kicks, mut calls) = (0, 0_u64);
    while kicks < 2000 || calls < 2000 {
        match w.enter() {
            Exit::Kick => kicks += 1,
            // Not after a kick, or a deadline shorter than the way in would leave the guest where it is for good.
            exit if exit == w.by_page => {
                calls += 1;
                deadlines.arm(1 + calls * 997 % 40_000);
            }
            other => panic!("{other:?} at {:#x}, rcx {:#x} rdx {:#x}", w.regs.rip, w.regs.rcx, w.regs.rdx),
        }
        if calls > 2_000_000 {
            panic!("{kicks} kicks in {calls} calls");
        }
    }
    deadlines.arm(0);
    drop(kicked);
}

/// A deadline stops a running guest.
pub(crate) fn deadline(w: &mut World) {
    let kicker = w.cpu.kicker();
    w.load(&code!("4:", "jmp 4b"));
    for ns in [1, 1_000, 1_000_000] {
        kicker.arm(ns);
        assert_eq!(w.enter(), Exit::Kick);
        assert_eq!(w.regs.rip, CODE_VA);
    }
    kicker.arm(1_000_000_000_000);
    kicker.arm(0);
    w.load(&code!("cli"));
    assert_eq!(w.run(), gp(0));
}

/// Registers that no processor would load are the guest's fault, not the engine's.
pub(crate) fn unloadable_registers(w: &mut World) {
    w.load(&code!("cli"));
    let good = w.regs;
    w.regs.rip = 1 << 63;
    assert_eq!(w.run(), gp(0));
    w.regs = Regs { fs_base: 1 << 63, ..good };
    assert_eq!(w.run(), gp(0));
    w.regs = Regs { rflags: !0x100, rsp: 0x8000_0000_0000_0000, ..good };
    assert_eq!(w.run(), gp(0));
    assert_eq!((w.regs.rip, w.regs.rflags & 0x3000), (CODE_VA, 0), "IOPL stays 0");
    w.regs = good;
    assert_eq!(w.run(), gp(0));
}

/// The guest reads the machine-to-physical table where the engine says, and cannot write it.
pub(crate) fn machine_to_physical(w: &mut World) {
    let va = w.engine.info().m2p_va;
    let frame = w.layout.m2p.start;
    w.memory.store_u64(crate::machine::memory::Mfn(frame).maddr(), 0x5a5a).unwrap();
    w.regs.rax = va;
    assert_eq!(w.exec(&code!("mov rbx, [rax]", "cli")), gp(0));
    assert_eq!(w.regs.rbx, 0x5a5a);
    assert_eq!(w.exec(&code!("mov [rax], rbx")), pf(0b111, va));
}

/// The guest's time-stamp counter is the host's plus what the engine says.
pub(crate) fn time_stamp_counter(w: &mut World) {
    let host = crate::machine::time::rdtsc;
    let offset = w.engine.info().tsc_offset;
    assert!(w.engine.info().tsc_khz > 1000);
    for _ in 0..3 {
        w.load(&code!("rdtsc", "shl rdx, 32", "or rax, rdx", "cli"));
        let before = host();
        assert_eq!(w.run(), gp(0));
        let width = host().wrapping_sub(before);
        let since = w.regs.rax.wrapping_sub(offset).wrapping_sub(before);
        assert!(since <= width, "{since:#x} after the start of {width:#x}, offset {offset:#x}");
    }
}

/// Many pages, scattered both ways, in one batch: all there, then read-only, then gone.
pub(crate) fn scattered_batch(w: &mut World) {
    const PAGES: u64 = 512;
    let va = |i: u64| 0x3000_0000 + (i * 37 % PAGES) * 5 * PAGE_SIZE;
    let frames: Vec<_> = (0..PAGES).map(|_| w.frame()).collect();
    let frame = |i: u64| frames[(i * 101 % PAGES) as usize];
    for i in 0..PAGES {
        w.map(va(i), frame(i), DATA);
    }
    for i in 0..PAGES {
        (w.regs.rax, w.regs.rbx) = (va(i), i + 1);
        assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
        assert_eq!(w.memory.load_u64(frame(i).maddr()), Ok(i + 1));
    }
    for i in 0..PAGES {
        w.map(va(i), frame(i), TEXT | pte::NX);
    }
    for i in 0..PAGES {
        w.regs.rax = va(i);
        assert_eq!(w.exec(&code!("mov rbx, [rax]", "mov [rax], rbx")), pf(0b111, va(i)));
        assert_eq!(w.regs.rbx, i + 1);
    }
    for i in 0..PAGES {
        w.set(va(i), 0);
    }
    for i in 0..PAGES {
        w.regs.rax = va(i);
        assert_eq!(w.exec(&code!("mov rbx, [rax]")), pf(0b100, va(i)));
    }
}

/// A large page maps all of its frames; TABLE with PSE set is what L2 entries of that kind are made of.
pub(crate) fn large_pages(w: &mut World) {
    const VA: u64 = 0x4000_0000;
    while !w.frame().0.is_multiple_of(512) {}
    let base = w.frame().0 - 1;
    for _ in 0..510 {
        w.frame();
    }
    let entry = w.entry(VA, 2);
    w.write(entry, 2, pte::make(base, TABLE | pte::PSE | pte::DIRTY));
    for page in [0u64, 3, 511] {
        (w.regs.rax, w.regs.rbx) = (VA + page * PAGE_SIZE, page + 7);
        assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
        assert_eq!(w.memory.load_u64(crate::machine::memory::Mfn(base + page).maddr()), Ok(page + 7));
    }
    w.write(entry, 2, 0);
    assert_eq!(w.exec(&code!("mov [rax], rbx")), pf(0b110, VA + 511 * PAGE_SIZE));
}
