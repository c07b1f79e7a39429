//! Page tables are memory that the processor reads (SDM vol. 3, 5.5).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::PAGE_SIZE;

const PRESENT_WRITABLE: u64 = 0b11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Tables that the kernel may need.
const TABLES: usize = 8;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static SPARE: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; 512]) }; TABLES];
static SPARE_USED: AtomicU64 = AtomicU64::new(0);
/// The first frame that nobody uses.
static FREE: AtomicU64 = AtomicU64::new(0);

// SAFETY: a symbol of the link script; only its address is used.
unsafe extern "C" {
    /// The linear address of physical address 0.
    safe static __virt_base: u8;
}

fn virt_base() -> u64 {
    &raw const __virt_base as u64
}

/// Memory from a linear address on is free.
pub fn init(free: u64) {
    FREE.store((free - virt_base()).next_multiple_of(PAGE_SIZE), Ordering::Relaxed);
}

// ANCHOR: map
/// Maps a page to the next free frame.
pub fn map(page: u64) {
    let mut table = root();
    for level in [3, 2, 1] {
        let entry = &table.0[index(page, level)];
        if entry.load(Ordering::Relaxed) & 1 == 0 {
            entry.store(spare() | PRESENT_WRITABLE, Ordering::Relaxed);
        }
        table = table_at(entry.load(Ordering::Relaxed) & ADDRESS);
    }
    let frame = FREE.fetch_add(PAGE_SIZE, Ordering::Relaxed);
    table.0[index(page, 0)].store(frame | PRESENT_WRITABLE, Ordering::Relaxed);
}
// ANCHOR_END: map

fn index(page: u64, level: u32) -> usize {
    (page >> (12 + 9 * level) & 511) as usize
}

/// The table that CR3 names.
fn root() -> &'static Table {
    let cr3: u64;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    table_at(cr3 & ADDRESS)
}

fn table_at(physical: u64) -> &'static Table {
    // SAFETY: tables are in memory that is mapped from `virt_base` on: the loader's, and `SPARE`.
    unsafe { &*((virt_base() + physical) as *const Table) }
}

/// The physical address of a table that nobody uses.
fn spare() -> u64 {
    let number = SPARE_USED.fetch_add(1, Ordering::Relaxed) as usize;
    &raw const SPARE[number] as u64 - virt_base()
}
