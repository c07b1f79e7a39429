//! GDT, TSS and IDT (SDM vol. 3, chapters 3, 6 and 8).

use core::arch::asm;
use core::mem::size_of;

use crate::single::Single;

use super::pic::FIRST_IRQ;
use super::traps;

pub const CODE: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const TSS: u16 = 0x18;
pub const USER_DATA: u16 = 0x28 | 3;
pub const USER_CODE: u16 = 0x30 | 3;
/// Programs' descriptors. At CPL 3, an IRETQ to a selector that exists there does not trap; these are past the end of
/// the tables that hosts run on (Linux has 16 descriptors), so that one that is meant to enter ring 3 is seen.
pub const PROGRAM_DATA: u16 = 0x88 | 3;
pub const PROGRAM_CODE: u16 = 0x90 | 3;
/// SYSRET loads SS from 8 bytes after this, and CS from 16 bytes after it (SDM vol. 2B, SYSRET).
pub const SYSRET_BASE: u16 = USER_DATA - 8;

/// Interrupts and exceptions have a stack each: prebuilt code keeps values in the 128 bytes below RSP (the red zone),
/// which a frame pushed on the interrupted stack would overwrite. Handlers run with interrupts off, so that a stack
/// is entered twice only by an exception within an exception, which is fatal.
const INTERRUPT_STACK: u8 = 1;
const EXCEPTION_STACK: u8 = 2;

#[repr(C, align(16))]
struct Stack([u8; 16 * 1024]);

/// The 64-bit TSS (SDM vol. 3, 8.7), used only for the handlers' stacks.
#[repr(C, packed)]
struct TaskState {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

/// Entries of the GDT.
pub const DESCRIPTORS: usize = 19;

static GDT: Single<[u64; DESCRIPTORS]> = Single::new([
    0,
    0x00af_9b00_0000_ffff, // 64-bit code, DPL 0
    0x00cf_9300_0000_ffff, // data, DPL 0
    0,                     // the TSS, 16 bytes
    0,
    0x00cf_f300_0000_ffff, // data, DPL 3
    0x00af_fb00_0000_ffff, // 64-bit code, DPL 3
    0,                     // not used, up to those of programs
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0x00cf_f300_0000_ffff, // data, DPL 3
    0x00af_fb00_0000_ffff, // 64-bit code, DPL 3
]);
static TASK: Single<TaskState> = Single::new(TaskState {
    reserved0: 0,
    rsp: [0; 3],
    reserved1: 0,
    ist: [0; 7],
    reserved2: 0,
    reserved3: 0,
    io_map_base: size_of::<TaskState>() as u16, // no I/O permission map
});
static IDT: Single<[[u64; 2]; traps::VECTORS]> = Single::new([[0; 2]; traps::VECTORS]);
static STACKS: Single<[Stack; 2]> = Single::new([const { Stack([0; 16 * 1024]) }; 2]);

/// What LGDT and LIDT load.
#[repr(C, packed)]
pub struct TablePointer {
    limit: u16,
    base: u64,
}

impl TablePointer {
    /// A pointer to `table`, which is one.
    pub fn to<T>(table: &Single<T>) -> Self {
        Self { limit: size_of::<T>() as u16 - 1, base: table.as_ptr() as u64 }
    }
}

/// Builds and loads all descriptor tables.
pub fn load() {
    // SAFETY: called once, before any interrupt or exception can use the tables.
    unsafe {
        let stacks = STACKS.as_ptr() as u64;
        let task = TASK.get();
        let size = size_of::<Stack>() as u64;
        task.ist = [stacks + size, stacks + 2 * size, 0, 0, 0, 0, 0];
        let [_, _, _, low, high, ..] = GDT.get();
        (*low, *high) = task_descriptor(TASK.as_ptr() as u64);
        for (vector, gate) in IDT.get().iter_mut().enumerate() {
            *gate = interrupt_gate(traps::entry_point(vector), stack_for(vector));
        }
        load_segments();
        asm!("lidt [{}]", in(reg) &TablePointer::to(&IDT), options(nostack, readonly));
    }
}

/// The descriptors that [`load`] made.
pub fn table() -> [u64; DESCRIPTORS] {
    // SAFETY: nothing changes the table meanwhile.
    unsafe { *GDT.get() }
}

/// Where the IDT is.
pub fn idt_base() -> u64 {
    IDT.as_ptr() as u64
}

/// The address that a vector's gate leads to.
pub fn gate(vector: usize) -> u64 {
    // SAFETY: nothing changes the table meanwhile.
    let [low, high] = unsafe { IDT.get()[vector] };
    low & 0xffff | low >> 32 & 0xffff_0000 | high << 32
}

/// Makes a vector's gate lead to another handler, on the handlers' stack or on the one in use.
pub fn set_gate(vector: usize, handler: u64, own_stack: bool) {
    let stack = if own_stack { stack_for(vector) } else { 0 };
    // SAFETY: nothing that raises this exception runs meanwhile.
    unsafe { IDT.get()[vector] = interrupt_gate(handler, stack) };
}

/// Loads an empty IDT: the next exception ends the machine.
pub fn load_empty_idt() {
    let none = TablePointer { limit: 0, base: 0 };
    // SAFETY: ending the machine by the next exception is the purpose of this function.
    unsafe { asm!("lidt [{}]", in(reg) &none, options(nostack, readonly)) };
}

/// # Safety
/// GDT and TSS are complete.
unsafe fn load_segments() {
    // SAFETY: code and data stay flat; CS and SS are reloaded by IRETQ, with flags of our own (IF off) since
    // reading the present ones would not trap where it has to.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "mov {scratch}, rsp",
            "push {data}",
            "push {scratch}",
            "push 2",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "iretq",
            "2:",
            "ltr {task:x}",
            gdt = in(reg) &TablePointer::to(&GDT),
            scratch = out(reg) _,
            code = const CODE,
            data = const DATA,
            task = in(reg) TSS,
        );
    }
}

const fn stack_for(vector: usize) -> u8 {
    if vector < FIRST_IRQ { EXCEPTION_STACK } else { INTERRUPT_STACK }
}

/// An available 64-bit TSS (SDM vol. 3, 8.2.3).
const fn task_descriptor(base: u64) -> (u64, u64) {
    let limit = size_of::<TaskState>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    (low, base >> 32)
}

/// A present interrupt gate of DPL 0 (SDM vol. 3, 6.14.1).
const fn interrupt_gate(handler: u64, stack: u8) -> [u64; 2] {
    let low = handler & 0xffff
        | (CODE as u64) << 16
        | (stack as u64) << 32
        | 0x8e << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}
