//! The first instructions: `docs/bare-boot.md` says in which state the loader starts the kernel.

use core::ffi::CStr;
use core::panic::PanicInfo;

use super::{cpu, paging, serial};

/// The field of `hvm_start_info` with the physical address of the command line (Xen's `arch-x86/hvm/start_info.h`).
const CMDLINE: usize = 24;
/// The longest command line, its end included.
const LONGEST: usize = 1024;

// SAFETY: a symbol of the link script; only its address is used.
unsafe extern "C" {
    safe static __virt_base: u8;
}

/// Makes `$main`, a `fn(&str) -> !`, the start of a kernel on bare x86-64, and a panic its end.
#[macro_export]
macro_rules! bare_entry {
    ($main:path) => {
        extern "C" fn first(start_info: u64, free: u64) -> ! {
            // SAFETY: `_start` passes what the loader left.
            $main(unsafe { $crate::bare::entry::start(start_info, free) })
        }

        #[panic_handler]
        fn panicked(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::bare::entry::panicked(info)
        }

        ::core::arch::global_asm!(
            ".pushsection .note.Paravane, \"a\", @note",
            ".p2align 2",
            ".long 9, 4, 1",
            ".asciz \"Paravane\"",
            ".p2align 2",
            ".long 1",
            ".long 9, 8, 2",
            ".asciz \"Paravane\"",
            ".p2align 2",
            ".quad __virt_base",
            ".popsection",
            ".pushsection .bss.page_aligned, \"aw\", @nobits",
            ".p2align 12",
            ".skip 65536",
            "stack_top:",
            ".popsection",
            ".pushsection .text.entry, \"ax\", @progbits",
            ".globl _start",
            "_start:",
            "cld",
            "xor ebp, ebp",
            "mov rax, cr0",
            "and eax, ~(1 << 2 | 1 << 3)", // EM and TS off, or SSE faults (SDM vol. 3, 14.1)
            "or eax, 1 << 1 | 1 << 16",
            "mov cr0, rax",
            "mov rax, cr4",
            "or eax, 1 << 9 | 1 << 10", // OSFXSR, OSXMMEXCPT: compiled Rust uses SSE
            "mov cr4, rax",
            "mov rdi, rsi",
            "mov rsi, rsp",
            "lea rsp, [rip + stack_top]",
            "call {first}",
            "ud2",
            ".popsection",
            first = sym first,
        );
    };
}

/// Prepares the serial port and the free memory; the command line.
///
/// # Safety
/// `start_info` is the physical address that the loader left in RSI, and memory from `free` on is nobody's.
pub unsafe fn start(start_info: u64, free: u64) -> &'static str {
    serial::init();
    paging::init(free);
    let at = |physical: u64| (&raw const __virt_base as u64 + physical) as *const u8;
    // SAFETY: the loader's structures are there, and mapped, and so is what comes after them.
    let line = unsafe {
        let line = at(start_info).add(CMDLINE).cast::<u64>().read_unaligned();
        if line == 0 { b"\0" } else { core::slice::from_raw_parts(at(line), LONGEST) }
    };
    CStr::from_bytes_until_nul(line).unwrap_or_default().to_str().unwrap_or_default()
}

struct Serial;

impl core::fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        serial::write(text);
        Ok(())
    }
}

/// Says what happened, and turns the machine off.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    let _ = core::fmt::write(&mut Serial, format_args!("{info}\n"));
    // SAFETY: the port that says that the guest has crashed.
    unsafe { cpu::outb(0xf4, 3) };
    cpu::power_off()
}
