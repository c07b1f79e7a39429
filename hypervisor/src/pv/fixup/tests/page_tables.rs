//! Stores to L1 tables: every form that is known, and the ways in which one is refused.

use paravane_abi::pte;
use paravane_abi::trap::{PFEC_FETCH, PFEC_PRESENT, PFEC_USER, PFEC_WRITE};
use paravane_abi::vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES;
use proptest::prelude::*;

use super::*;
use crate::machine::memory::Mfn;
use crate::testing::pv::{L1, L2, RO, RW};

/// The page whose entry is changed, and its entry's address.
const PAGE: u64 = 40;
const ENTRY: u64 = va(L1) + PAGE * 8;

const fn at(address: u64) -> Fault {
    Fault { vector: 14, error_code: PFEC_PRESENT | PFEC_WRITE | PFEC_USER, address }
}

fn kernel() -> TestDomain {
    let mut t = domain();
    t.assists = 1 << VMASST_TYPE_WRITABLE_PAGETABLES;
    t.vcpu.regs.rdi = ENTRY;
    t
}

fn stores(t: &mut TestDomain, code: &[u8]) {
    assert_eq!(completes(t, code, at(ENTRY)), Cause::PageTableStore);
}

/// The fault is the guest's, as the hardware raised it.
fn is_the_guests(t: &mut TestDomain, code: &[u8], fault: Fault) {
    let before = t.peek(L1, PAGE);
    let (vector, [error_code, rip, _]) = raises(t, code, fault);
    let own = if t.vcpu.kernel_mode { fault.error_code & !PFEC_USER } else { fault.error_code };
    assert_eq!((vector, error_code as u32, rip), (14, own, RIP), "{code:02x?}");
    assert_eq!(t.peek(L1, PAGE), before);
}

const MOV_RDI_RAX: &[u8] = &[0x48, 0x89, 0x07];

#[test]
fn moves_of_every_size() {
    let mut t = kernel();
    t.vcpu.regs.rax = t.entry(PAGE, RO);
    stores(&mut t, MOV_RDI_RAX);
    assert_eq!(t.peek(L1, PAGE), t.entry(PAGE, RO));
    assert_eq!(t.mmu.frame(Mfn(t.mfn(PAGE))).unwrap().held_as(), None, "no longer mapped writable");
    assert_eq!(
        t.vcpu.space.pending(&t.log).writes.iter().last().map(|w| w.new),
        Some(t.entry(PAGE, RO)),
        "the engine hears of it"
    );

    t.vcpu.regs.rax = t.entry(PAGE, RW) & 0xff;
    stores(&mut t, &[0x88, 0x07]); // mov [rdi], al
    assert_eq!(t.peek(L1, PAGE), t.entry(PAGE, RW));
    stores(&mut t, &[0x48, 0xc7, 0x07, 0, 0, 0, 0]); // mov qword [rdi], 0
    assert_eq!(t.peek(L1, PAGE), 0);
    t.vcpu.regs.rax = t.entry(PAGE, RO);
    stores(&mut t, &[0x48, 0x0f, 0xc3, 0x07]); // movnti [rdi], rax
    stores(&mut t, &[0x66, 0xc7, 0x07, 0, 0]); // mov word [rdi], 0
    assert_eq!(t.peek(L1, PAGE), t.entry(PAGE, RO) & !0xffff);
}

#[test]
fn exchanges_return_what_was_there() {
    let mut t = kernel();
    let old = t.peek(L1, PAGE);
    t.vcpu.regs.rax = 0;
    stores(&mut t, &[0x48, 0x87, 0x07]); // xchg [rdi], rax
    assert_eq!((t.peek(L1, PAGE), t.vcpu.regs.rax), (0, old));

    (t.vcpu.regs.rax, t.vcpu.regs.rcx) = (5, old);
    stores(&mut t, &[0xf0, 0x48, 0x0f, 0xb1, 0x0f]); // lock cmpxchg [rdi], rcx
    assert_eq!((t.peek(L1, PAGE), t.vcpu.regs.rax), (0, 0), "not equal: nothing is stored");
    assert_eq!(t.vcpu.regs.rflags & 1 << 6, 0);
    stores(&mut t, &[0xf0, 0x48, 0x0f, 0xb1, 0x0f]);
    assert_eq!(t.peek(L1, PAGE), old);
    assert_ne!(t.vcpu.regs.rflags & 1 << 6, 0);
    t.vcpu.regs.rax = 0x1000;
    stores(&mut t, &[0xf0, 0x48, 0x0f, 0xc1, 0x07]); // lock xadd [rdi], rax
    assert_eq!((t.peek(L1, PAGE), t.vcpu.regs.rax), (old + 0x1000, old), "the next frame");
}

