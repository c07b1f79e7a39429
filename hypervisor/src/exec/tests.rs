//! Instructions on a machine of 64 KiB without tables, shadow or devices: all that an executor needs.

use std::arch::x86_64::CpuidResult;
use std::convert::Infallible;

use super::deliver::{Origin, Undelivered};
use super::executor::Executor;
use super::ordinary::Progress;
use super::outside::*;
use super::privileged::Completion;
use super::virtual_cpu::{TableRegister, VirtualCpu, hardware_flags};
use crate::x86::decode::{Dialect, instruction_at};
use crate::x86::descriptor::{Gate, bits, flat};
use crate::x86::exception::{Exception, vector};
use crate::x86::registers::Regs;
use crate::x86::rflags;

const SIZE: u64 = 0x1_0000;
const CODE: u64 = 0x100;
const STACK: u64 = 0x8000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const HANDLER: u64 = 0x3000;
const KERNEL_CS: u16 = 8;

/// Memory at linear address 0, where user mode may do nothing; one port, whose writes are events.
struct Board {
    memory: Vec<u8>,
    activations: u32,
    flushes: u32,
}

impl Board {
    fn range(
        &self,
        va: u64,
        len: usize,
        write: bool,
        user: bool,
    ) -> Result<std::ops::Range<usize>, Exception> {
        let end = va.checked_add(len as u64).filter(|end| *end <= SIZE && !user);
        let end = end.ok_or(Exception::page(u32::from(write) << 1, va))?;
        Ok(va as usize..end as usize)
    }
}

impl Memory for Board {
    type Failure = Infallible;

    fn read(&mut self, va: u64, buf: &mut [u8], user: bool) -> Attempt<(), Self> {
        let range = self.range(va, buf.len(), false, user)?;
        buf.copy_from_slice(&self.memory[range]);
        Ok(())
    }
    fn write(&mut self, va: u64, bytes: &[u8], user: bool) -> Attempt<Stored, Self> {
        let range = self.range(va, bytes.len(), true, user)?;
        self.memory[range].copy_from_slice(bytes);
        // As if the processor could not make the next store of a repeated instruction by itself.
        Ok(Stored::Bus)
    }
    fn probe_write(&mut self, va: u64, len: usize, user: bool) -> Attempt<(), Self> {
        Ok(self.range(va, len, true, user).map(drop)?)
    }
}

impl IoPorts for Board {
    type Event = (u16, u32);

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        u32::from(port) << 8 | u32::from(size)
    }
    fn port_out(&mut self, port: u16, _: u8, value: u32) -> Option<(u16, u32)> {
        Some((port, value))
    }
}

impl PageTables for Board {
    fn activate(&mut self, _: &VirtualCpu) -> Result<(), Infallible> {
        self.activations += 1;
        Ok(())
    }
    fn flush_page(&mut self, _: u64) {
        self.flushes += 1;
    }
    fn flush_all(&mut self) {
        self.flushes += 1;
    }
}

impl CpuFeatures for Board {
    fn cpuid(&self, function: u32, index: u32, _: bool) -> CpuidResult {
        CpuidResult { eax: function, ebx: 1, ecx: index, edx: 2 }
    }
    fn available_state(&self) -> u64 {
        0b11
    }
}

struct Computer {
    cpu: VirtualCpu,
    regs: Regs,
    board: Board,
}

impl Computer {
    fn new() -> Self {
        let board = Board { memory: vec![0; SIZE as usize], activations: 0, flushes: 0 };
        let regs = Regs { rip: CODE, rsp: STACK, rflags: hardware_flags(0), ..Regs::default() };
        Self { cpu: VirtualCpu::new(0), regs, board }
    }

