//! Stubs in single steps on every engine: wherever an interrupt would find one, the guest's state is that at one of its
//! own instructions.

use super::*;
use crate::codegen::recipe::restore;
use crate::codegen::state_page::StatePage;
use crate::codegen::tests::steps::worlds;
use crate::engine::Exit;
use crate::exec::virtual_cpu::VirtualCpu;
use crate::testing::engine::{CODE_VA, DATA, DATA_VA, STACK_TOP, TEXT, World};
use crate::x86::exception::{Fault, vector};
use crate::x86::registers::Regs;

const STATE_VA: u64 = 0x41_0000;
/// Where the guest's instructions are: at an address that a PUSH of 32 bits does not make.
const GUEST: u64 = 0x8030_0000;
const RSP: u64 = STACK_TOP - 0x100;
const MOST: usize = 120;

/// Instructions of a guest, in the order in which a stub has them. RBX is a pointer to data, RCX to code.
const CASES: &[&[&[u8]]] = &[
    // cli; push rbx; pop rax; mov eax, 5
    &[&[0xfa], &[0x53], &[0x58], &[0xb8, 5, 0, 0, 0]],
    // cli; call +0x40
    &[&[0xfa], &[0xe8, 0x40, 0, 0, 0]],
    // sti; call [rbx]
    &[&[0xfb], &[0xff, 0x13], &[0x90], &[0x90]],
    // mov rax, cr3; call rcx
    &[&[0x0f, 0x20, 0xd8], &[0xff, 0xd1]],
    // cli; xor eax, eax; je +0x10
    &[&[0xfa], &[0x31, 0xc0], &[0x74, 0x10]],
    // cli; or eax, 1; je +0x10; jmp [rbx]
    &[&[0xfa], &[0x83, 0xc8, 0x01], &[0x0f, 0x84, 0x10, 0, 0, 0], &[0xff, 0x23]],
    // pushfq; cli; popfq; ret
    &[&[0x9c], &[0xfa], &[0x9d], &[0xc3]],
    // mov rdx, cr8; mov cr8, rdx; lea rax, [rip + 0x100]; mov [rbx + 8], rax
    &[
        &[0x44, 0x0f, 0x20, 0xc2],
        &[0x44, 0x0f, 0x22, 0xc2],
        &[0x48, 0x8d, 0x05, 0, 1, 0, 0],
        &[0x48, 0x89, 0x43, 0x08],
    ],
    // cli; nop; cli; sti; cli
    &[&[0xfa], &[0x90], &[0xfa], &[0xfb], &[0xfa]],
];

/// What the guest can see.
#[derive(Clone, Debug, PartialEq)]
struct State {
    regs: Regs,
    interrupts: bool,
    stack: Vec<u64>,
    data: Vec<u64>,
}

struct Run<'a> {
    w: &'a mut World,
    stub: &'a Stub,
    page: StatePage,
    cpu: VirtualCpu,
    /// Flags that POPF is about to replace: until then they may be anything.
    ignored: u64,
}

impl Run<'_> {
    fn state(&mut self) -> State {
        let (mut cpu, mut regs) = (self.cpu.clone(), self.w.regs);
        self.page.read_back(&self.w.memory, &mut cpu);
        restore(|_| &self.stub.points, CODE_VA, &self.w.memory, self.page, &mut cpu, &mut regs);
        regs.rflags &= !(rflags::TF | self.ignored);
        // What lies below RSP an interrupt would overwrite.
        let stack =
            (0..16).map(|n| RSP - 64 + n * 8).map(|va| if va < regs.rsp { 0 } else { self.w.peek(va) });
        let stack = stack.collect();
        let data = (0..4).map(|n| self.w.peek(DATA_VA + n * 8)).collect();
        State { regs, interrupts: cpu.interrupts, stack, data }
    }

    /// One instruction of the stub; `TF` must neither be seen by what it does nor be lost.
    fn step(&mut self) -> Exit {
        let at = self.w.regs.rip;
        let byte = self.w.peek(at & !7) >> (at % 8 * 8) & 0xff;
        if byte == 0x9d {
            let word = self.w.peek(self.w.regs.rsp);
            self.w.poke(self.w.regs.rsp, word | rflags::TF);
        }
        self.w.regs.rflags |= rflags::TF;
        let exit = self.w.run();
        if byte == 0x9c {
            let word = self.w.peek(self.w.regs.rsp);
            self.w.poke(self.w.regs.rsp, word & !rflags::TF);
        }
        exit
    }
}

