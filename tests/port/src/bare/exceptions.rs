//! The GDT, the IDT, and the handlers' entry (SDM vol. 3, chapters 3 and 6).

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::timer;

const CODE: u16 = 0x08;
const VECTORS: usize = 48;
const PAGE_FAULT: u64 = 14;
const TIMER: u64 = timer::FIRST_VECTOR as u64;

static GDT: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; VECTORS]));
static PAGE_FAULT_HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

struct Idt(UnsafeCell<[[u64; 2]; VECTORS]>);

// SAFETY: there is one processor, and `load` is not called by handlers.
unsafe impl Sync for Idt {}

/// What LGDT and LIDT load.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// What the entry below leaves on the stack, lowest address first.
#[repr(C)]
struct Frame {
    registers: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
}

// A stub of 16 bytes for each vector: a zero where the processor pushes no error code, and the vector.
global_asm!(
    ".pushsection .text.traps, \"ax\", @progbits",
    ".p2align 4",
    "bare_stubs:",
    ".set vector, 0",
    ".rept {vectors}",
    ".p2align 4",
    ".if ((0x60227d00 >> vector) & 1) == 0",
    "push 0",
    ".endif",
    ".byte 0x6a, vector",
    "jmp bare_entry",
    ".set vector, vector + 1",
    ".endr",
    "bare_entry:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov rdi, rsp",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, 512",
    "and rsp, -16",
    "fxsave64 [rsp]",
    "cld",
    "call {dispatch}",
    "fxrstor64 [rsp]",
    "mov rsp, rbp",
    "pop rbp",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    vectors = const VECTORS,
    dispatch = sym dispatch,
);

// SAFETY: a label of the assembly above; only its address is used.
unsafe extern "C" {
    safe static bare_stubs: u8;
}

/// Has a handler called at each page fault.
pub fn handle_page_faults(handler: fn(u64)) {
    PAGE_FAULT_HANDLER.store(handler as *mut (), Ordering::Relaxed);
    load();
}

// ANCHOR: load
/// Loads the descriptor tables.
pub fn load() {
    for vector in 0..VECTORS {
        let handler = &raw const bare_stubs as u64 + 16 * vector as u64;
        let low = handler & 0xffff | u64::from(CODE) << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: nothing else uses the table now: interrupts are off.
        unsafe { (*IDT.0.get())[vector] = [low, handler >> 32] };
    }
    let gdt = TablePointer { limit: size_of_val(&GDT) as u16 - 1, base: GDT.as_ptr() as u64 };
    let idt = TablePointer { limit: size_of_val(&IDT) as u16 - 1, base: IDT.0.get() as u64 };
    // SAFETY: the tables are complete and stay; code and data stay flat.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "mov {scratch}, rsp",
            "push 0x10",
            "push {scratch}",
            "push 2",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "iretq",
            "2:",
            "lidt [{idt}]",
            gdt = in(reg) &gdt,
            idt = in(reg) &idt,
            scratch = out(reg) _,
            code = const CODE,
        );
    }
}
// ANCHOR_END: load

extern "C" fn dispatch(frame: &Frame) {
    let handler = PAGE_FAULT_HANDLER.load(Ordering::Relaxed);
    match frame.vector {
        TIMER => timer::interrupt(),
        PAGE_FAULT if !handler.is_null() => {
            let address;
            // SAFETY: reading CR2 has no effect.
            unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
            // SAFETY: `handle_page_faults` stored a function there.
            unsafe { core::mem::transmute::<*mut (), fn(u64)>(handler)(address) };
        }
        vector => {
            panic!("exception {vector}, error code {:#x}, at {:#x}", frame.error_code, frame.rip)
        }
    }
}
