//! Every template in single steps on every engine: at each instruction boundary the guest's state is either that before
//! the guest's instruction or that after it, wherever an interrupt or a fault would find it.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::codegen::emitter::{Dead, Emitter, Environment, TRAP};
use crate::codegen::recipe::{Point, Recipe, Then, restore};
use crate::codegen::state_page::StatePage;
use crate::engine::kvm::KvmMachine;
use crate::engine::process::{ProcessMachine, probe};
use crate::engine::{Exit, Machine};
use crate::exec::virtual_cpu::{TableRegister, VirtualCpu};
use crate::machine::memory::Backing;
use crate::testing::engine::{CODE_VA, DATA, DATA_VA, STACK_TOP, World};
use crate::testing::skip::skip;
use crate::x86::exception::{Fault, vector};
use crate::x86::registers::Regs;
use crate::x86::rflags;

const STATE_VA: u64 = 0x41_0000;
/// Where the guest's instruction is.
const GUEST: u64 = 0x4000_0123;
/// RSP at it.
const RSP: u64 = STACK_TOP - 0x200;
const KERNEL_CS: u16 = 0x10;
const KERNEL_SS: u16 = 0x18;

/// The world of each engine that works here.
pub(crate) fn worlds() -> Vec<(&'static str, World)> {
    let mut worlds = Vec::new();
    match probe() {
        Ok(()) => {
            let world = World::new(Backing::Memfd, |memory, layout| {
                ProcessMachine::new(memory, layout).map(|e| Box::new(e) as Box<dyn Machine>)
            });
            worlds.push(("process", world.unwrap()));
        }
        Err(missing) => skip("process", missing),
    }
    match World::new(Backing::Anonymous, |memory, layout| {
        KvmMachine::new(memory, layout, None, 1).map(|e| Box::new(e) as Box<dyn Machine>)
    }) {
        Ok(world) => worlds.push(("kvm", world)),
        Err(missing) => skip("kvm", missing),
    }
    worlds
}

/// The guest's state, as far as a template may change it.
#[derive(Clone, Debug, PartialEq)]
struct State {
    regs: Regs,
    cpu: String,
    stack: Vec<u64>,
    data: Vec<u64>,
}

impl State {
    /// Whether it is the other one, but for these flags.
    fn is(&self, other: &Self, ignored: u64) -> bool {
        let without = |regs: Regs| Regs { rflags: regs.rflags & !ignored, ..regs };
        without(self.regs) == without(other.regs)
            && (&self.cpu, &self.stack, &self.data) == (&other.cpu, &other.stack, &other.data)
    }
}

struct Case {
    name: &'static str,
    code: &'static [u8],
    /// Flags need not survive.
    dead: bool,
    /// It makes two stores, as the instruction does; after the first it can still begin anew.
    stores_twice: bool,
    pending: bool,
    /// Before the instruction.
    prepare: fn(&mut VirtualCpu, &mut Regs, &mut [u64; 8]),
    /// What it does; `None` if the host is to do it.
    does: Option<fn(&mut VirtualCpu, &mut Regs, &mut World)>,
}

const NONE: Case = Case {
    name: "",
    code: &[],
    dead: false,
    stores_twice: false,
    pending: false,
    prepare: |_, _, _| {},
    does: Some(|_, _, _| {}),
};

fn next(regs: &mut Regs, len: u64) {
    regs.rip = GUEST + len;
}

