//! What a guest that is hostile on one virtual CPU can do to another, and to the monitor: no more than to itself.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use proptest::prelude::*;

use super::super::super::area::{Area, CODE, Lane, ROOM_SIZE, STRIDE, room};
use super::super::super::child::HandOver;
use super::super::super::context::{self, FpuAt, Trap};
use super::super::super::cpu::ProcessCpu;
use super::super::super::script::SIGNALS;
use super::super::super::stub::{self, KICK_SIGNAL, KIND_DONE, KIND_HYPERCALL, KIND_KICKED, Place};
use super::super::world_by;
use super::*;
use crate::testing::engine::{CODE_VA, HYPERCALL_VA, code, gp};
use crate::x86::exception::Fault;
use crate::x86::rflags;

/// An address space with the pages of the one in use, and its root.
fn another_root(w: &mut World) -> Mfn {
    let root = w.new_root();
    for va in [CODE_VA, DATA_VA, STACK_TOP - 0x1000, HYPERCALL_VA] {
        let leaf = w.get(va);
        let entry = w.entry_in(root, va, 1);
        w.write(entry, 1, leaf);
    }
    root
}

fn is_honest(exit: Exit) -> bool {
    match exit {
        Exit::Fault(Fault { vector, error_code, .. }) => match vector {
            0 | 1 | 3..=6 | 16 | 17 | 19 => error_code == 0,
            11..=13 => error_code & !0xfffe == 0,
            14 => error_code & !0b1_1111 == 0 && error_code & 0b100 != 0,
            _ => false,
        },
        Exit::Syscall | Exit::Kick => true,
        _ => false,
    }
}

/// Executes a little in an address space, in which it must succeed.
fn is_well(vcpu: &mut Vcpu, d: &Domain, root: Mfn, user: bool) {
    vcpu.is_in(root, user);
    // The snippet at the end of the page.
    vcpu.goes_on_at(CODE_VA + 0xf00);
    assert_eq!((vcpu.run(d), vcpu.regs.rbx), (gp(0), 0x600d));
}

/// A world with `code`, the snippet of [`is_well`], and another root for a user program.
fn user_domain(code: &[u8]) -> Option<(Domain, Vec<Vcpu>, Mfn, Mfn)> {
    let mut w = world_of(2)?;
    let mut page = code.to_vec();
    page.resize(0xf00, 0x90);
    page.extend_from_slice(&code!("mov rbx, 0x600d", "movaps xmm0, xmm1", "cli"));
    w.load(&page);
    let (kernel, user) = (w.space.root(), another_root(&mut w));
    let (d, all) = split(w, 2);
    Some((d, all, kernel, user))
}

/// A thread of a user program writes to the room of another, all over and all the time. What that one does has some end
/// that code at CPL 3 can have, and the kernel goes on, and so does the program.
#[test]
fn a_room_that_is_scribbled_on_is_the_program_s_own_affair() {
    // rdi: the room; rcx: its words. A simple generator of patterns.
    let scribble = code!(
        "4:",
        "mov rdx, rdi",
        "mov rsi, rcx",
        "5:",
        "imul rbx, rbx, 0x5851f42d",
        "add rbx, 0x1405",
        "mov [rdx], rbx",
        "add rdx, 8",
        "dec rsi",
        "jnz 5b",
        "jmp 4b",
    );
    let Some((d, all, kernel, user)) = user_domain(&scribble) else { return };
    let stop = AtomicBool::new(false);
    let victim = Lane::all(2)[0];
    let turns = AtomicU32::new(0);
    let (_, all) = with_others(
        all,
        |vcpu, _| {
            while !stop.load(SeqCst) {
                vcpu.is_in(user, true);
                vcpu.goes_on_at(CODE_VA);
                // The words from the hypercall's block to the resumption's end; then the vector states; then the stack.
                let part = turns.fetch_add(1, SeqCst) % 3;
                let (from, len) = [(0, 0x200), (room::FPU_OUT, 0x8000), (0, ROOM_SIZE)][part as usize];
                (vcpu.regs.rdi, vcpu.regs.rcx, vcpu.regs.rbx) = (victim.room_va(from), len / 8, 0x9e37);
                vcpu.cpu.kicker().arm(3_000_000);
                let exit = vcpu.enter(&d);
                assert!(is_honest(exit), "{exit:?}");
            }
        },
        |vcpu| {
            for round in 0..600 {
                vcpu.is_in(user, true);
                vcpu.goes_on_at(CODE_VA + if round % 3 == 0 { 0xf00 } else { 0xe00 });
                vcpu.cpu.kicker().arm(2_000_000);
                let exit = vcpu.enter(&d);
                assert!(is_honest(exit), "{exit:?}");
                let Regs { rip, fs_base, gs_base, .. } = vcpu.regs;
                assert!([rip, fs_base, gs_base].iter().all(|va| paravane_abi::addr::is_canonical(*va)));
                vcpu.cpu.kicker().arm(0);
                is_well(vcpu, &d, kernel, false);
            }
            stop.store(true, SeqCst);
        },
    );
    for mut vcpu in all {
        is_well(&mut vcpu, &d, user, true);
        is_well(&mut vcpu, &d, kernel, false);
    }
}

