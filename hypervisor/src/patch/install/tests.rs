//! Patches in a guest's memory, without an engine: nothing of it is executed.

use paravane_abi::pte;

use super::*;
use crate::exec::virtual_cpu::VirtualCpu;
use crate::ledger::Ledger;
use crate::machine::memory::{Backing, MachineMemory};
use crate::mmu::log::TableLog;
use crate::mmu::shadow::{Controls, Shadow, View};
use crate::mmu::space::VcpuSpace;
use crate::x86::descriptor::Gate;
use crate::x86::registers::Regs;

/// Frames of the hypervisor: shadow tables, the page of state, stubs.
const SHADOW: u64 = 64;
const STATE: u64 = SHADOW;
const OWN: u64 = STATE + 1 + 64;
/// Linear = BASE + physical.
const BASE: u64 = 0x4000_0000;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x1_0000;
const IDT: u64 = 0x1_2000;

struct World {
    memory: MachineMemory,
    log: TableLog,
    space: VcpuSpace,
    shadow: Shadow,
    cpu: VirtualCpu,
    regs: Regs,
    ledger: Ledger,
    patcher: Patcher,
}

impl World {
    /// A kernel with this code, all of it one function.
    fn one(code: &[u8], function: Range<u64>) -> Self {
        Self::new(code, std::slice::from_ref(&function))
    }

    /// A kernel with this code, whose functions are where `functions` say: offsets in it.
    fn new(code: &[u8], functions: &[Range<u64>]) -> Self {
        let memory = MachineMemory::new(OWN, 64, Backing::Anonymous).unwrap();
        let mut log = TableLog::default();
        let mut space = VcpuSpace::new(Mfn(0), &log);
        let flags = pte::PRESENT | pte::RW | pte::ACCESSED | pte::DIRTY;
        let poke = |at: u64, value: u64| memory.store_u64(Maddr(OWN * PAGE_SIZE + at), value).unwrap();
        poke(TABLES, (TABLES + 0x1000) | flags);
        poke(TABLES + 0x1008, (TABLES + 0x2000) | flags);
        poke(TABLES + 0x2000, (TABLES + 0x3000) | flags);
        for page in 0..64 {
            poke(TABLES + 0x3000 + page * 8, page << 12 | flags);
        }
        memory.write(Maddr(OWN * PAGE_SIZE + CODE), code).unwrap();
        let cpu = VirtualCpu::new(TABLES);
        let mut shadow = Shadow::new(0..SHADOW, 64, [0; 16]).unwrap();
        let controls = Controls { write_protect: true, no_execute: true };
        shadow.activate(&memory, &mut log, &mut space, TABLES, View::Kernel, controls).unwrap();
        let functions = functions.iter().map(|f| BASE + CODE + f.start..BASE + CODE + f.end).collect();
        let patcher = Patcher::new(STATE + 1..OWN, Mfn(STATE), [0x90; 32], functions);
        let regs = Regs { rip: BASE + CODE, ..Regs::default() };
        Self { memory, log, space, shadow, cpu, regs, ledger: Ledger::new(), patcher }
    }

    fn with<T>(&mut self, what: impl FnOnce(&mut Patcher, &mut Kernel<'_>) -> T) -> T {
        let Self { memory, log, space, shadow, cpu, regs, ledger, patcher } = self;
        what(patcher, &mut Kernel { cpu, shadow, regs, memory, log, space, ledger })
    }

    /// The instruction at the beginning traps, and the kernel is entered again.
    fn trap(&mut self) {
        self.with(|patcher, k| {
            patcher.trapped(k);
            patcher.refresh(k);
        });
    }

    fn code(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Maddr(OWN * PAGE_SIZE + CODE), &mut bytes).unwrap();
        bytes
    }

    fn is_patched(&self, offset: u64) -> bool {
        self.patcher.covers(BASE + CODE + offset)
    }