fn cases() -> Vec<Case> {
    let frame = |_: &mut VirtualCpu, _: &mut Regs, stack: &mut [u64; 8]| {
        *stack = [
            GUEST + 77,
            KERNEL_CS.into(),
            0x202 | rflags::CF | rflags::DF,
            RSP + 0x80,
            KERNEL_SS.into(),
            6,
            7,
            8,
        ];
    };
    let returns: fn(&mut VirtualCpu, &mut Regs, &mut World) = |cpu, regs, _| {
        cpu.interrupts = true;
        regs.rip = GUEST + 77;
        regs.rsp = RSP + 0x80;
        regs.rflags = 0x202 | rflags::CF | rflags::DF;
    };
    vec![
        Case {
            name: "cli",
            code: &[0xfa],
            does: Some(|cpu, regs, _| {
                cpu.interrupts = false;
                next(regs, 1);
            }),
            prepare: |cpu, _, _| cpu.interrupts = true,
            ..NONE
        },
        Case {
            name: "sti",
            code: &[0xfb],
            does: Some(|cpu, regs, _| {
                cpu.interrupts = true;
                next(regs, 1);
            }),
            ..NONE
        },
        Case {
            name: "sti, flags dead",
            code: &[0xfb],
            dead: true,
            does: Some(|cpu, regs, _| {
                cpu.interrupts = true;
                next(regs, 1);
            }),
            ..NONE
        },
        Case { name: "sti, pending", code: &[0xfb], pending: true, does: None, ..NONE },
        Case {
            name: "sti, flags dead, pending",
            code: &[0xfb],
            dead: true,
            pending: true,
            does: None,
            ..NONE
        },
        Case {
            name: "pushf, off",
            code: &[0x9c],
            does: Some(|_, regs, w| {
                regs.rsp -= 8;
                w.poke(regs.rsp, regs.rflags & !rflags::IF);
                next(regs, 1);
            }),
            ..NONE
        },
        Case {
            name: "pushf, on, iopl 3",
            code: &[0x9c],
            prepare: |cpu, _, _| {
                cpu.interrupts = true;
                cpu.io_privilege = 3;
            },
            does: Some(|_, regs, w| {
                regs.rsp -= 8;
                w.poke(regs.rsp, regs.rflags | rflags::IOPL);
                next(regs, 1);
            }),
            ..NONE
        },
        Case {
            name: "popf, on",
            code: &[0x9d],
            prepare: |cpu, _, stack| {
                cpu.io_privilege = 3;
                stack[0] = 0x202 | rflags::OF | rflags::DF;
            },
            does: Some(|cpu, regs, _| {
                cpu.interrupts = true;
                cpu.io_privilege = 0;
                regs.rflags = 0x202 | rflags::OF | rflags::DF;
                regs.rsp += 8;
                next(regs, 1);
            }),
            ..NONE
        },
        Case {
            name: "popf, off, pending",
            code: &[0x9d],
            pending: true,
            prepare: |cpu, _, stack| {
                cpu.interrupts = true;
                stack[0] = 2 | rflags::ZF;
            },
            does: Some(|cpu, regs, _| {
                cpu.interrupts = false;
                regs.rflags = 0x202 | rflags::ZF;
                regs.rsp += 8;
                next(regs, 1);
            }),
            ..NONE
        },
        Case {
            name: "popf, on, pending",
            code: &[0x9d],
            pending: true,
            prepare: |_, _, stack| stack[0] = 0x202,
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "popf, TF",
            code: &[0x9d],
            prepare: |_, _, stack| stack[0] = 0x302,
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "popf, AC",
            code: &[0x9d],
            prepare: |_, _, stack| stack[0] = rflags::AC | 2,
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "popf, IOPL",
            code: &[0x9d],
            prepare: |_, _, stack| stack[0] = 0x3002,
            does: None,
            dead: true,
            ..NONE
        },
        Case { name: "iretq", code: &[0x48, 0xcf], prepare: frame, does: Some(returns), dead: true, ..NONE },
        Case {
            name: "iretq, pending",
            code: &[0x48, 0xcf],
            prepare: frame,
            pending: true,
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "iretq to user",
            code: &[0x48, 0xcf],
            prepare: |_, _, stack| {
                *stack = [GUEST, 0x43, 0x202, RSP, 0x3b, 0, 0, 0];
            },
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "iretq, TF",
            code: &[0x48, 0xcf],
            prepare: |_, _, stack| {
                *stack = [GUEST, KERNEL_CS.into(), 0x302, RSP, KERNEL_SS.into(), 0, 0, 0];
            },
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "iretq, not canonical",
            code: &[0x48, 0xcf],
            prepare: |_, _, stack| {
                *stack = [1 << 47, KERNEL_CS.into(), 2, RSP, KERNEL_SS.into(), 0, 0, 0];
            },
            does: None,
            dead: true,
            ..NONE
        },
        Case {
            name: "mov rcx, cr2",
            code: &[0x0f, 0x20, 0xd1],
            does: Some(|cpu, regs, _| {
                regs.rcx = cpu.cr2;
                next(regs, 3);
            }),
            ..NONE
        },
        Case {
            name: "mov r9, cr8",
            code: &[0x45, 0x0f, 0x20, 0xc1],
            does: Some(|cpu, regs, _| {
                regs.r9 = cpu.cr8;
                next(regs, 4);
            }),
            ..NONE
        },
        Case {
            name: "mov cr8, rcx",
            code: &[0x44, 0x0f, 0x22, 0xc1],
            dead: true,
            prepare: |_, regs, _| regs.rcx = 9,
            does: Some(|cpu, regs, _| {
                cpu.cr8 = 9;
                next(regs, 4);
            }),
            ..NONE
        },
        Case {
            name: "mov cr8, rcx; flags alive",
            code: &[0x44, 0x0f, 0x22, 0xc1],
            prepare: |_, regs, _| regs.rcx = 9,
            does: Some(|cpu, regs, _| {
                cpu.cr8 = 9;
                next(regs, 4);
            }),
            ..NONE
        },
        Case {
            name: "mov cr8, 16",
            code: &[0x44, 0x0f, 0x22, 0xc1],
            dead: true,
            prepare: |_, regs, _| regs.rcx = 16,
            does: None,
            ..NONE
        },
        Case {
            name: "mov cr8, 1 << 40; flags alive",
            code: &[0x44, 0x0f, 0x22, 0xc1],
            prepare: |_, regs, _| regs.rcx = 1 << 40,
            does: None,
            ..NONE
        },
        Case {
            name: "smsw ax",
            code: &[0x66, 0x0f, 0x01, 0xe0],
            does: Some(|cpu, regs, _| {
                regs.rax = regs.rax & !0xffff | cpu.cr0 & 0xffff;
                next(regs, 4);
            }),
            ..NONE
        },
        Case {
            name: "str [rcx]",
            code: &[0x0f, 0x00, 0x09],
            prepare: |_, regs, _| regs.rcx = DATA_VA + 8,
            does: Some(|cpu, regs, w| {
                let old = w.peek(DATA_VA + 8);
                w.poke(DATA_VA + 8, old & !0xffff | u64::from(cpu.task.selector));
                next(regs, 3);
            }),
            ..NONE
        },
        Case {
            name: "sldt edx",
            code: &[0x0f, 0x00, 0xc2],
            does: Some(|cpu, regs, _| {
                regs.rdx = cpu.ldt.selector.into();
                next(regs, 3);
            }),
            ..NONE
        },
        Case {
            name: "mov eax, ss",
            code: &[0x8c, 0xd0],
            does: Some(|cpu, regs, _| {
                regs.rax = cpu.selectors.ss.into();
                next(regs, 2);
            }),
            ..NONE
        },
        Case {
            name: "push gs",
            code: &[0x0f, 0xa8],
            does: Some(|cpu, regs, w| {
                regs.rsp -= 8;
                w.poke(regs.rsp, cpu.selectors.gs.into());
                next(regs, 2);
            }),
            ..NONE
        },
        Case {
            name: "sidt [rax + rcx]",
            stores_twice: true,
            code: &[0x0f, 0x01, 0x0c, 0x08],
            prepare: |_, regs, _| {
                regs.rax = DATA_VA;
                regs.rcx = 16;
            },
            does: Some(|cpu, regs, w| {
                w.poke(DATA_VA + 16, cpu.idt.base << 16 | u64::from(cpu.idt.limit));
                let old = w.peek(DATA_VA + 24);
                w.poke(DATA_VA + 24, old & !0xffff | cpu.idt.base >> 48);
                next(regs, 4);
            }),
            ..NONE
        },
        Case { name: "wrmsr", code: &[0x0f, 0x30], does: None, ..NONE },
        Case {
            name: "swapgs",
            code: &[0x0f, 0x01, 0xf8],
            prepare: |cpu, _, _| cpu.kernel_gs_base = 0x1234_5000,
            does: Some(|cpu, regs, _| {
                std::mem::swap(&mut cpu.kernel_gs_base, &mut regs.gs_base);
                next(regs, 3);
            }),
            ..NONE
        },
    ]
}