/// A user program that destroys its process on one virtual CPU has a #GP on each, and goes on.
#[test]
fn a_spoilt_process_is_replaced_for_all_who_are_in_it() {
    let code = code!("4:", "inc qword ptr [rax]", "jmp 4b", "cli");
    let Some((d, all, kernel, user)) = user_domain(&code) else { return };
    let count = d.at(user, DATA_VA);
    let inside = AtomicU32::new(0);
    let (_, all) = with_others(
        all,
        |vcpu, _| {
            for _ in 0..20 {
                vcpu.is_in(user, true);
                vcpu.goes_on_at(CODE_VA);
                vcpu.regs.rax = DATA_VA;
                inside.fetch_add(1, SeqCst);
                assert_eq!(vcpu.run(&d), gp(0), "its process is gone");
                assert_eq!(vcpu.regs.rip, CODE_VA, "and its registers are what they were");
                is_well(vcpu, &d, kernel, false);
            }
        },
        |vcpu| {
            for round in 1..=20 {
                while inside.load(SeqCst) < round {
                    std::thread::yield_now();
                }
                let before = d.peek(count);
                while d.peek(count) == before {
                    std::thread::yield_now();
                }
                vcpu.is_in(user, true);
                vcpu.goes_on_at(CODE_VA + 5);
                vcpu.regs.rsp = Lane::all(2)[0].room_va(room::STACK) + 0x200;
                assert_eq!(vcpu.run(&d), gp(0), "no room for a signal's frame");
                is_well(vcpu, &d, kernel, false);
            }
        },
    );
    for mut vcpu in all {
        is_well(&mut vcpu, &d, user, true);
    }
}

/// The process is replaced after one has looked whether it was, and before that one has entered it: its vector state
/// is where it was, not where the entry would have had it.
#[test]
fn vector_state_survives_an_entry_that_came_too_late() {
    let taken = Cell::new(None);
    let made = world_by(|memory, layout| {
        let mut machine = ProcessMachine::with_lowest(memory, layout, Lowest::ASSUMED, 2)?;
        taken.set(machine.cpus[1].take());
        Ok(machine)
    });
    let (Some(mut w), Some(mut late)) = (made, taken.take()) else { return };
    late.settle_here().unwrap();
    w.load(&code!("movq r14, xmm5", "movq xmm5, r15", "cli"));
    let user = w.space.root();
    let (d, mut all) = split(w, 1);
    let mut space = VcpuSpace::new(user, &d.log.lock().unwrap());
    let mut swap = |late: &mut ProcessCpu, new: u64| {
        let mut regs = Regs { rip: CODE_VA, rsp: STACK_TOP, rflags: 0x202, r15: new, ..Regs::default() };
        late.catch_up(&mut space, &d.log.lock().unwrap(), &d.memory).unwrap();
        assert_eq!((late.enter(&mut regs, &space, &d.memory), regs.rip), (gp(0), CODE_VA + 10));
        regs.r14
    };
    let mut spoil = |late: &mut ProcessCpu| {
        let before = late.shared.upheavals();
        all[0].is_in(user, true);
        all[0].goes_on_at(CODE_VA);
        all[0].regs.rsp = Lane::all(2)[0].room_va(room::STACK) + 0x200;
        assert_eq!((all[0].run(&d), all[0].regs.rip), (gp(0), CODE_VA), "no room for a signal's frame");
        assert_eq!((late.upheavals, late.shared.upheavals()), (before, before + 1));
        // It has just looked.
        late.upheavals = before + 1;
    };
    assert_eq!(swap(&mut late, 0x11), 0);
    spoil(&mut late);
    assert_eq!(swap(&mut late, 0x22), 0x11, "it was in the signal's frame");
    let given = late.save().unwrap();
    assert_eq!(swap(&mut late, 0x33), 0x22);
    late.load(&given).unwrap();
    spoil(&mut late);
    assert_eq!(swap(&mut late, 0x44), 0x22, "it was given");
}

