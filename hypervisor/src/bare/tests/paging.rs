//! Page faults: the guest's and the shadow's, page-table stores, device memory.

use super::*;
use crate::ledger::MmioDevice;

const WRITE: u32 = 0b110;
const READ: u32 = 0b100;
const STORE: BareExit = BareExit { cause: Cause::PageTableStore, outcome: BareOutcome::Resume };
const FILL: BareExit = BareExit { cause: Cause::ShadowFill, outcome: BareOutcome::Resume };

/// An L1 entry far from the guest's own pages, and its address in memory.
const PAGE: u64 = 200;
const ENTRY: u64 = L1 + PAGE * 8;

/// The guest's tables in use and mapped.
fn guest() -> Guest {
    let mut g = Guest::booted();
    assert_eq!(g.page_faults(&[0x90], READ, BASE + PAGE * 4096), FILL);
    g
}

#[test]
fn faults_are_the_guests_or_the_shadows() {
    let mut g = guest();
    assert_eq!(g.regs.rip, BASE + CODE, "the instruction runs again");
    g.page_faults(&[0x90], READ, BASE + 0x40_0008);
    assert_eq!((g.handling(), g.stack::<2>()), (Some(14), [0, BASE + CODE]));
    assert_eq!(g.machine.cpu.cr2, BASE + 0x40_0008);
    // A program's access to the kernel's pages: the error code follows the guest's tables, not the shadow's.
    let mut g = Guest::in_user_mode();
    g.page_faults(&[0x90], READ, BASE + CODE);
    assert_eq!((g.handling(), g.stack::<1>()), (Some(14), [0b101]));
    let mut g = Guest::in_user_mode();
    assert_eq!(g.page_faults(&[0x90], READ | 0x10, BASE + USER_CODE), FILL);
    died(&Guest::reserved(), "in the linear range 0xffff800000000000");
}

impl Guest {
    /// Maps something in the hypervisor's slots and touches it.
    fn reserved() -> BareExit {
        let mut g = Guest::booted();
        let entry = g.peek(TABLES);
        g.poke(TABLES + 256 * 8, entry);
        g.page_faults(&[0x90], READ, 0xffff_8000_4000_0000)
    }
}

/// Each way to store to an entry: code with RDI at the entry, and the entry afterwards.
#[test]
fn page_table_stores_by_every_instruction() {
    let old = PAGE << 12 | RW_SEEN | pte::USER;
    let new = 300 << 12 | RW_SEEN;
    let cases: [(&[u8], u64); 22] = [
        (&[0x48, 0x89, 0x07], new),                                 // mov [rdi], rax
        (&[0x48, 0xc7, 0x07, 0x63, 0x10, 0, 0], 0x1063),            // mov qword [rdi], imm32
        (&[0x48, 0x0f, 0xc3, 0x07], new),                           // movnti [rdi], rax
        (&[0x48, 0x87, 0x07], new),                                 // xchg [rdi], rax
        (&[0x48, 0x83, 0x27, 0xfd], old & !pte::RW),                // and qword [rdi], -3
        (&[0x80, 0x27, 0xfd], old & !pte::RW),                      // and byte [rdi], -3
        (&[0xf0, 0x48, 0x09, 0x07], old | new),                     // lock or [rdi], rax
        (&[0x48, 0x31, 0x07], old ^ new),                           // xor [rdi], rax
        (&[0x48, 0x01, 0x07], old.wrapping_add(new)),               // add [rdi], rax
        (&[0x48, 0x29, 0x07], old.wrapping_sub(new)),               // sub [rdi], rax
        (&[0x48, 0x11, 0x07], old.wrapping_add(new)),               // adc [rdi], rax
        (&[0x48, 0xff, 0x07], old + 1),                             // inc qword [rdi]
        (&[0x48, 0xff, 0x0f], old - 1),                             // dec qword [rdi]
        (&[0x48, 0xf7, 0x17], !old),                                // not qword [rdi]
        (&[0x48, 0xf7, 0x1f], old.wrapping_neg()),                  // neg qword [rdi]
        (&[0x48, 0x0f, 0xba, 0x37, 0x01], old & !pte::RW),          // btr qword [rdi], 1
        (&[0xf0, 0x48, 0x0f, 0xba, 0x2f, 0x08], old | pte::GLOBAL), // lock bts qword [rdi], 8
        (&[0x48, 0x0f, 0xba, 0x3f, 0x3f], old | pte::NX),           // btc qword [rdi], 63
        (&[0x48, 0x0f, 0xab, 0x0f], old | pte::NX),                 // bts [rdi], rcx
        (&[0xf0, 0x48, 0x0f, 0xb1, 0x17], old),                     // lock cmpxchg [rdi], rdx: unequal
        (&[0x48, 0x0f, 0xc1, 0x07], old.wrapping_add(new)),         // xadd [rdi], rax
        (&[0x48, 0xab], new),                                       // stosq
    ];
    for (code, expected) in cases {
        let mut g = guest();
        g.poke(ENTRY, old);
        (g.regs.rdi, g.regs.rax, g.regs.rcx) = (BASE + ENTRY, new, 63);
        assert_eq!(g.page_faults(code, WRITE | 1, BASE + ENTRY), STORE, "{code:x?}");
        assert_eq!(g.peek(ENTRY), expected, "{code:x?}");
        assert_eq!(g.regs.rip, BASE + CODE + code.len() as u64, "{code:x?}");
        g.check_shadow(&format!("{code:x?}"));
    }
    let mut g = guest();
    g.poke(ENTRY, old);
    (g.regs.rdi, g.regs.rax, g.regs.rdx) = (BASE + ENTRY, old, new);
    g.page_faults(&[0xf0, 0x48, 0x0f, 0xb1, 0x17], WRITE | 1, BASE + ENTRY);
    assert_eq!(g.peek(ENTRY), new);
    assert_ne!(g.regs.rflags & rflags::ZF, 0);
}

