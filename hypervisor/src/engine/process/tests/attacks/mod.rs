//! A hostile guest, from inside: every way to the host that x86 and Linux offer code at CPL 3.
//!
//! Each test is one claim of the threat model (`docs/process-engine.md`) and tries to break it. A call that
//! did reach Linux would show: the process would exit, fork or fault elsewhere, and the expected exit would
//! not come.

mod user;

use paravane_abi::pte;

use super::super::area::{BOARD, CODE, CODE_SIZE, ROOM, ROOM_SIZE, room, room_va};
use super::super::stub::{self, KIND_HYPERCALL, Place};
use super::world;
use crate::engine::Exit;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::testing::engine::{DATA, DATA_VA, STACK_TOP, TABLE, World, code, gp, pf};
use crate::x86::exception::Fault;

/// Asserts that the guest can still be entered and executes what it is given.
fn is_well(w: &mut World) {
    w.regs.rsp = STACK_TOP;
    assert_eq!(w.exec(&code!("push rax", "mov rbx, 0x600d", "cli")), gp(0));
    assert_eq!(w.regs.rbx, 0x600d);
}

#[test]
fn no_native_system_call_reaches_linux() {
    let Some(mut w) = world() else { return };
    let snippet = code!("syscall", "cli");
    // 0x4000_0000 marks x32 numbers; the last are numbers that no table has.
    let numbers = (0..1024).chain(0x4000_0000..0x4000_0400).chain([1 << 31, u64::MAX, 1 << 32 | 231]);
    for number in numbers {
        w.regs.rax = number;
        (w.regs.rdi, w.regs.rsi, w.regs.rdx) = (0, 0, 0);
        assert_eq!(w.exec(&snippet), Exit::Syscall, "{number:#x}");
        assert_eq!(w.regs.rax, number, "the number arrives whole");
    }
    is_well(&mut w);
}

#[test]
fn no_int_0x80_reaches_linux() {
    let Some(mut w) = world() else { return };
    let snippet = code!("int 0x80", "cli");
    for number in (0..512).chain([1 << 31, 0x4000_0001]) {
        w.regs.rax = number;
        w.regs.rbx = 0;
        assert_eq!(w.exec(&snippet), gp(0x80 << 3 | 2), "{number:#x}");
        assert_eq!(w.regs.rip, crate::testing::engine::CODE_VA);
    }
    for vector in [code!("int 0x2e"), code!("int 0x20"), code!("int 0xff")] {
        assert!(matches!(w.exec(&vector), Exit::Fault(Fault { vector: 13, .. })));
    }
    is_well(&mut w);
}

#[test]
fn no_sysenter_reaches_linux() {
    let Some(mut w) = world() else { return };
    // #UD where the processor has none in long mode (AMD); otherwise Linux takes it for a 32-bit call, and
    // would read a sixth argument at ebp.
    for number in [1, 2, 252] {
        (w.regs.rax, w.regs.rbp) = (number, DATA_VA);
        let exit = w.exec(&code!("sysenter", "cli"));
        assert!(matches!(exit, Exit::Fault(Fault { vector: 6 | 13, .. })), "{exit:?}");
    }
    is_well(&mut w);
}

#[test]
fn no_call_from_a_32_bit_segment_reaches_linux() {
    let Some(mut w) = world() else { return };
    // Linux's 32-bit code segment, 0x23, is in the GDT for all. The snippet lies below 4 GiB.
    let go = |w: &mut World, target: &[u8]| {
        let mut bytes = code!("push 0x23", "push 0x400100", ".byte 0x48, 0xcb").to_vec();
        bytes.resize(0x100, 0x90);
        bytes.extend_from_slice(target);
        w.regs.rsp = STACK_TOP;
        w.exec(&bytes)
    };
    for call in [[0xcd, 0x80], [0x0f, 0x05], [0x0f, 0x34]] {
        (w.regs.rax, w.regs.rbp) = (252, crate::testing::engine::CODE_VA);
        let exit = go(&mut w, &call);
        assert!(matches!(exit, Exit::Fault(Fault { vector: 6 | 13, .. })), "{call:x?}: {exit:?}");
    }
    // Where the sixth argument cannot be read Linux gives up before it looks at the number, and goes on at what
    // would be its landing pad in a 32-bit process: nothing is there.
    (w.regs.rax, w.regs.rbp) = (252, 0);
    let exit = go(&mut w, &[0x0f, 0x34]);
    const FETCH: u32 = 0b1_0000;
    assert!(
        matches!(exit, Exit::Fault(Fault { vector: 6 | 13, .. }))
            || matches!(exit, Exit::Fault(Fault { vector: 14, error_code, address })
                if error_code & FETCH != 0 && address == w.regs.rip),
        "{exit:?}"
    );
    is_well(&mut w);
}