/// Runs the stub for a case; returns at how many points it looked.
fn run(case: &[&[u8]], w: &mut World) -> usize {
    let code = case.concat();
    let range = GUEST..GUEST + code.len() as u64;
    let env = Environment::here(STATE_VA, None);
    let stub = Stub::new(&code, &range, CODE_VA, CODE_VA, env).unwrap();
    w.load(&stub.bytes);
    for n in 0..16 {
        w.poke(RSP - 64 + n * 8, 0x1111 * n);
    }
    w.poke(RSP, GUEST + 0x80);
    w.poke(DATA_VA, GUEST + 0x90);
    let cpu = VirtualCpu { cr8: 5, interrupts: true, ..VirtualCpu::new(0x1000) };
    let page = StatePage::new(w.mfn_of(STATE_VA).maddr());
    page.publish(&w.memory, &cpu, false);
    w.regs =
        Regs { rip: CODE_VA, rsp: RSP, rbx: DATA_VA, rcx: GUEST + 0xa0, rflags: 0x203, rax: 7, ..w.regs };
    let ignored = if case.contains(&&[0x9d][..]) { rflags::STATUS } else { 0 };
    let mut run = Run { w, stub: &stub, page, cpu, ignored };
    let mut seen = Vec::new();
    loop {
        let here = run.w.regs.rip;
        let inside = (CODE_VA..CODE_VA + stub.bytes.len() as u64).contains(&here);
        seen.push((here, run.state()));
        if !inside {
            break;
        }
        match run.step() {
            Exit::Fault(Fault { vector: vector::DEBUG, .. }) => {}
            other => panic!("{case:x?} at {here:#x}: {other:?}"),
        }
        assert!(seen.len() < MOST, "{case:x?} does not end");
    }
    // Where the stub can be entered the processor's state is the guest's own: these are the states that there are.
    let own: Vec<&State> = seen
        .iter()
        .filter(|(at, _)| stub.entries.iter().any(|(_, entry)| entry == at) || *at >= GUEST)
        .map(|(_, state)| state)
        .collect();
    let mut done = 0;
    for (at, state) in &seen {
        let found = own.iter().skip(done).take(2).position(|own| *own == state);
        done += found.unwrap_or_else(|| panic!("{case:x?} at {at:#x}: {state:x?} is neither of\n{own:x?}"));
    }
    assert_eq!(done + 1, own.len(), "{case:x?} got to its end");
    seen.len()
}

#[test]
fn an_exit_at_any_instruction_of_a_stub_finds_one_of_the_guests_own_states() {
    for (engine, mut w) in worlds() {
        let frame = w.frame();
        w.map(STATE_VA, frame, DATA);
        let guest = w.frame();
        w.map(GUEST, guest, TEXT);
        let looked: usize = CASES.iter().map(|case| run(case, &mut w)).sum();
        println!("{engine}: {looked} points");
        assert!(looked > 80, "{engine}: {looked} points only");
    }
}

#[test]
fn what_has_no_stub() {
    let env = Environment::here(STATE_VA, None);
    let new = |code: &[u8]| Stub::new(code, &(GUEST..GUEST + code.len() as u64), CODE_VA, CODE_VA, env);
    assert!(new(&[0x0f, 0x05]).is_err(), "SYSCALL leaves its own address in RCX");
    assert!(new(&[0x66, 0xff, 0x13]).is_err());
    // Too far from the guest's memory.
    let far = Stub::new(&[0x8b, 0x05, 0, 0, 0, 0], &(1 << 40..(1 << 40) + 6), CODE_VA, CODE_VA, env);
    assert!(far.is_err());
}