fn virtual_cpu() -> VirtualCpu {
    let mut cpu = VirtualCpu::new(0x1000);
    cpu.cr2 = 0x7777_0000_1234;
    cpu.cr8 = 5;
    (cpu.selectors.cs, cpu.selectors.ss, cpu.selectors.gs) = (KERNEL_CS, KERNEL_SS, 0x2b);
    cpu.task.selector = 0x28;
    cpu.ldt.selector = 0x38;
    cpu.idt = TableRegister { base: 0xffff_8880_1234_5678, limit: 0xfff };
    cpu.gdt = TableRegister { base: 0x4010_0000, limit: 0x7f };
    cpu
}

fn registers(w: &World) -> Regs {
    let mut regs = w.regs;
    for (n, value) in (0..16).zip((1u64..).map(|n| n * 0x0101_0101_0101_0101)) {
        *crate::exec::operand::register_mut(&mut regs, n) = value;
    }
    Regs { rip: GUEST, rsp: RSP, rflags: 0x202 | rflags::CF | rflags::SF | rflags::AF, ..regs }
}

const STACK_WORDS: u64 = 16;

/// What the guest can see, in this state of its registers.
fn state(w: &mut World, cpu: &VirtualCpu, regs: Regs) -> State {
    let cpu = VirtualCpu { shadowed_rip: None, ..cpu.clone() };
    // What lies below RSP an interrupt would overwrite.
    let stack = (0..STACK_WORDS).map(|n| RSP - 32 + n * 8);
    let stack = stack.map(|va| if va < regs.rsp { 0 } else { w.peek(va) }).collect();
    let data = (0..8).map(|n| w.peek(DATA_VA + n * 8)).collect();
    let regs = Regs { rflags: regs.rflags & !rflags::TF, ..regs };
    State { regs, cpu: format!("{cpu:?}"), stack, data }
}