#[test]
fn the_vsyscall_page_is_not_in_the_guest_s_world() {
    let Some(mut w) = world() else { return };
    const PAGE: u64 = 0xffff_ffff_ff60_0000;
    for entry in [PAGE, PAGE + 0x400, PAGE + 0x800] {
        (w.regs.rax, w.regs.rdi, w.regs.rsp) = (entry, DATA_VA, STACK_TOP);
        assert_eq!(w.exec(&code!("call rax", "cli")), pf(0b1_0100, entry));
        assert_eq!((w.regs.rip, w.regs.rsp), (entry, STACK_TOP - 8));
    }
    w.regs.rax = PAGE;
    assert_eq!(w.exec(&code!("mov rbx, [rax]")), pf(0b100, PAGE));
    is_well(&mut w);
}

/// Every SYSCALL in the stub, entered with the guest's own registers, gets nothing done.
#[test]
fn our_own_system_call_instructions_are_useless() {
    let Some(mut w) = world() else { return };
    let sites = stub::code().windows(2).enumerate().filter(|(_, b)| *b == [0x0f, 0x05]);
    let sites: Vec<u64> = sites.map(|(i, _)| CODE + i as u64).collect();
    assert!(sites.contains(&(stub::address(Place::HandedOver) - 2)));
    for site in sites {
        for number in
            [libc::SYS_exit_group, libc::SYS_munmap, libc::SYS_mmap, libc::SYS_futex, libc::SYS_ioctl]
        {
            w.regs.rax = number as u64;
            (w.regs.rdi, w.regs.rsi, w.regs.rcx) = (0, CODE, site);
            assert_eq!(w.exec(&code!("jmp rcx")), gp(0), "{number} at {site:#x}");
        }
    }
    is_well(&mut w);
}

/// A guest can enter the stub anywhere; it stops, dies alone or continues, and the monitor is unharmed.
#[test]
fn jumping_anywhere_into_the_stub_is_harmless() {
    let mut deaths = 0;
    let Some(mut w) = world() else { return };
    for offset in 0..stub::code().len() as u64 {
        for fill in [0, CODE, room_va(0), room_va(room::STACK + 0x800), u64::MAX] {
            w.load(&code!("jmp rcx"));
            w.regs = crate::x86::registers::Regs {
                rax: fill,
                rbx: fill,
                rdx: fill,
                rsi: fill,
                rdi: fill & 0x1ff,
                rbp: fill,
                r8: 0,
                r12: fill,
                rcx: CODE + offset,
                rsp: STACK_TOP,
                rip: w.regs.rip,
                rflags: 0x202,
                ..Default::default()
            };
            // Some places lead back into guest code for a while; a deadline ends that.
            w.cpu.kicker().arm(2_000_000);
            let exit = w.enter();
            w.cpu.kicker().arm(0);
            if let Exit::Dead(_) = exit {
                deaths += 1;
                w = world().unwrap();
            }
        }
        if offset % 64 == 0 {
            is_well(&mut w);
        }
    }
    println!("{deaths} guests died of it");
}

#[test]
fn a_forged_exit_is_only_an_exit() {
    let Some(mut w) = world() else { return };
    w.regs.rcx = stub::address(Place::HandedOver) - 2;
    (w.regs.rax, w.regs.rdi) = (u64::from(stub::HANDOVER_NR), KIND_HYPERCALL);
    assert_eq!(w.exec(&code!("jmp rcx")), Exit::Hypercall);
    is_well(&mut w);
    // One that the stub never makes ends the guest.
    w.regs.rcx = stub::address(Place::HandedOver) - 2;
    (w.regs.rax, w.regs.rdi, w.regs.rsi) = (u64::from(stub::HANDOVER_NR), 11, u64::MAX);
    assert!(matches!(w.exec(&code!("jmp rcx")), Exit::Dead(_)));
    assert!(matches!(w.run(), Exit::Dead(_)), "and for good");
}