    /// Has an executor do something on the board.
    fn run<T>(&mut self, what: impl FnOnce(&mut Executor<'_, Board>) -> T) -> T {
        let empty = Board { memory: Vec::new(), activations: 0, flushes: 0 };
        let outside = std::mem::replace(&mut self.board, empty);
        let mut executor = Executor { cpu: &mut self.cpu, regs: &mut self.regs, outside };
        let result = what(&mut executor);
        self.board = executor.outside;
        result
    }

    fn raise(&mut self, vector: u8) -> Result<(), Undelivered<Infallible>> {
        self.run(|executor| executor.deliver(Exception::plain(vector), Origin::Exception))
    }

    fn place(&mut self, at: u64, bytes: &[u8]) {
        self.board.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(*self.board.memory[at as usize..].first_chunk().unwrap())
    }

    fn privileged(&mut self, code: &[u8]) -> Option<Attempt<Completion<(u16, u32)>, Board>> {
        let insn = self.decode(code);
        self.run(|executor| executor.privileged(&insn))
    }

    fn ordinary(&mut self, code: &[u8]) -> Attempt<Progress, Board> {
        let insn = self.decode(code);
        self.run(|executor| executor.operands().execute(&insn))
    }

    fn decode(&mut self, code: &[u8]) -> iced_x86::Instruction {
        self.place(CODE, code);
        let board = &mut self.board;
        instruction_at(CODE, Dialect::Intel, |va, buf| board.read(va, buf, false).ok()).unwrap()
    }
}

#[test]
fn privileged_instructions_reach_the_machine_through_its_traits() {
    let mut c = Computer::new();
    c.regs.rax = 0x3000;
    assert_eq!(c.privileged(&[0x0f, 0x22, 0xd8]), Some(Ok(Completion::Advance))); // mov cr3, rax
    assert_eq!((c.cpu.cr3, c.board.activations), (0x3000, 1));
    assert_eq!(c.privileged(&[0x0f, 0x01, 0x38]), Some(Ok(Completion::Advance))); // invlpg [rax]
    assert_eq!(c.board.flushes, 1);
    c.regs.rdx = 0x3f8;
    let event = Completion::Event { event: (0x3f8, 0x3000), ended: true };
    assert_eq!(c.privileged(&[0xef]), Some(Ok(event))); // out dx, eax
    c.regs.rax = 7;
    assert_eq!(c.privileged(&[0x0f, 0xa2]), Some(Ok(Completion::Advance))); // cpuid
    assert_eq!((c.regs.rax, c.regs.rbx), (7, 1));
    assert_eq!(c.privileged(&[0x0f, 0x0b]), None, "ud2 is not executed here");
}

#[test]
fn user_mode_may_execute_what_its_privilege_allows() {
    let mut c = Computer::new();
    c.cpu.user = true;
    for code in [&[0xfau8][..], &[0xec], &[0x0f, 0x22, 0xd8], &[0xf4]] {
        assert_eq!(c.privileged(code), None, "{code:x?}");
    }
    c.cpu.io_privilege = 3;
    assert_eq!(c.privileged(&[0xfa]), Some(Ok(Completion::Advance))); // cli
    assert_eq!(c.privileged(&[0xcd, 0x80]), Some(Ok(Completion::Interrupt(0x80))));
    // INSB to memory that is not the program's: the port is not read.
    c.regs.rdi = 0x4000;
    let fault = Incomplete::Exception(Exception::page(0b10, 0x4000));
    assert_eq!(c.privileged(&[0x6c]), Some(Err(fault)));
}

#[test]
fn an_ordinary_instruction_that_faults_changes_nothing() {
    let mut c = Computer::new();
    (c.regs.rax, c.regs.rdi) = (0x1234, 0x4000);
    assert_eq!(c.ordinary(&[0x48, 0x01, 0x07]), Ok(Progress::Done)); // add [rdi], rax
    assert_eq!(c.word(0x4000), 0x1234);
    c.regs.rdi = SIZE - 4;
    let before = c.regs;
    let fault = Incomplete::Exception(Exception::page(0, SIZE - 4));
    assert_eq!(c.ordinary(&[0x48, 0x01, 0x07]), Err(fault));
    assert_eq!(c.regs, before);
    assert_eq!(c.ordinary(&[0x0f, 0x29, 0x07]), Ok(Progress::Unknown)); // movaps [rdi], xmm0
}

#[test]
fn a_repeated_string_move_stops_at_the_fault_with_its_registers_there() {
    let mut c = Computer::new();
    (c.regs.rax, c.regs.rdi, c.regs.rcx) = (u64::MAX, SIZE - 16, 5);
    let fault = Incomplete::Exception(Exception::page(0b10, SIZE));
    assert_eq!(c.ordinary(&[0xf3, 0x48, 0xab]), Err(fault)); // rep stosq
    assert_eq!((c.regs.rdi, c.regs.rcx, c.word(SIZE - 8)), (SIZE, 3, u64::MAX));
}

#[test]
fn events_go_through_the_tables_in_the_machines_memory() {
    let mut c = Computer::new();
    c.place(GDT + u64::from(KERNEL_CS), &flat::CODE_64.to_le_bytes());
    let gate = Gate {
        handler: HANDLER,
        selector: KERNEL_CS,
        stack: 0,
        kind: Gate::INTERRUPT,
        dpl: 0,
        present: true,
    };
    for (at, word) in (IDT + u64::from(vector::DIVIDE) * Gate::SIZE..).step_by(8).zip(gate.words()) {
        c.place(at, &word.to_le_bytes());
    }
    c.cpu.gdt = TableRegister { base: GDT, limit: 15 };
    c.cpu.idt = TableRegister { base: IDT, limit: 255 };
    c.cpu.interrupts = true;
    assert_eq!(c.raise(vector::DIVIDE), Ok(()));
    assert_eq!((c.regs.rip, c.regs.rsp, c.cpu.interrupts), (HANDLER, STACK - 40, false));
    assert_eq!((c.word(STACK - 40), c.word(STACK - 24) & rflags::IF), (CODE, rflags::IF));

    c.place(GDT + u64::from(KERNEL_CS), &(flat::CODE_64 & !bits::PRESENT).to_le_bytes());
    assert_eq!(c.raise(vector::DIVIDE), Err(Undelivered::TripleFault { vector: vector::DOUBLE_FAULT }));
}
