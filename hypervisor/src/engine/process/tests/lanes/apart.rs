//! Virtual CPUs that run at once, and leave each other alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::*;
use crate::testing::engine::{CODE_VA, DATA, HYPERCALL_VA, code, gp, pf};

/// Each waits for the other to have taken its turn: both are in the guest.
#[test]
fn they_run_in_one_process_at_once() {
    // rax: the word; rbx: one's own parity; rcx: how many turns.
    let Some((d, all)) = domain(
        2,
        &code!(
            "4:",
            "mov rdx, [rax]",
            "mov rsi, rdx",
            "and esi, 1",
            "cmp rsi, rbx",
            "je 5f",
            "pause",
            "jmp 4b",
            "5:",
            "lock inc qword ptr [rax]",
            "dec rcx",
            "jnz 4b",
            "cli",
        ),
    ) else {
        return;
    };
    let turns = |vcpu: &mut Vcpu, parity: u64| {
        (vcpu.regs.rax, vcpu.regs.rbx, vcpu.regs.rcx) = (DATA_VA, parity, 100);
        assert_eq!(vcpu.run(&d), gp(0));
        assert_eq!((vcpu.regs.rbx, vcpu.regs.rcx), (parity, 0));
    };
    let (processes, _) = with_others(
        all,
        |vcpu, _| turns(vcpu, 1),
        |vcpu| {
            turns(vcpu, 0);
            vcpu.cpu.processes()
        },
    );
    assert_eq!(processes.len(), 1);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", processes[0]));
    // Who is not root may not look where core dumps are forbidden.
    assert!(tasks.map_or(4, Iterator::count) == 4);
}

/// Hypercalls, system calls and faults of several, each with its own registers and vector state.
#[test]
fn registers_are_each_one_s_own() {
    const VCPUS: u32 = 4;
    let Some((d, all)) = domain(
        VCPUS,
        &code!(
            "movq xmm5, r15",
            "call rbx",
            "syscall",
            "ud2",
            "movq r14, xmm5",
            "rdfsbase r13",
            "rdgsbase r12",
            "cli",
        ),
    ) else {
        return;
    };
    let rounds = |vcpu: &mut Vcpu, number: u64| {
        for round in 0..300 {
            let mark = number << 32 | round;
            vcpu.goes_on_at(CODE_VA);
            (vcpu.regs.r15, vcpu.regs.rbx) = (mark, HYPERCALL_VA + 17 * 32);
            // All use the one page of stack.
            vcpu.regs.rsp = STACK_TOP - number * 256;
            (vcpu.regs.fs_base, vcpu.regs.gs_base) = (mark, mark + 1);
            assert_eq!((vcpu.run(&d), vcpu.regs.r15), (Exit::Syscall, mark));
            assert_eq!((vcpu.run(&d), vcpu.regs.rip), (Exit::Syscall, CODE_VA + 9));
            assert_eq!(vcpu.run(&d), crate::testing::engine::fault(6));
            vcpu.regs.rip += 2;
            assert_eq!(vcpu.run(&d), gp(0));
            let Regs { r12, r13, r14, .. } = vcpu.regs;
            assert_eq!((r12, r13, r14), (mark + 1, mark, mark));
        }
    };
    with_others(all, |vcpu, number| rounds(vcpu, number as u64), |vcpu| rounds(vcpu, 0));
}

/// A kick makes the virtual CPU leave that it is for, and no other.
#[test]
fn kicks_are_for_one() {
    let Some((d, all)) = domain(2, &code!("4:", "pause", "cmp qword ptr [rax], 0", "je 4b", "cli")) else {
        return;
    };
    let stop = d.at(all[0].space.root(), DATA_VA);
    let (entries, inside) = (AtomicU64::new(0), AtomicBool::new(false));
    with_others(
        all,
        |vcpu, _| {
            vcpu.regs.rax = DATA_VA;
            loop {
                inside.store(true, SeqCst);
                entries.fetch_add(1, SeqCst);
                match vcpu.enter(&d) {
                    Exit::Kick => {}
                    exit => return assert_eq!(exit, gp(0)),
                }
            }
        },
        |vcpu| {
            while !inside.load(SeqCst) {
                std::thread::yield_now();
            }
            vcpu.regs.rax = DATA_VA;
            for _ in 0..50 {
                vcpu.cpu.kicker().arm(200_000);
                assert_eq!(vcpu.enter(&d), Exit::Kick);
            }
            d.poke(stop, 1);
            assert_eq!(vcpu.run(&d), gp(0));
        },
    );
    assert_eq!(entries.load(SeqCst), 1, "nobody kicked the other");
}

/// Signals that arrive together interrupt each other's first instruction, which all lanes share.
#[test]
fn signals_that_arrive_together_are_each_one_s_own() {
    let Some(mut w) = super::second() else { return };
    let pid = w.cpu.processes()[0];
    // Who is not root may not look where core dumps are forbidden.
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    let tasks: Vec<i32> = tasks.map(|t| t.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    for _ in 0..20 {
        w.load(&code!("mov rcx, 100000", "4:", "dec rcx", "jnz 4b", "cli"));
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGUSR1] {
            for task in &tasks {
                // SAFETY: has no memory arguments. The mappers have all of them blocked.
                assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, *task, signal) }, 0);
            }
        }
        assert_eq!((w.run(), w.regs.rcx), (gp(0), 0), "at {:#x}", w.regs.rip);
    }
}