#[test]
fn arithmetic_on_entries() {
    let mut t = kernel();
    let entry = t.entry(PAGE, RW);
    stores(&mut t, &[0x48, 0x83, 0x27, 0xfd]); // and qword [rdi], ~2
    assert_eq!(t.peek(L1, PAGE), entry & !pte::RW);
    stores(&mut t, &[0xf0, 0x48, 0x83, 0x0f, 0x02]); // lock or qword [rdi], 2
    assert_eq!(t.peek(L1, PAGE), entry);
    stores(&mut t, &[0xf0, 0x48, 0x0f, 0xba, 0x37, 0x06]); // lock btr qword [rdi], 6
    assert_eq!((t.peek(L1, PAGE), t.vcpu.regs.rflags & 1), (entry & !pte::DIRTY, 1));
    t.vcpu.regs.rax = 6;
    stores(&mut t, &[0x48, 0x0f, 0xab, 0x07]); // bts [rdi], rax
    assert_eq!((t.peek(L1, PAGE), t.vcpu.regs.rflags & 1), (entry, 0));
    stores(&mut t, &[0x48, 0x83, 0x37, 0x01]); // xor qword [rdi], 1
    stores(&mut t, &[0x48, 0xff, 0x07]); // inc qword [rdi]
    assert_eq!(t.peek(L1, PAGE), entry);
}

#[test]
fn string_stores_go_one_element_at_a_time() {
    let mut t = kernel();
    (t.vcpu.regs.rax, t.vcpu.regs.rcx) = (0, 3);
    for left in [2, 1] {
        let fault = at(t.vcpu.regs.rdi);
        execute(&mut t, &[0xf3, 0x48, 0xab], fault); // rep stosq
        assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rcx), (RIP, left));
    }
    let last = at(t.vcpu.regs.rdi);
    completes(&mut t, &[0xf3, 0x48, 0xab], last);
    assert_eq!([0, 1, 2].map(|n| t.peek(L1, PAGE + n)), [0; 3]);
    assert_ne!(t.peek(L1, PAGE + 3), 0);

    t.poke(SCRATCH_PAGE, 0, t.entry(PAGE, RO));
    (t.vcpu.regs.rdi, t.vcpu.regs.rsi) = (ENTRY, va(SCRATCH_PAGE));
    stores(&mut t, &[0x48, 0xa5]); // movsq
    assert_eq!(t.peek(L1, PAGE), t.entry(PAGE, RO));
    assert_eq!((t.vcpu.regs.rdi, t.vcpu.regs.rsi), (ENTRY + 8, va(SCRATCH_PAGE) + 8));
}

const SCRATCH_PAGE: u64 = crate::testing::pv::SCRATCH;

#[test]
fn what_is_not_done_is_the_guests_page_fault() {
    let mut t = kernel();
    t.vcpu.regs.rax = t.entry(L2, RW);
    is_the_guests(&mut t, MOV_RDI_RAX, at(ENTRY)); // a page table, writable
    t.vcpu.regs.rax = pte::make(0, RW);
    is_the_guests(&mut t, MOV_RDI_RAX, at(ENTRY)); // the hypervisor's frame
    t.vcpu.regs.rax = 0;
    is_the_guests(&mut t, &[0x48, 0x0f, 0x11, 0x07], at(ENTRY)); // movups: the engine's registers
    t.vcpu.regs.rdi = ENTRY + 4;
    is_the_guests(&mut t, MOV_RDI_RAX, at(ENTRY + 4)); // not aligned
    t.vcpu.regs.rdi = va(50);
    is_the_guests(&mut t, MOV_RDI_RAX, at(ENTRY)); // another page than the one that faulted
    t.vcpu.regs.rdi = va(L2);
    is_the_guests(&mut t, MOV_RDI_RAX, at(va(L2))); // not an L1 table
    t.vcpu.regs.rdi = ENTRY;
    for error_code in [PFEC_PRESENT, PFEC_WRITE, PFEC_PRESENT | PFEC_WRITE | PFEC_FETCH] {
        is_the_guests(&mut t, MOV_RDI_RAX, Fault { error_code, ..at(ENTRY) });
    }
    t.assists = 0;
    is_the_guests(&mut t, MOV_RDI_RAX, at(ENTRY));
    t.assists = 1 << VMASST_TYPE_WRITABLE_PAGETABLES;
    stores(&mut t, MOV_RDI_RAX);
}

proptest! {
    /// Whatever is stored, the table holds what validation lets through: never a writable mapping of a table.
    #[test]
    fn any_store(values in prop::collection::vec((any::<u64>(), 0u64..100, any::<u16>(), any::<bool>()), 1..40)) {
        let mut t = kernel();
        for (any, pfn, flags, sane) in values {
            let value = if sane { pte::make(t.mfn(0) + pfn, u64::from(flags) & 0xfff) } else { any };
            t.vcpu.regs.rax = value;
            execute(&mut t, MOV_RDI_RAX, at(ENTRY));
            let entry = t.peek(L1, PAGE);
            if entry & pte::PRESENT != 0 {
                let frame = t.mmu.frame(Mfn(pte::mfn(entry))).unwrap();
                prop_assert_eq!(entry & (pte::PSE | pte::PWT | pte::PCD), 0);
                prop_assert!(entry & pte::RW == 0 || !matches!(
                    frame.held_as(),
                    Some(crate::mmu::direct::frame::FrameType::Table(_))
                ));
            }
        }
    }
}
