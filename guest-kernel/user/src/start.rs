//! The first instructions, arguments, and panics.

use core::arch::{global_asm, naked_asm};
use core::panic::PanicInfo;

use crate::{eprintln, programs, sys};

global_asm!(
    ".pushsection .text.entry, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    ".popsection",
    begin = sym begin,
);

/// The arguments of a program.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    first: *const *const u8,
    count: usize,
}

impl Arguments {
    /// How many there are, the program's name included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// An argument; empty if there is no such one.
    pub fn get(&self, index: usize) -> &'static str {
        if index >= self.count {
            return "";
        }
        // SAFETY: the stack begins with that many addresses of texts, which end with zeroes and stay for ever.
        unsafe {
            let text = *self.first.add(index);
            let len = (0..).find(|i| *text.add(*i) == 0).unwrap_or(0);
            str::from_utf8(core::slice::from_raw_parts(text, len)).unwrap_or("?")
        }
    }

    /// A number among the arguments.
    pub fn number(&self, index: usize, otherwise: u64) -> u64 {
        self.get(index).parse().unwrap_or(otherwise)
    }

    /// Without the first one.
    pub fn shifted(&self) -> Self {
        // SAFETY: within the list, or at its end.
        Self { first: unsafe { self.first.add(1.min(self.count)) }, count: self.count.saturating_sub(1) }
    }
}

unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the stack begins with the number of arguments and their addresses (psABI for x86-64, 3.4.1).
    let arguments = unsafe { Arguments { count: *stack, first: stack.add(1).cast() } };
    sys::exit(programs::main(arguments))
}

/// What the compiler makes of the search for a text's end.
///
/// # Safety
/// As C's `strlen`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    naked_asm!("mov rax, -1", "2: inc rax", "cmp byte ptr [rdi + rax], 0", "jne 2b", "ret")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    eprintln!("{info}");
    sys::exit(101)
}