struct Run<'a> {
    w: &'a mut World,
    points: Vec<Point>,
    page: StatePage,
    cpu: VirtualCpu,
}

impl Run<'_> {
    /// The guest's state as an exit at this point would find it, and what the exit would be about.
    fn whole(&mut self) -> (State, Then) {
        let (mut cpu, mut regs) = (self.cpu.clone(), self.w.regs);
        self.page.read_back(&self.w.memory, &mut cpu);
        let recipe = restore(&self.points, CODE_VA, &self.w.memory, self.page, &mut cpu, &mut regs);
        let recipe = recipe.unwrap_or_else(|| panic!("no recipe at {:#x}", self.w.regs.rip));
        (state(self.w, &cpu, regs), recipe.then)
    }

    /// Executes one instruction of the template.
    fn step(&mut self) -> Exit {
        let at = self.w.regs.rip;
        // POPFQ would clear the flag by which all this works.
        let byte = self.w.peek(at & !7) >> (at % 8 * 8) & 0xff;
        let popped = (byte == 0x9d).then_some(self.w.regs.rsp);
        if let Some(word) = popped {
            let value = self.w.peek(word);
            self.w.poke(word, value | rflags::TF);
        }
        self.w.regs.rflags |= rflags::TF;
        let exit = self.w.run();
        let pushed = (byte == 0x9c).then_some(self.w.regs.rsp);
        for word in [popped, pushed].into_iter().flatten() {
            let value = self.w.peek(word);
            self.w.poke(word, value & !rflags::TF);
        }
        exit
    }
}

fn decode(code: &[u8]) -> Instruction {
    Decoder::with_ip(64, code, GUEST, DecoderOptions::NONE).decode()
}

/// Emits the code for a case; where it ends well is a trapping byte.
fn emit(case: &Case, w: &mut World, by_call: bool) -> (Vec<u8>, Vec<Point>, u64) {
    let (mut bytes, mut points) = (Vec::new(), Vec::new());
    let gate = by_call.then_some(CODE_VA);
    let env = Environment::here(STATE_VA, gate);
    let stub = w.engine.hypercall_stub(0);
    let mut e = Emitter::new(&mut bytes, &mut points, CODE_VA, 0, env);
    e.gate(&stub).unwrap();
    let start = e.here();
    let insn = decode(case.code);
    let mut end = Recipe::at(insn.next_ip());
    if insn.mnemonic() == Mnemonic::Iretq {
        end = e.return_from_interrupt(&insn).unwrap();
        for register in 0..3 {
            end = e.reload(end, register).unwrap();
        }
    } else {
        e.sensitive(&insn, Dead { flags: case.dead });
    }
    e.op(end, &[TRAP]);
    (bytes, points, start)
}

