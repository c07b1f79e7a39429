//! The templates, and what the processor would do in the place of each.

use super::{GUEST, KERNEL_CS, KERNEL_SS, RSP};
use crate::exec::virtual_cpu::VirtualCpu;
use crate::testing::engine::{DATA_VA, World};
use crate::x86::registers::Regs;
use crate::x86::rflags;

/// A template, run once.
pub(super) struct Case {
    pub name: &'static str,
    pub code: &'static [u8],
    /// Flags need not survive.
    pub dead: bool,
    /// It makes two stores, as the instruction does; after the first it can still begin anew.
    pub stores_twice: bool,
    pub pending: bool,
    /// Before the instruction.
    pub prepare: fn(&mut VirtualCpu, &mut Regs, &mut [u64; 8]),
    /// What it does; `None` if the host is to do it.
    pub does: Option<fn(&mut VirtualCpu, &mut Regs, &mut World)>,
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

/// All of them.
pub(super) fn cases() -> Vec<Case> {
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