/// Nor does it get anywhere by the other's way into the host, or by the mapper's.
#[test]
fn another_lane_s_code_is_only_code() {
    let Some((d, mut all, kernel, user)) = user_domain(&code!("jmp rcx")) else { return };
    let lanes = Lane::all(2);
    let places = [Place::HandedOver, Place::Errand];
    for user_mode in [false, true] {
        for (lane, place) in lanes.iter().flat_map(|lane| places.map(|place| (*lane, place))) {
            let own = lane.is_first() && matches!(place, Place::HandedOver);
            for kind in [KIND_HYPERCALL, KIND_DONE, KIND_KICKED, 11] {
                if own && kind != KIND_HYPERCALL {
                    continue;
                }
                let vcpu = &mut all[0];
                vcpu.is_in(if user_mode { user } else { kernel }, user_mode);
                vcpu.goes_on_at(CODE_VA);
                vcpu.regs.rcx = stub::address_in(lane, place) - 2;
                (vcpu.regs.rax, vcpu.regs.rdi) = (u64::from(stub::HANDOVER_NR), kind);
                let exit = vcpu.run(&d);
                let by_own = own && !user_mode && exit == Exit::Hypercall;
                assert!(by_own || exit == gp(0), "{lane:?} {place:?} {kind:#x}: {exit:?}");
                is_well(vcpu, &d, kernel, false);
            }
        }
    }
    // Anywhere in the other's copy, it stops or goes on; nothing happens to the other.
    for offset in (0..stub::code().len() as u64).step_by(3) {
        let vcpu = &mut all[0];
        vcpu.is_in(user, true);
        vcpu.goes_on_at(CODE_VA);
        (vcpu.regs.rcx, vcpu.regs.rdi) = (CODE + STRIDE + offset, KICK_SIGNAL as u64);
        vcpu.cpu.kicker().arm(1_000_000);
        let exit = vcpu.enter(&d);
        vcpu.cpu.kicker().arm(0);
        assert!(!matches!(exit, Exit::Dead(_)), "{offset:#x}: {exit:?}");
    }
    for mut vcpu in all {
        is_well(&mut vcpu, &d, user, true);
        is_well(&mut vcpu, &d, kernel, false);
    }
}

