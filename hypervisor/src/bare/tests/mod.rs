//! A bare guest without an engine: the tests play the CPU that traps.

mod delivery;
mod hostile;
mod instructions;
mod paging;
mod transfers;
mod xsa;

use paravane_abi::pte;

use super::bus::{controls, view};
use super::platform::*;
use super::*;
use crate::engine::Exit;
use crate::exec::virtual_cpu;
use crate::ledger::Cause;
use crate::ledger::PrivOp;
use crate::machine::console::{CaptureSink, ConsoleInput};
use crate::machine::end::DomainEnd;
use crate::machine::memory::MachineMemory;
use crate::machine::memory::{Backing, Maddr, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::control::{cr0, efer};
use crate::x86::exception::Fault;
use crate::x86::exception::vector;
use crate::x86::registers::Regs;
use crate::x86::rflags;

/// Where the guest's memory is mapped: linear = BASE + physical.
pub(super) const BASE: u64 = 0x4000_0000;
const SHADOW_FRAMES: u64 = 64;
const GUEST_FRAMES: u64 = 1024;

pub(super) const GDT: u64 = 0x1_0000;
pub(super) const IDT: u64 = 0x1_1000;
pub(super) const TSS: u64 = 0x1_2000;
pub(super) const CODE: u64 = 0x2_0000;
pub(super) const DATA: u64 = 0x2_8000;
pub(super) const STACK: u64 = 0x3_0000;
pub(super) const RSP0: u64 = 0x3_4000;
pub(super) const IST1: u64 = 0x3_8000;
/// Handler of vector n: HANDLERS + 16 n.
pub(super) const HANDLERS: u64 = 0x4_0000;
pub(super) const USER_CODE: u64 = 0x10_0000;
pub(super) const USER_STACK: u64 = 0x10_4000;
/// Page tables: L4, L3, L2 and two L1.
pub(super) const TABLES: u64 = 0x1000;
pub(super) const L1: u64 = TABLES + 3 * 0x1000;

pub(super) const KERNEL_CS: u16 = 0x08;
pub(super) const KERNEL_DS: u16 = 0x10;
pub(super) const TASK: u16 = 0x18;
/// Not 0x23, 0x2b or 0x33: those exist on engines, and an IRETQ to them would not trap.
pub(super) const USER_DS: u16 = 0x3b;
pub(super) const USER_CS: u16 = 0x43;

const RW_SEEN: u64 = pte::PRESENT | pte::RW | pte::ACCESSED | pte::DIRTY;

pub(super) struct Guest {
    pub mem: MachineMemory,
    pub log: TableLog,
    pub space: VcpuSpace,
    pub machine: BareMachine,
    pub regs: Regs,
    pub sink: CaptureSink,
    pub input: ConsoleInput,
    pub now: u64,
}

impl Guest {
    /// As the loader leaves it, with tables that map 4 MiB, of which user programs can access the second half.
    pub fn new() -> Self {
        let mem = MachineMemory::new(SHADOW_FRAMES, GUEST_FRAMES, Backing::Anonymous).unwrap();
        let mut log = TableLog::default();
        let mut space = VcpuSpace::new(Mfn(0), &log);
        let poke = |at: u64, value: u64| {
            mem.store_u64(Maddr(SHADOW_FRAMES * 4096 + at), value).unwrap();
        };
        let user = RW_SEEN | pte::USER;
        poke(TABLES, (TABLES + 0x1000) | user);
        poke(TABLES + 0x1000 + 8, (TABLES + 0x2000) | user);
        for half in 0..2 {
            poke(TABLES + 0x2000 + half * 8, (L1 + half * 0x1000) | user);
        }
        for page in 0..1024 {
            let flags = if page >= USER_CODE >> 12 { user } else { RW_SEEN };
            poke(L1 + page * 8, page << 12 | flags);
        }
        let (sink, input) = (CaptureSink::default(), ConsoleInput::default());
        let platform = Platform::new(Box::new(sink.clone()), input.clone());
        let boot = BareBoot { entry: BASE + CODE, stack: BASE + STACK, start_info: 0x5000, cr3: TABLES };
        let (machine, regs) =
            BareMachine::new(&boot, 0..SHADOW_FRAMES, [0; 16], platform, &mem, &mut log, &mut space).unwrap();
        Self { mem, log, space, machine, regs, sink, input, now: 0 }
    }

    /// With its GDT, IDT and TSS in place and loaded, STAR set, and a gate for every vector.
    pub fn booted() -> Self {
        let mut g = Self::new();
        for (i, descriptor) in [
            0,
            0x00af_9a00_0000_ffff,
            0x00cf_9200_0000_ffff,
            0x0000_8900_0000_0067 | (BASE + TSS) << 16 & 0xff_ffff_0000 | (BASE + TSS) >> 24 << 56,
            (BASE + TSS) >> 32,
            0,
            0,
            0x00cf_f200_0000_ffff,
            0x00af_fa00_0000_ffff,
        ]
        .into_iter()
        .enumerate()
        {
            g.poke(GDT + 8 * i as u64, descriptor);
        }
        for number in 0..=255 {
            g.set_gate(number, 0xe, 0, 0);
        }
        g.poke_bytes(TSS + 4, &(BASE + RSP0).to_le_bytes());
        g.poke_bytes(TSS + 36, &(BASE + IST1).to_le_bytes());
        let cpu = &mut g.machine.cpu;
        cpu.gdt = virtual_cpu::TableRegister { base: BASE + GDT, limit: 9 * 8 - 1 };
        cpu.idt = virtual_cpu::TableRegister { base: BASE + IDT, limit: 4095 };
        cpu.task = virtual_cpu::SystemSegment { selector: TASK, base: BASE + TSS, limit: 0x67 };
        cpu.efer |= efer::SCE;
        cpu.star = u64::from(USER_DS - 8) << 48 | u64::from(KERNEL_CS) << 32;
        (cpu.selectors.cs, cpu.selectors.ss) = (KERNEL_CS, KERNEL_DS);
        g
    }

    /// A booted guest that runs a user program.
    pub fn in_user_mode() -> Self {
        let mut g = Self::booted();
        (g.regs.rip, g.regs.rsp) = (BASE + USER_CODE, BASE + USER_STACK);
        let cpu = &mut g.machine.cpu;
        (cpu.selectors.cs, cpu.selectors.ss) = (USER_CS, USER_DS);
        (cpu.user, cpu.interrupts) = (true, true);
        let (view, controls) = (view(cpu), controls(cpu));
        g.machine.shadow.activate(&g.mem, &mut g.log, &mut g.space, TABLES, view, controls).unwrap();
        g
    }

    pub fn set_gate(&mut self, number: u8, kind: u64, dpl: u64, ist: u64) {
        let handler = BASE + HANDLERS + 16 * u64::from(number);
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | ist << 32
            | kind << 40
            | dpl << 45
            | 1 << 47
            | (handler >> 16 & 0xffff) << 48;
        self.poke(IDT + 16 * u64::from(number), low);
        self.poke(IDT + 16 * u64::from(number) + 8, handler >> 32);
    }

    pub fn maddr(&self, physical: u64) -> Maddr {
        Maddr(SHADOW_FRAMES * 4096 + physical)
    }
    pub fn poke(&mut self, physical: u64, value: u64) {
        self.mem.store_u64(self.maddr(physical), value).unwrap();
    }
    pub fn poke_bytes(&mut self, physical: u64, bytes: &[u8]) {
        self.mem.write(self.maddr(physical), bytes).unwrap();
    }
    pub fn peek(&self, physical: u64) -> u64 {
        self.mem.read_obj(self.maddr(physical)).unwrap()
    }

    pub fn exit(&mut self, exit: Exit) -> BareExit {
        self.machine.handle_exit(&mut self.regs, exit, &self.mem, &mut self.log, &mut self.space, self.now)
    }
    /// The instruction `code` at RIP traps, as privileged ones do.
    pub fn traps(&mut self, code: &[u8]) -> BareExit {
        self.traps_with(code, vector::PROTECTION, 0)
    }
    pub fn traps_with(&mut self, code: &[u8], vector: u8, error_code: u32) -> BareExit {
        self.poke_bytes(self.regs.rip - BASE, code);
        self.exit(Exit::Fault(Fault { vector, error_code, address: 0 }))
    }
    /// The instruction `code` at RIP takes a page fault at `address`.
    pub fn page_faults(&mut self, code: &[u8], error_code: u32, address: u64) -> BareExit {
        self.poke_bytes(self.regs.rip - BASE, code);
        self.exit(Exit::Fault(Fault { vector: vector::PAGE, error_code, address }))
    }
    pub fn pending(&mut self) -> Result<Option<u8>, DomainEnd> {
        self.machine.deliver_pending(&mut self.regs, &self.mem, &mut self.log, &mut self.space, self.now)
    }

    /// The vector whose handler RIP is at.
    pub fn handling(&self) -> Option<u8> {
        let offset = self.regs.rip.checked_sub(BASE + HANDLERS)?;
        if offset % 16 == 0 { u8::try_from(offset / 16).ok() } else { None }
    }
    /// The words on top of the stack.
    pub fn stack<const N: usize>(&self) -> [u64; N] {
        let mut words = [0; N];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.peek(self.regs.rsp - BASE + 8 * i as u64);
        }
        words
    }
    pub fn push(&mut self, words: &[u64]) {
        for &word in words.iter().rev() {
            self.regs.rsp -= 8;
            self.poke(self.regs.rsp - BASE, word);
        }
    }
}

/// The exit was this instruction, and the guest goes on.
#[track_caller]
pub(super) fn resumed(handled: &BareExit, op: PrivOp) {
    assert_eq!(*handled, BareExit { cause: Cause::PrivilegedInstruction(op), outcome: BareOutcome::Resume });
}

/// The guest died, and the message holds `words`.
#[track_caller]
pub(super) fn died(handled: &BareExit, words: &str) {
    let BareOutcome::Ended(DomainEnd::Killed(why)) = &handled.outcome else { panic!("{handled:?}") };
    assert!(why.contains(words), "{why}");
}
