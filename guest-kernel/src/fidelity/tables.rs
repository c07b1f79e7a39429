//! SGDT, SIDT, SLDT, STR and SMSW: where the tables are, and what state the processor is in.

use core::arch::{asm, naked_asm};

use crate::machine::bare::descriptors::{self, DESCRIPTORS, TSS, TablePointer, USER_DATA};
use crate::single::Single;

use super::Answer;
use super::guard::attempt;

/// The selector of a local descriptor table, in the table of this module: two entries that the kernel does not use.
const LDT: u16 = 7 << 3;
/// The base of user mode's data: as a stack segment it has none (SDM vol. 3, 3.2.4).
pub(super) const USER_DATA_BASE: u64 = 64;

/// The kernel's descriptors, and a local descriptor table of one empty entry.
static GDT: Single<[u64; DESCRIPTORS]> = Single::new([0; DESCRIPTORS]);
static EMPTY: Single<u64> = Single::new(0);

/// Extends the kernel's descriptor table.
pub(super) fn load() {
    let table = EMPTY.as_ptr() as u64;
    // SAFETY: there is no other reference; the descriptors in use stay the same in the new table.
    unsafe {
        let kernel = descriptors::table();
        let all = GDT.get();
        all.copy_from_slice(&kernel);
        // An LDT of 8 bytes (SDM vol. 3, 3.5.1).
        let low = 7 | (table & 0xff_ffff) << 16 | 0x82 << 40 | (table >> 24 & 0xff) << 56;
        let own = usize::from(LDT / 8);
        all[own..own + 2].copy_from_slice(&[low, table >> 32]);
        all[usize::from(USER_DATA / 8)] |= USER_DATA_BASE << 16;
        asm!("lgdt [{}]", in(reg) &TablePointer::to(&GDT), options(nostack, readonly));
    }
}

/// The base that an instruction stores.
fn base(store: unsafe extern "C" fn(u64, u64) -> u64) -> Answer {
    let mut stored = [0u8; 16];
    let at = stored.as_mut_ptr() as u64;
    match attempt(store, at, 0) {
        Answer::Value(_) => {
            // SAFETY: the instruction stored 10 bytes there: the limit and the base.
            Answer::Value(unsafe { ((at + 2) as *const u64).read_unaligned() })
        }
        other => other,
    }
}

pub(super) fn sgdt() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn store(at: u64, _: u64) -> u64 {
        naked_asm!("sgdt [rdi]", "ret")
    }
    (Answer::Value(GDT.as_ptr() as u64), base(store))
}

pub(super) fn sidt() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn store(at: u64, _: u64) -> u64 {
        naked_asm!("sidt [rdi]", "ret")
    }
    (Answer::Value(descriptors::idt_base()), base(store))
}

pub(super) fn sldt() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(selector: u64, _: u64) -> u64 {
        naked_asm!("lldt di", "xor eax, eax", "sldt eax", "xor ecx, ecx", "lldt cx", "ret")
    }
    (Answer::Value(LDT.into()), attempt(read, LDT.into(), 0))
}

pub(super) fn task() -> (Answer, Answer) {
    #[unsafe(naked)]
    unsafe extern "C" fn read(_: u64, _: u64) -> u64 {
        naked_asm!("xor eax, eax", "str eax", "ret")
    }
    (Answer::Value(TSS.into()), attempt(read, 0, 0))
}

/// CR0.TS is what changes most often of what it shows: it is set here. No interrupt handler, which would use vector
/// registers, runs meanwhile.
pub(super) fn smsw() -> (Answer, Answer) {
    const TASK_SWITCHED: u64 = 8;
    #[unsafe(naked)]
    unsafe extern "C" fn read(changed: u64, old: u64) -> u64 {
        naked_asm!("mov cr0, rdi", "xor eax, eax", "smsw ax", "mov cr0, rsi", "ret")
    }
    let cr0: u64;
    // SAFETY: reading CR0 has no effect.
    unsafe { asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags)) };
    let changed = cr0 | TASK_SWITCHED;
    (Answer::Value(changed & 0xffff), attempt(read, changed, cr0))
}