    /// A device stores there.
    fn store(&mut self, offset: u64, bytes: &[u8]) {
        let at = Maddr(OWN * PAGE_SIZE + CODE + offset);
        self.memory.note_lent(at, bytes.len() as u64);
        self.memory.write(at, bytes).unwrap();
        self.memory.note_foreign_write();
        self.with(|patcher, k| patcher.refresh(k));
    }
}

/// cli; mov eax, 1; sti; mov eax, 2; ret
const TWO: [u8; 13] = [0xfa, 0xb8, 1, 0, 0, 0, 0xfb, 0xb8, 2, 0, 0, 0, 0xc3];

#[test]
fn what_a_device_stores_over_a_patch_is_code_again() {
    for (offset, bytes) in [
        // In the jump; in what only the stub has a copy of; the kernel's own code once more, and a part of it.
        (0, &[0x90, 0x90][..]),
        (5, &[0x77]),
        (0, &TWO[..6]),
        (3, &TWO[3..5]),
    ] {
        let mut w = World::one(&TWO, 0..13);
        w.trap();
        assert!(w.is_patched(0) && w.is_patched(6), "{:x?}", w.code(13));
        w.store(offset, bytes);
        let mut expected = TWO;
        expected[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        assert!(!w.is_patched(0) && w.is_patched(6), "only what was stored to is taken back");
        assert_eq!(w.code(6), expected[..6], "{bytes:x?} at {offset}");
    }
}

/// Between the reading of the code and the writing of the jump: neither the stub's copy nor what the jump replaced is
/// what the guest has there.
#[test]
fn what_a_device_stores_while_a_patch_is_made_is_the_code() {
    for offset in [0, 3, 5] {
        let mut w = World::one(&TWO, 0..0);
        let mut code = [0; PAGE_SIZE as usize];
        w.memory.read(Maddr(OWN * PAGE_SIZE + CODE), &mut code).unwrap();
        w.store(offset, &[0x77]);
        let (site, at) = (BASE + CODE, Maddr(OWN * PAGE_SIZE + CODE));
        let done = w.with(|patcher, k| patcher.install_in(k, site, at, &code, &[]));
        assert_eq!((done, w.is_patched(0)), (None, false), "{:x?}", w.code(13));
        let mut expected = TWO;
        expected[offset as usize] = 0x77;
        assert_eq!(w.code(13), expected);
    }
    // What the stub has a copy of, and what the jump covers, are looked at after that as well.
    let mut w = World::one(&TWO, 0..0);
    w.trap();
    assert!(w.is_patched(0));
    w.store(5, &[0x77]);
    assert!(!w.is_patched(0));
}

#[test]
fn a_device_that_stores_elsewhere_costs_no_patch() {
    let mut w = World::one(&TWO, 0..13);
    w.trap();
    w.store(0x800, &[1; 64]);
    w.store(IDT - CODE, &[1; 64]);
    assert!(w.is_patched(0) && w.is_patched(6));
}

#[test]
fn handlers_that_no_symbol_names_are_patched_once_the_idt_is_loaded() {
    // At 0x20, without a symbol: push 0; jmp 0x30. At 0x30: add rsp, 8; iretq.
    let mut code = TWO.to_vec();
    code.resize(0x20, 0xcc);
    code.extend([0x6a, 0, 0xeb, 0x0c]);
    code.resize(0x30, 0xcc);
    code.extend([0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf]);
    code.resize(0x40, 0xcc);
    let mut w = World::one(&code, 0..13);
    w.trap();
    assert!(w.is_patched(0) && !w.is_patched(0x34));
    let handler = BASE + CODE + 0x20;
    let gate = Gate { handler, selector: 8, stack: 0, kind: Gate::INTERRUPT, dpl: 0, present: true };
    for (word, at) in gate.words().into_iter().zip([IDT + 32, IDT + 40]) {
        w.memory.store_u64(Maddr(OWN * PAGE_SIZE + at), word).unwrap();
    }
    w.cpu.idt = TableRegister { base: BASE + IDT, limit: 4095 };
    w.with(|patcher, k| patcher.refresh(k));
    assert!(w.is_patched(0x34), "{:x?}", w.code(0x40));
}

/// The frame of the interrupt that ends HLT has the address of the next instruction. If a jump hid that, each such
/// interrupt would end in it.
#[test]
fn what_follows_hlt_is_not_hidden() {
    // cmp rax, rbx; jae +4; sti; hlt; cli; jmp -10; ret
    let code = [0x48, 0x39, 0xd8, 0x73, 0x05, 0xfb, 0xf4, 0xfa, 0xeb, 0xf6, 0xc3];
    let mut w = World::one(&code, 0..11);
    w.regs.rip += 5;
    w.trap();
    assert!(w.is_patched(5) && w.is_patched(6), "{:x?}", w.code(11));
    let hidden = w.with(|patcher, k| patcher.entry(k, BASE + CODE + 7));
    assert_eq!(hidden, None);
}

/// Whichever of two sites comes later, could once have driven the other one out.
#[test]
fn neighbours_make_room_for_each_other() {
    // mov eax, ecx; out dx, al; shr ecx, 8; mov eax, ecx; out dx, al; sti; hlt; cli; rdtsc; shl rdx, 0x20; ret
    let code = [
        0x89, 0xc8, 0xee, 0xc1, 0xe9, 0x08, 0x89, 0xc8, 0xee, 0xfb, 0xf4, 0xfa, 0x0f, 0x31, 0x48, 0xc1, 0xe2,
        0x20, 0xc3,
    ];
    let mut w = World::one(&code, 0..19);
    w.regs.rip += 2;
    w.trap();
    let left: Vec<u64> = [2, 8, 9, 10, 11].into_iter().filter(|site| !w.is_patched(*site)).collect();
    assert!(left.is_empty(), "{left:?} of {:x?}", w.code(19));
}

/// A jump in the space behind a function is taken back like any other.
#[test]
fn the_space_behind_a_function_is_used_and_given_back() {
    // sti; hlt; jmp -4; int3s; then a function: ret
    let mut code = vec![0xfb, 0xf4, 0xeb, 0xfc];
    code.resize(0x10, 0xcc);
    code.push(0xc3);
    let mut w = World::new(&code, &[0..4, 16..17]);
    w.trap();
    let patched = w.code(17);
    let relay = 2 + usize::from(patched[1]);
    assert!(w.is_patched(0) && w.is_patched(1) && patched[0] == 0xeb, "{patched:x?}");
    assert!((4..=11).contains(&relay) && patched[relay] == 0xe9, "{patched:x?}");
    w.store(relay as u64 + 1, &[0x77]);
    code[relay + 1] = 0x77;
    assert!(!w.is_patched(0));
    assert_eq!(w.code(17), code);
}

/// No jump is known to lead to a site that was moved from before it. One that comes from a register finds it in its
/// place: it traps once, and not each time.
#[test]
fn a_site_that_is_jumped_to_behind_a_jump_gets_one_of_its_own() {
    // mov eax, 1; sti; ret; then a function: mov [rip], rsp; lea rsp, [rip]; ret
    let mut code = vec![0xb8, 1, 0, 0, 0, 0xfb, 0xc3];
    code.extend([0x48, 0x89, 0x25, 0, 0, 0, 0, 0x48, 0x8d, 0x25, 0, 0, 0, 0, 0xc3]);
    let mut w = World::new(&code, &[0..7, 7..22]);
    w.regs.rip += 5;
    w.trap();
    assert!(w.is_patched(5) && w.code(7)[..5] != code[..5] && w.code(7)[5..] == code[5..7]);
    w.trap();
    assert!(w.is_patched(5));
    assert_eq!((&w.code(7)[..5], w.code(7)[5]), (&code[..5], 0xeb), "{:x?}", w.code(22));
}