/// One that hides from kicks in our code is found by its own thread's clock; the other does not answer for it.
#[test]
fn who_hides_is_found_though_another_is_not_hiding() {
    let Some((d, all, kernel, user)) = user_domain(&code!("4:", "jmp 4b", "nop", "nop", "jmp rcx")) else {
        return;
    };
    let stop = AtomicBool::new(false);
    let refused = AtomicU32::new(0);
    with_others(
        all,
        |vcpu, _| {
            while !stop.load(SeqCst) {
                vcpu.is_in(user, true);
                vcpu.goes_on_at(CODE_VA);
                vcpu.cpu.kicker().arm(2_000_000);
                match vcpu.enter(&d) {
                    Exit::Kick => {}
                    exit => {
                        assert_eq!(exit, gp(0));
                        refused.fetch_add(1, SeqCst);
                    }
                }
                is_well(vcpu, &d, kernel, false);
            }
        },
        |vcpu| {
            for offset in (0..stub::code().len() as u64).step_by(61) {
                vcpu.is_in(user, true);
                vcpu.goes_on_at(CODE_VA + 4);
                (vcpu.regs.rcx, vcpu.regs.rdi) = (CODE + offset, KICK_SIGNAL as u64);
                vcpu.cpu.kicker().arm(1_000_000);
                let exit = vcpu.enter(&d);
                vcpu.cpu.kicker().arm(0);
                assert!(!matches!(exit, Exit::Dead(_)), "{offset:#x}: {exit:?}");
                is_well(vcpu, &d, kernel, false);
            }
            stop.store(true, SeqCst);
        },
    );
    println!("{} times the other's process was replaced", refused.into_inner());
}

const MARK: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// What one virtual CPU's kernel left in the rooms of a process is not there for another's user program of another
/// address space.
#[test]
fn no_lane_s_room_holds_anything_of_another_address_space() {
    let leave = code!("movq xmm7, rdx", "syscall", "mov rax, rdx", "pxor xmm7, xmm7", "ud2");
    let mut count = code!(
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
    );
    let Some(mut w) = world_of(2) else { return };
    let mut page = leave;
    page.resize(0x100, 0x90);
    page.append(&mut count);
    w.load(&page);
    let roots: Vec<_> =
        (0..3 * crate::engine::process::space::MAX_SPACES).map(|_| another_root(&mut w)).collect();
    let (d, mut all) = split(w, 2);
    let [first, second] = &mut all[..] else { panic!() };
    second.cpu.settle_here().unwrap();
    let leave_marks = |vcpu: &mut Vcpu, root: Mfn| {
        vcpu.is_in(root, false);
        vcpu.goes_on_at(CODE_VA);
        (vcpu.regs.rdx, vcpu.regs.r12, vcpu.regs.rsi) = (MARK, MARK, MARK);
        let exits = (vcpu.run(&d), vcpu.run(&d));
        assert_eq!(exits, (Exit::Syscall, crate::testing::engine::fault(6)));
    };
    let marks = |vcpu: &mut Vcpu, root: Mfn, user: bool, lane: Lane| {
        vcpu.is_in(root, user);
        vcpu.goes_on_at(CODE_VA + 0x100);
        (vcpu.regs.rsi, vcpu.regs.rcx, vcpu.regs.rdx) = (lane.room_va(0), ROOM_SIZE / 8, !MARK);
        assert_eq!(vcpu.run(&d), gp(0));
        vcpu.regs.rbx
    };
    let lanes = Lane::all(2);
    let mut found = 0;
    for (n, root) in roots.iter().enumerate() {
        if n >= crate::engine::process::space::MAX_SPACES {
            for lane in &lanes {
                assert_eq!(marks(first, *root, true, *lane), 0, "root {n} {lane:?}");
            }
        }
        leave_marks(second, *root);
        leave_marks(first, *root);
        found += marks(second, *root, false, lanes[0]) + marks(second, *root, false, lanes[1]);
    }
    assert_ne!(found, 0, "a kernel finds what it left itself");
}

fn is_canonical_and_allowed(regs: &Regs) -> bool {
    let canonical = [regs.rip, regs.fs_base, regs.gs_base];
    canonical.iter().all(|va| paravane_abi::addr::is_canonical(*va))
        && regs.rflags & !(rflags::LOADED_AT_CPL3 | rflags::ALWAYS_AT_CPL3) == 0
}

const FPU_SIZE: u64 = 0xa80;
/// Where [`Claims`] are made: from the beginning of a signal's frame.
const UCONTEXT: u64 = 128;

/// What decides what comes of a signal's frame.
#[derive(Clone, Copy, Debug)]
struct Claims {
    /// Where the vector state would be, and where it cannot be.
    states: [u64; 2],
    code: u64,
    vector: u64,
    cs: u64,
}