/// Page faults made up on a page that the process has, as many as one likes, end nothing: they are retried, and a kick
/// gets through.
#[test]
fn forged_page_faults_on_a_mapped_page_end_nothing() {
    let Some(mut w) = world() else { return };
    let (image, frame, info) = (room_va(room::FPU_IN), room_va(room::STACK), room_va(room::STACK + 0x1000));
    // The frame says that a load from DATA_VA faulted, where there is a page, and that it goes on where that is counted
    // and the frame is handed over again.
    w.load(&code!(
        "mov [rdx + 224], rbx",
        "mov dword ptr [rsi + 8], 1",
        "mov qword ptr [rdx + 192], 4",
        "mov qword ptr [rdx + 200], 14",
        "mov [rdx + 216], r9",
        "lea r13, [rip + 5f]",
        "mov [rdx + 168], r13",
        "mov [rdx + 104], rdi",
        "mov [rdx + 112], rsi",
        "mov [rdx + 136], rdx",
        "mov [rdx + 144], rax",
        "mov [rdx + 152], rcx",
        "mov [rdx + 48], r9",
        "5:",
        "inc qword ptr [r9]",
        "cmp qword ptr [r9], 1000",
        "je 6f",
        "jmp rcx",
        "6:",
        "cli",
    ));
    w.poke(DATA_VA, 0);
    (w.regs.rax, w.regs.rdx, w.regs.rsi, w.regs.rdi) = (u64::from(stub::HANDOVER_NR), frame, info, 11);
    (w.regs.rbx, w.regs.rcx, w.regs.r9) = (image, stub::address(Place::HandedOver) - 2, DATA_VA);
    assert_eq!(w.run(), gp(0));
    assert_eq!(w.peek(DATA_VA), 1000);
    is_well(&mut w);
}

/// A forged signal frame whose FPU image the processor refuses.
#[test]
fn a_forged_frame_with_a_broken_fpu_image() {
    let Some(mut w) = world() else { return };
    let image = room_va(room::FPU_IN);
    let (frame, info) = (room_va(room::STACK), room_va(room::STACK + 0x1000));
    w.poke(DATA_VA, image);
    (w.regs.rax, w.regs.rdx, w.regs.rsi, w.regs.rdi) = (u64::from(stub::HANDOVER_NR), frame, info, 11);
    (w.regs.rbx, w.regs.rcx, w.regs.r9) = (image, stub::address(Place::HandedOver) - 2, DATA_VA);
    // XSTATE_BV with a bit that XCR0 cannot have; si_code positive; a vector; rip somewhere.
    let exit = w.exec(&code!(
        "movabs r12, 0x4000000000000000",
        "mov [rbx + 512], r12",
        "mov [rdx + 224], rbx",
        "mov dword ptr [rsi + 8], 128",
        "mov qword ptr [rdx + 200], 13",
        "jmp rcx",
    ));
    assert_eq!(exit, gp(0));
    w.load(&code!("cli"));
    assert_eq!(w.run(), gp(0), "the load faults, which is reported as the guest's fault");
    is_well(&mut w);
}

/// Scribbling all over the room hurts nobody but the scribbler.
#[test]
fn the_room_is_the_guest_s_to_ruin() {
    let Some(mut w) = world() else { return };
    for pattern in [0, u64::MAX, 0x4141_4141_4141_4141, CODE] {
        (w.regs.rdi, w.regs.rcx, w.regs.rax) = (room_va(0), ROOM_SIZE / 8, pattern);
        assert_eq!(w.exec(&code!("cld", "rep stosq", "cli")), gp(0));
        is_well(&mut w);
    }
}