/// A page that is taken away is away when the one that took it has caught up, wherever the other is.
fn nobody_stores_to_what_was_unmapped(rounds: u64) {
    const VA: u64 = 0x2000_0000;
    let Some(mut w) = world_of(2) else { return };
    let frames = [w.frame(), w.frame()];
    let entry = w.entry(VA, 1);
    w.load(&code!("4:", "inc qword ptr [rax]", "jmp 4b"));
    let (d, all) = split(w, 2);
    let done = AtomicBool::new(false);
    let (faults, stored) = (AtomicU64::new(0), AtomicU64::new(0));
    with_others(
        all,
        |vcpu, _| {
            vcpu.regs.rax = VA;
            while !done.load(SeqCst) {
                match vcpu.enter(&d) {
                    Exit::Fault(f) => {
                        assert_eq!(Exit::Fault(f), pf(0b110, VA));
                        faults.fetch_add(1, SeqCst);
                        std::thread::yield_now();
                    }
                    exit => assert_eq!(exit, Exit::Kick),
                }
            }
        },
        |vcpu| {
            let mut last = [0; 2];
            for round in 0..rounds {
                let which = usize::from(round % 2 == 1);
                let (frame, other) = (frames[which].maddr(), frames[1 - which].maddr());
                d.write(entry, paravane_abi::pte::make(frames[which].0, DATA));
                vcpu.catch_up(&d);
                // Every so often it is certain that the other is at it.
                let patience = if round % 4 == 0 { u64::MAX } else { round % 1000 };
                let before = d.peek(frame);
                for _ in 0..patience {
                    if d.peek(frame) != before {
                        break;
                    }
                    std::hint::spin_loop();
                }
                d.write(entry, 0);
                vcpu.catch_up(&d);
                let now = d.peek(frame);
                assert_eq!(d.peek(other), last[1 - which], "round {round}: a store after the page was taken");
                (0..50).for_each(|_| std::hint::spin_loop());
                assert_eq!(d.peek(frame), now, "round {round}: a store after the page was taken");
                stored.fetch_add(u64::from(now != last[which]), SeqCst);
                last[which] = now;
            }
            // It is unmapped: the other comes out.
            done.store(true, SeqCst);
        },
    );
    let (faults, stored) = (faults.into_inner(), stored.into_inner());
    println!("{rounds} rounds: {stored} with a store, {faults} faults");
    assert!(stored >= rounds / 4 && faults != 0);
}

#[test]
fn what_was_unmapped_is_not_stored_to() {
    nobody_stores_to_what_was_unmapped(2000);
}

#[test]
#[ignore = "takes a while: run it alone"]
fn what_was_unmapped_is_not_stored_to_in_many_rounds() {
    nobody_stores_to_what_was_unmapped(100_000);
}

/// Vector state goes with each of them from process to process.
#[test]
fn vector_state_follows_each_from_root_to_root() {
    let Some(mut w) = world_of(3) else { return };
    w.load(&code!("movq r14, xmm5", "movq xmm5, r15", "cli"));
    let leaf = w.get(CODE_VA);
    let roots: Vec<Mfn> = (0..3)
        .map(|_| {
            let root = w.new_root();
            let entry = w.entry_in(root, CODE_VA, 1);
            w.write(entry, 1, leaf);
            root
        })
        .collect();
    let (d, all) = split(w, 3);
    let rounds = |vcpu: &mut Vcpu, number: usize| {
        let mut last = 0;
        for round in 0..300 {
            vcpu.is_in(roots[(round * (number + 1)) % 3], false);
            vcpu.goes_on_at(CODE_VA);
            vcpu.regs.r15 = (number as u64) << 32 | round as u64;
            assert_eq!((vcpu.run(&d), vcpu.regs.r14), (gp(0), last), "{number}: round {round}");
            last = vcpu.regs.r15;
        }
    };
    with_others(all, rounds, |vcpu| rounds(vcpu, 0));
}

/// One of them comes to more roots than there are processes, while the other is in its own all the time.
#[test]
fn a_process_that_another_is_in_is_not_given_away() {
    let Some(mut w) = world_of(2) else { return };
    w.load(&code!("4:", "inc qword ptr [rax + 8]", "cmp qword ptr [rax], 0", "je 4b", "cli", "nop", "cli"));
    let (leaf, stop) = (w.get(CODE_VA), w.mfn_of(DATA_VA).maddr());
    let roots: Vec<Mfn> = (0..crate::engine::process::space::MAX_SPACES + 8)
        .map(|_| {
            let root = w.new_root();
            let entry = w.entry_in(root, CODE_VA, 1);
            w.write(entry, 1, leaf);
            root
        })
        .collect();
    let (d, all) = split(w, 2);
    let entries = AtomicU64::new(0);
    with_others(
        all,
        |vcpu, _| {
            vcpu.regs.rax = DATA_VA;
            loop {
                entries.fetch_add(1, SeqCst);
                match vcpu.enter(&d) {
                    Exit::Kick => {}
                    exit => return assert_eq!(exit, gp(0)),
                }
            }
        },
        |vcpu| {
            let count = Maddr(stop.0 + 8);
            for root in roots.iter().cycle().take(roots.len() * 3) {
                let before = d.peek(count);
                vcpu.is_in(*root, false);
                // Just the last instructions.
                vcpu.goes_on_at(CODE_VA + 12);
                assert_eq!(vcpu.run(&d), gp(0));
                while d.peek(count) == before {
                    std::thread::yield_now();
                }
            }
            d.poke(stop, 1);
        },
    );
    assert_eq!(entries.load(SeqCst), 1, "it was not disturbed");
}