impl Guest {
    /// The shadow of [`PAGE`] agrees with the guest's entry, or is missing.
    fn check_shadow(&self, why: &str) {
        use crate::x86::walk::{MachineTables, walk};
        let root = self.space.root().maddr().0;
        let Ok(found) = walk(&self.mem, &MachineTables, root, BASE + PAGE * 4096) else { return };
        let entry = self.peek(ENTRY);
        assert_eq!(found.maddr, Some(self.maddr(entry & pte::ADDR_MASK)), "{why}");
        assert!(entry & pte::PRESENT != 0 && (!found.writable || entry & pte::RW != 0), "{why}");
    }
}

#[test]
fn string_stores_are_bounded_per_exit() {
    let mut g = guest();
    (g.regs.rdi, g.regs.rcx, g.regs.rax) = (BASE + L1 + 0x1000, 1000, 0);
    assert_eq!(g.page_faults(&[0xf3, 0x48, 0xab], WRITE | 1, g.regs.rdi), FILL, "not yet a table");
    g.page_faults(&[0x90], READ, BASE + 0x20_0000);
    assert_eq!(g.page_faults(&[0xf3, 0x48, 0xab], WRITE | 1, BASE + L1 + 0x1000), STORE);
    assert_eq!((g.regs.rcx, g.regs.rip, g.regs.rdi), (488, BASE + CODE, BASE + L1 + 0x2000));
    assert_eq!(g.peek(L1 + 0x1000 + 511 * 8), 0);
    // After a few bytes it is no longer taken for a table, and the CPU continues by itself.
    let mut g = guest();
    g.page_faults(&[0x90], READ, BASE + 0x20_0000);
    (g.regs.rdi, g.regs.rcx, g.regs.rax) = (BASE + L1 + 0x1000 + 8, 1000, 0);
    assert_eq!(g.page_faults(&[0xf3, 0xaa], WRITE | 1, g.regs.rdi), STORE);
    assert!((900..1000).contains(&g.regs.rcx), "{}", g.regs.rcx);
    assert_eq!(g.page_faults(&[0xf3, 0xaa], WRITE | 1, g.regs.rdi), FILL);
    // MOVS from a table to a table.
    let mut g = guest();
    (g.regs.rsi, g.regs.rdi, g.regs.rcx) = (BASE + L1, BASE + ENTRY, 2);
    assert_eq!(g.page_faults(&[0xf3, 0x48, 0xa5], WRITE | 1, BASE + ENTRY), STORE);
    assert_eq!((g.peek(ENTRY), g.peek(ENTRY + 8)), (g.peek(L1), g.peek(L1 + 8)));
    assert_eq!((g.regs.rcx, g.regs.rip), (0, BASE + CODE + 3));
}