#[test]
fn the_stub_s_code_and_board_cannot_be_written() {
    let Some(mut w) = world() else { return };
    for va in [CODE, CODE + CODE_SIZE - 8, CODE + BOARD, CODE + BOARD + 0x2000] {
        w.regs.rax = va;
        assert_eq!(w.exec(&code!("mov [rax], rbx")), pf(0b110, va));
    }
    is_well(&mut w);
}

#[test]
fn our_addresses_are_not_the_guest_s_to_map() {
    for va in [CODE, CODE + CODE_SIZE, CODE + ROOM, CODE + BOARD, 0x7fff_f000_0000] {
        let Some(mut w) = world() else { return };
        let frame = w.frame();
        w.map(va, frame, DATA);
        w.memory.store_u64(frame.maddr(), 0x1234).unwrap();
        (w.regs.rax, w.regs.rbx) = (va, 0);
        let exit = w.exec(&code!("mov rbx, [rax]", "cli"));
        // Either the address is said to be out of reach, or it holds what it always does; never the frame.
        assert!(matches!(exit, Exit::Dead(m) if m.contains("linear addresses")) || w.regs.rbx != 0x1234);
    }
}

/// The hypervisor's frames cannot be mapped writable, whatever the tables say, and frames that do not exist not at all.
#[test]
fn frames_that_are_not_the_guest_s() {
    const VA: u64 = 0x2000_0000;
    let Some(mut w) = world() else { return };
    w.regs.rax = VA;
    for frame in [0, w.layout.m2p.start] {
        w.set(VA, pte::make(frame, DATA));
        assert_eq!(w.exec(&code!("mov rbx, [rax]", "mov [rax], rbx")), pf(0b111, VA));
    }
    let shared = w.layout.shared_info;
    w.map(VA, shared, DATA);
    assert_eq!(w.exec(&code!("mov [rax], rbx", "cli")), gp(0));
    for frame in [w.layout.total, w.layout.total + 1, (1 << 40) - 1] {
        w.set(VA, pte::make(frame, DATA));
        assert_eq!(w.exec(&code!("mov rbx, [rax]")), pf(0b1101, VA));
    }
    let hole = w.entry(VA, 2);
    w.write(hole, 2, pte::make(1 << 39, TABLE));
    assert_eq!(w.exec(&code!("mov rbx, [rax]")), pf(0b100, VA));
    is_well(&mut w);
}

/// A signal stack overrun on purpose: the guest dies, with a reason.
#[test]
fn a_guest_that_leaves_no_room_for_signals_dies_alone() {
    let Some(mut w) = world() else { return };
    w.load(&code!("cli"));
    w.regs.rsp = room_va(room::STACK) + 0x200;
    let exit = w.run();
    assert!(matches!(exit, Exit::Dead(m) if m.contains("its own way out")), "{exit:?}");
}

/// More scattered pages than Linux allows mappings: nothing runs out, and every page is there.
#[test]
fn mappings_without_end() {
    let Some(mut w) = world() else { return };
    // One L1 table with two frames by turns, so that no two pages are one mapping, under 200 L2 entries.
    const BASE: u64 = 0x1_0000_0000;
    const CHUNK: u64 = 1 << 21;
    let frames = [w.frame(), w.frame()];
    for (i, frame) in (0..512).zip(frames.iter().cycle()) {
        w.map(BASE + i * PAGE_SIZE, *frame, DATA);
    }
    let first = w.entry(BASE, 2);
    let table = w.memory.load_u64(first).unwrap();
    for chunk in 1..200 {
        let entry = w.entry(BASE + chunk * CHUNK, 2);
        w.write(entry, 2, table);
    }
    w.memory.store_u64(frames[0].maddr(), 0xaaaa).unwrap();
    w.memory.store_u64(frames[1].maddr(), 0xbbbb).unwrap();
    (w.regs.rax, w.regs.rcx, w.regs.rbx, w.regs.rdx) = (BASE, 200 * 512, 0, PAGE_SIZE);
    let exit = w.exec(&code!("4:", "add rbx, [rax]", "add rax, rdx", "dec rcx", "jnz 4b", "cli"));
    assert_eq!((exit, w.regs.rbx), (gp(0), 200 * 256 * (0xaaaa + 0xbbbb)));
    is_well(&mut w);
}