/// Runs a case; returns at how many points it looked.
fn run(case: &Case, w: &mut World, by_call: bool) -> usize {
    let (code, points, start) = emit(case, w, by_call);
    w.load(&code);
    let mut cpu = virtual_cpu();
    let mut regs = registers(w);
    let mut words = [0x5a5a; 8];
    (case.prepare)(&mut cpu, &mut regs, &mut words);
    for n in 0..STACK_WORDS {
        w.poke(RSP - 32 + n * 8, 0x1111 * n);
    }
    for (n, word) in (0..).zip(words) {
        w.poke(RSP + n * 8, word);
        w.poke(DATA_VA + n * 8, 0xdddd_dddd_dddd_dddd);
    }
    // What POPF and IRETQ load replaces flags that nothing reads any more.
    let loads_flags = matches!(decode(case.code).mnemonic(), Mnemonic::Popfq | Mnemonic::Iretq);
    let ignored = if case.dead || loads_flags { rflags::STATUS } else { 0 };
    let ignored_after = if loads_flags { 0 } else { ignored };
    let before = state(w, &cpu, regs);
    let after = case.does.map(|does| {
        let (mut cpu, mut regs) = (cpu.clone(), regs);
        does(&mut cpu, &mut regs, w);
        // What IRETQ and POPF load is theirs.
        let after = state(w, &cpu, regs);
        for n in 0..STACK_WORDS {
            let word = words.get((n as usize).wrapping_sub(4)).copied();
            w.poke(RSP - 32 + n * 8, word.unwrap_or(0x1111 * n));
        }
        for n in 0..8 {
            w.poke(DATA_VA + n * 8, 0xdddd_dddd_dddd_dddd);
        }
        after
    });
    let page = StatePage::new(w.mfn_of(STATE_VA).maddr());
    page.publish(&w.memory, &cpu, case.pending);
    w.regs = Regs { rip: start, ..regs };
    let mut run = Run { w, points, page, cpu };
    let (mut done, mut looked) = (false, 0);
    loop {
        let (now, then) = run.whole();
        looked += 1;
        if after.as_ref().is_some_and(|after| now.is(after, ignored_after)) {
            done = true;
        } else {
            assert!(!done, "{}: went back at {:#x}", case.name, run.w.regs.rip);
            let mut now = now;
            if case.stores_twice {
                now.data.clone_from(&before.data);
            }
            let whole = now.is(&before, ignored);
            assert!(whole, "{} at {:#x}\n{now:?}\n{before:?}\n{after:?}", case.name, run.w.regs.rip);
        }
        match run.step() {
            Exit::Fault(Fault { vector: vector::DEBUG, .. }) => {}
            Exit::Fault(Fault { vector: vector::PROTECTION, .. }) | Exit::Hypercall | Exit::Syscall => {
                let (now, left) = run.whole();
                let ends =
                    after.as_ref().map_or(now.is(&before, ignored), |after| now.is(after, ignored_after));
                assert!(ends, "{}: at the end\n{now:?}\n{before:?}\n{after:?}", case.name);
                assert_eq!(left == Then::Callout, after.is_none(), "{}: {left:?} {then:?}", case.name);
                return looked;
            }
            other => panic!("{} at {:#x}: {other:?}", case.name, run.w.regs.rip),
        }
        assert!(looked < 200, "{} does not end", case.name);
    }
}

#[test]
fn an_exit_at_any_instruction_finds_a_whole_state() {
    for (engine, mut w) in worlds() {
        let frame = w.frame();
        w.map(STATE_VA, frame, DATA);
        let mut looked = 0;
        for case in cases() {
            for by_call in [false, true] {
                looked += run(&case, &mut w, by_call);
            }
        }
        println!("{engine}: {looked} points");
        assert!(looked > 200, "{engine}: {looked} points only");
    }
}