#[test]
fn a_vector_store_drops_the_table_and_runs_again() {
    let code = [0x0f, 0x29, 0x07]; // movaps [rdi], xmm0
    let mut g = guest();
    // The second L1 table is in use, but the instruction does not need it.
    g.page_faults(&[0x90], READ, BASE + 0x20_0000);
    g.regs.rdi = BASE + L1 + 0x1000;
    assert_eq!(g.page_faults(&code, WRITE | 1, BASE + L1 + 0x1000), STORE);
    assert_eq!(g.regs.rip, BASE + CODE);
    assert_eq!(g.page_faults(&code, WRITE | 1, BASE + L1 + 0x1000), FILL, "now it may be written");
    // The first one maps the instruction itself: it is a table again at once, and the store faults again.
    g.regs.rdi = BASE + ENTRY;
    assert_eq!(g.page_faults(&code, WRITE | 1, BASE + ENTRY), STORE);
    assert_eq!(g.page_faults(&code, READ | 0x10, BASE + CODE), FILL);
    died(&g.page_faults(&code, WRITE | 1, BASE + ENTRY), "use MOV, XCHG");
}

#[test]
fn device_memory_is_an_empty_bus() {
    let mut g = guest();
    g.poke(ENTRY, 0xfee0_0000 | RW_SEEN);
    (g.regs.rdi, g.regs.rax) = (BASE + PAGE * 4096, 0);
    let mmio = BareExit { cause: Cause::Mmio(MmioDevice::Other), outcome: BareOutcome::Resume };
    let va = g.regs.rdi;
    assert_eq!(g.page_faults(&[0x8b, 0x47, 0x10], READ, va + 0x10), mmio); // mov eax, [rdi+16]
    assert_eq!(g.regs.rax, 0xffff_ffff);
    assert_eq!(g.page_faults(&[0x0f, 0xb6, 0x0f], READ, va), mmio); // movzx ecx, byte [rdi]
    assert_eq!(g.regs.rcx, 0xff);
    assert_eq!(g.page_faults(&[0x48, 0x0f, 0xbe, 0x0f], READ, va), mmio); // movsx rcx, byte [rdi]
    assert_eq!(g.regs.rcx, u64::MAX);
    assert_eq!(g.page_faults(&[0x89, 0x07], WRITE, va), mmio); // mov [rdi], eax
    died(&g.page_faults(&[0x0f, 0x28, 0x07], READ, va), "not memory");
    let mut g = guest();
    g.poke(ENTRY, 0xfee0_0000 | RW_SEEN);
    g.page_faults(&[0x90], READ | 0x10, BASE + PAGE * 4096);
    assert_eq!(g.handling(), Some(6), "all ones are not a valid instruction");
}

#[test]
fn cr3_and_write_protect() {
    let mut g = guest();
    let root = g.space.root();
    let entry = g.peek(TABLES);
    g.poke(0x30_0000, entry);
    g.regs.rax = 0x30_0000;
    resumed(&g.traps(&[0x0f, 0x22, 0xd8]), PrivOp::MovToCr);
    assert_ne!(g.space.root(), root);
    g.regs.rax = TABLES;
    resumed(&g.traps(&[0x0f, 0x22, 0xd8]), PrivOp::MovToCr);
    assert_eq!(g.space.root(), root);
    g.regs.rax = 1 << 52;
    g.traps(&[0x0f, 0x22, 0xd8]);
    assert_eq!(g.handling(), Some(13));
    // A read-only page, with CR0.WP and without.
    g.poke(ENTRY, PAGE << 12 | (RW_SEEN & !pte::RW));
    g.page_faults(&[0x90], WRITE | 1, BASE + PAGE * 4096);
    assert_eq!((g.handling(), g.stack::<1>()), (Some(14), [0b11]));
    g.regs.rax = g.machine.cpu.cr0 & !cr0::WP;
    resumed(&g.traps(&[0x0f, 0x22, 0xc0]), PrivOp::MovToCr);
    assert_eq!(g.page_faults(&[0x90], WRITE | 1, BASE + PAGE * 4096), FILL);
    g.regs.rax = 1 << 40;
    died(&g.traps(&[0x0f, 0x22, 0xd8]), "loaded into CR3");
}

#[test]
fn faults_that_repeat_without_progress_end_the_guest() {
    let mut g = guest();
    let mut handled = g.page_faults(&[0x90], READ, BASE + PAGE * 4096);
    for _ in 0..16 {
        if handled != FILL {
            break;
        }
        handled = g.page_faults(&[0x90], READ, BASE + PAGE * 4096);
    }
    died(&handled, "keeps faulting");
    let mut g = guest();
    for i in 0..100 {
        assert_eq!(g.page_faults(&[0x90], READ, BASE + (PAGE + i % 2) * 4096), FILL, "not in a row");
    }
}