/// More 2-MiB regions than the engine keeps, all through one L1 table.
#[test]
fn regions_without_end() {
    let Some(mut w) = world() else { return };
    const BASE: u64 = 0x100_0000_0000;
    const CHUNK: u64 = 1 << 21;
    let frame = w.frame();
    w.map(BASE, frame, DATA);
    w.memory.store_u64(frame.maddr(), 1).unwrap();
    let l1 = w.entry(BASE, 2);
    let l2 = w.entry(BASE, 3);
    let (l1, l2) = (w.memory.load_u64(l1).unwrap(), w.memory.load_u64(l2).unwrap());
    let l2_table = Maddr(pte::mfn(l2) * PAGE_SIZE);
    let l3_entry = w.entry(BASE, 3);
    for i in 0..512 {
        w.memory.store_u64(Maddr(l2_table.0 + i * 8), l1).unwrap();
        w.memory.store_u64(Maddr(l3_entry.0 - l3_entry.offset() + i * 8), l2).unwrap();
    }
    (w.regs.rax, w.regs.rcx, w.regs.rbx, w.regs.rdx) = (BASE, 20_000, 0, CHUNK);
    let exit = w.exec(&code!("4:", "add rbx, [rax]", "add rax, rdx", "dec rcx", "jnz 4b", "cli"));
    assert_eq!((exit, w.regs.rbx), (gp(0), 20_000));
    is_well(&mut w);
}

/// More roots than processes, each with its own page at one address.
#[test]
fn roots_without_end() {
    let Some(mut w) = world() else { return };
    const VA: u64 = 0x2000_0000;
    const ROOTS: u64 = crate::engine::process::space::MAX_SPACES as u64 + 8;
    let leaf = w.get(crate::testing::engine::CODE_VA);
    let roots: Vec<_> = (0..ROOTS)
        .map(|i| {
            let (root, frame) = (w.new_root(), w.frame());
            w.memory.store_u64(frame.maddr(), i).unwrap();
            let entry = w.entry_in(root, VA, 1);
            w.write(entry, 1, pte::make(frame.0, DATA));
            let entry = w.entry_in(root, crate::testing::engine::CODE_VA, 1);
            w.write(entry, 1, leaf);
            root
        })
        .collect();
    w.load(&code!("mov rbx, [rax]", "cli"));
    let start = w.regs.rip;
    for round in 0..3 {
        for (i, root) in (0u64..).zip(&roots) {
            w.space.set_root(*root);
            (w.regs.rip, w.regs.rax) = (start, VA);
            assert_eq!(w.run(), gp(0));
            assert_eq!(w.regs.rbx, i, "round {round}");
        }
    }
}

/// The mirror copes with page tables that refer to themselves, at every level.
#[test]
fn tables_that_refer_to_themselves() {
    let Some(mut w) = world() else { return };
    let root = w.space.root();
    // Slot 100 of the root is the root: its linear page table, read-only.
    let slot = Maddr(root.maddr().0 + 100 * 8);
    w.write(slot, 4, pte::make(root.0, TABLE & !pte::RW));
    let linear = |va: u64| (100 << 39) | (va >> 9 & !7 & ((1 << 39) - 1));
    w.regs.rax = linear(crate::testing::engine::CODE_VA);
    let leaf = w.get(crate::testing::engine::CODE_VA);
    assert_eq!(w.exec(&code!("mov rbx, [rax]", "cli")), gp(0));
    assert_eq!(w.regs.rbx & !pte::DIRTY, leaf & !pte::DIRTY);
    // A change seen through it, and a change of what it goes through.
    let frame = w.frame();
    w.map(0x2000_0000, frame, DATA);
    w.regs.rax = linear(0x2000_0000);
    assert_eq!(w.exec(&code!("mov rbx, [rax]", "cli")), gp(0));
    assert_eq!(w.regs.rbx, pte::make(frame.0, DATA));
    w.write(slot, 4, 0);
    let at = w.regs.rax;
    assert_eq!(w.exec(&code!("mov rbx, [rax]")), pf(0b100, at));
    is_well(&mut w);
}