fn any_claims() -> impl Strategy<Value = Claims> {
    let lane = Lane::all(2)[1];
    let last = ROOM_SIZE - FPU_SIZE;
    let possible = (0..=last / 64).prop_map(move |n| lane.room_va(n * 64));
    let impossible = prop_oneof![
        Just(0),
        any::<u64>(),
        (0..last).prop_map(move |at| lane.room_va(at | 1)),
        (last / 64 + 1..ROOM_SIZE / 64).prop_map(move |n| lane.room_va(n * 64)),
        (0..=last / 64).prop_map(move |n| Lane::all(2)[0].room_va(n * 64)),
    ];
    let code = prop_oneof![Just(1), Just(128), Just(0), Just(u64::MAX), any::<u64>()];
    let cs = prop_oneof![Just(0x33), Just(0x23), any::<u64>()];
    (possible, impossible, code, prop_oneof![0u64..21, any::<u64>()], cs)
        .prop_map(|(good, bad, code, vector, cs)| Claims { states: [good, bad], code, vector, cs })
}

impl Claims {
    fn make(&self, area: &Area, frame: u64) {
        area.set_room(frame + context::SI_CODE, self.code);
        area.set_room(frame + UCONTEXT + context::TRAPNO, self.vector);
        area.set_room(frame + UCONTEXT + context::CS, self.cs);
        for state in self.states {
            area.set_room(frame + UCONTEXT + context::FPSTATE, state);
        }
    }
}

/// Ends the other thread however this one ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is written to a room while a hand-over in it is decoded: what comes of it is what code at CPL 3 can
    /// bring about, and points into the room.
    #[test]
    fn a_room_may_change_while_it_is_read(
        words in prop::collection::vec((0u64..ROOM_SIZE / 8, any::<u64>()), 64..256),
        near in prop::collection::vec((0u64..0x400, prop_oneof![
            Just(0u64), Just(13), Just(14), Just(128), Just(u64::MAX), 0u64..64,
            (0u64..ROOM_SIZE).prop_map(|o| Lane::all(2)[1].room_va(o & !63)),
        ]), 64..256),
        claims in prop::collection::vec(any_claims(), 1..32),
        at in 0u64..0xc00,
    ) {
        let lanes = Lane::all(2);
        let lane = lanes[1];
        let area = Area::for_lanes(&lanes).unwrap().remove(1);
        let frame = room::STACK + 0x1000 + at;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Over(&done);
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let others = words.iter().map(|(word, value)| (word * 8, *value));
                    let near = near.iter().map(|(offset, value)| (frame + offset, *value));
                    for ((at, value), claims) in others.chain(near).zip(claims.iter().cycle()) {
                        area.set_room(at, value);
                        claims.make(&area, frame);
                    }
                }
            });
            let kinds = SIGNALS.map(|s| s as u64).into_iter().chain([KIND_HYPERCALL, KIND_KICKED, KIND_DONE]);
            let (mut decoded, mut refused) = (0, 0);
            // As often as it takes until the other thread has run.
            for kind in kinds.cycle().take(50_000_000) {
                let va = lane.room_va(frame);
                let h = HandOver { kind, siginfo: va, ucontext: va + UCONTEXT, fs_base: 1 << 63, gs_base: at };
                let is_signal = u64::from(![KIND_HYPERCALL, KIND_KICKED, KIND_DONE].contains(&kind));
                let Some(stop) = context::decode(&area, lane, &h, FPU_SIZE) else {
                    refused += is_signal;
                    continue;
                };
                decoded += is_signal;
                assert!(is_canonical_and_allowed(&stop.regs));
                if let FpuAt::Frame(offset) = stop.fpu {
                    assert!(offset % 64 == 0 && offset + FPU_SIZE <= ROOM_SIZE);
                }
                if let Trap::Fault(fault) = stop.trap {
                    assert!(is_honest(Exit::Fault(fault)), "{fault:?}");
                }
                if decoded >= 200 && refused >= 200 {
                    break;
                }
            }
            assert!(decoded >= 200 && refused >= 200, "{decoded} decoded, {refused} refused");
        });
    }
}
