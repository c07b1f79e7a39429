//! The entry code of exceptions and interrupts, and their dispatch.

use core::arch::{asm, global_asm};

use crate::interrupts;
use crate::machine::exception::{self, Exception};

use super::pic::{self, FIRST_IRQ};
use super::{timer, tsc, uart, virtio};

/// Vectors with a gate: 32 exceptions, 16 interrupt requests.
pub const VECTORS: usize = 48;

pub const GENERAL_PROTECTION: u8 = 13;
pub const PAGE_FAULT: u64 = 14;
const TIMER: u64 = FIRST_IRQ as u64 + pic::TIMER_IRQ as u64;
const SERIAL: u64 = FIRST_IRQ as u64 + pic::SERIAL_IRQ as u64;

/// The frame that the stubs below leave on the stack, lowest address first.
#[repr(C)]
pub struct Frame {
    pub registers: [u64; 15],
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

// One stub of 16 bytes for each vector pushes a zero where the processor pushes no error code (the constant has a bit
// for each vector with an error code: SDM vol. 3, table 6-1), then the vector. The common part saves the general
// registers and the vector registers, which compiled Rust uses anywhere.
global_asm!(
    ".pushsection .text.traps, \"ax\", @progbits",
    ".p2align 4",
    "trap_stubs:",
    ".set vector, 0",
    ".rept {vectors}",
    ".p2align 4",
    ".if ((0x60227d00 >> vector) & 1) == 0",
    "push 0",
    ".endif",
    ".byte 0x6a, vector", // push imm8
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    // What interrupts a program is handled by whoever started it.
    "test byte ptr [rsp + {cs}], 3",
    "jnz program_left",
    "mov rbp, rsp",
    "sub rsp, 512",
    "and rsp, -16",
    "fxsave64 [rsp]",
    "cld",
    "mov rdi, rbp",
    "80: call {dispatch}",
    "81: fxrstor64 [rsp]",
    "mov rsp, rbp",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    // For debuggers, where the handler returns to: RBP is the frame's address, and what was interrupted is in the
    // frame; its stack pointer is the CFA (DWARF 4, 6.4; "S": the one above is not at a call).
    ".pushsection .debug_frame, \"\", @progbits",
    "90: .long 92f - 91f",
    "91: .long 0xffffffff",
    ".byte 1, 'S', 0, 1, 0x78, 16",
    ".balign 8, 0",
    "92: .long 94f - 93f",
    "93: .long 90b",
    ".quad 80b, 81b + 4 - 80b",
    ".byte 0x0f, 4, 0x76",
    ".sleb128 {rsp}",
    ".byte 0x06",
    ".byte 0x10, 16, 3, 0x76",
    ".sleb128 {rip}",
    ".byte 0x10, 6, 3, 0x76",
    ".sleb128 {rbp}",
    ".balign 8, 0",
    "94:",
    ".popsection",
    ".popsection",
    rsp = const core::mem::offset_of!(Frame, rsp),
    rip = const core::mem::offset_of!(Frame, rip),
    // R15 comes first.
    rbp = const core::mem::offset_of!(Frame, registers) + 8 * 10,
    vectors = const VECTORS,
    cs = const core::mem::offset_of!(Frame, cs),
    dispatch = sym dispatch,
);

// SAFETY: a label of the assembly above; only its address is used.
unsafe extern "C" {
    safe static trap_stubs: u8;
}

/// The address of a vector's stub.
pub fn entry_point(vector: usize) -> u64 {
    &raw const trap_stubs as u64 + vector as u64 * 16
}

extern "C" fn dispatch(frame: &mut Frame) {
    match frame.vector {
        vector if vector < FIRST_IRQ as u64 => handle_exception(frame),
        vector => interrupt(vector),
    }
}

/// Handles the interrupt of a vector, with interrupts off.
pub fn interrupt(vector: u64) {
    match vector {
        TIMER => {
            pic::acknowledge(pic::TIMER_IRQ);
            if timer::expired() {
                interrupts::timer::arrived(tsc::nanoseconds());
            }
        }
        SERIAL => {
            pic::acknowledge(pic::SERIAL_IRQ);
            uart::receive();
        }
        vector if virtio::is_line(vector - FIRST_IRQ as u64) => {
            let irq = (vector - FIRST_IRQ as u64) as u8;
            virtio::interrupt(irq);
            pic::acknowledge(irq);
        }
        // All other lines are masked, so this is a spurious request, which must not be acknowledged.
        _ => {}
    }
}

fn handle_exception(frame: &mut Frame) {
    let mut exception = Exception {
        vector: frame.vector as u8,
        error_code: frame.error_code,
        rip: frame.rip,
        address: if frame.vector == PAGE_FAULT { fault_address() } else { 0 },
    };
    exception::deliver(&mut exception);
    frame.rip = exception.rip;
}

/// CR2.
pub fn fault_address() -> u64 {
    let address;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    address
}
