//! The parts of a kernel's image besides its code: entry point, boot stack, hypercall page, and the ELF notes by
//! which a domain builder recognises it. The link script (`paravane-guest-build`) places them.
//!
//! All of it is expanded in the kernel's own crate, whose object files the linker always takes.

/// Makes `$main`, a `fn(Boot) -> !`, the kernel's entry point, and makes the binary an image that a Xen domain
/// builder loads.
///
/// A kernel with a `_start` of its own does without this macro; it then brings its notes, its stack and a hypercall
/// page under the name `hypercall_page`, and calls [`Boot::new`](crate::Boot::new).
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::__entry!($main);
    };
}

#[cfg(guest)]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry {
    ($main:path) => {
        const _: () = ::core::assert!(
            ::core::option_env!("PARAVANE_GUEST_LINKED").is_some(),
            "this package is not linked as a kernel: it needs a build.rs whose `fn main() -> std::io::Result<()>` \
             is `paravane_guest_build::link::kernel(paravane_guest_build::link::LOW)`, \
             and paravane-guest-build among its build-dependencies"
        );
        #[unsafe(no_mangle)]
        extern "C" fn __paravane_main(start_info: u64, stack_top: u64) -> ! {
            // SAFETY: symbols of the linker script; only their addresses are used.
            unsafe extern "C" {
                static __virt_base: u8;
                static __image_start: u8;
                static __text_end: u8;
                static __rodata_end: u8;
                static __paravane_stack_guard: u8;
            }
            let main: fn($crate::Boot) -> ! = $main;
            let state = $crate::boot::FirstState {
                start_info,
                stack_top,
                virt_base: (&raw const __virt_base).addr() as u64,
                image_start: (&raw const __image_start).addr() as u64,
                text_end: (&raw const __text_end).addr() as u64,
                rodata_end: (&raw const __rodata_end).addr() as u64,
                stack_guard: (&raw const __paravane_stack_guard).addr() as u64,
            };
            // SAFETY: called once, by `_start`, with the registers that the domain builder set.
            main(unsafe { $crate::Boot::new(state) })
        }
        $crate::__image!();
    };
}

/// Without the flags for guests there is no kernel: says which are missing, and where they belong.
#[cfg(not(guest))]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry {
    ($main:path) => {
        ::core::compile_error!(
            "this is not built as a guest: the flag --cfg=guest is missing. It belongs into the kernel's \
             .cargo/config.toml, in rustflags (`paravane new NAME` writes a project that has it). If it is there: \
             cargo reads that file only when it runs in the kernel's own folder (--manifest-path is not enough), and \
             ignores its rustflags while RUSTFLAGS is set in the environment"
        );
    };
}

/// The assembly behind [`entry!`]: notes (public/elfnote.h), hypercall page, stack, first instructions.
#[doc(hidden)]
#[macro_export]
macro_rules! __image {
    () => {
        ::core::arch::global_asm!(
            ".macro XEN_NOTE type, value:vararg",
            ".p2align 2",
            ".long 4, 9f - 8f, \\type",
            ".asciz \"Xen\"",
            "8: \\value",
            "9: .p2align 2",
            ".endm",
            ".pushsection .note.Xen, \"a\", @note",
            "XEN_NOTE {guest_os}, .asciz \"Paravane guest\"",
            "XEN_NOTE {guest_version}, .asciz \"0.1\"",
            "XEN_NOTE {loader}, .asciz \"generic\"",
            "XEN_NOTE {xen_version}, .asciz \"xen-3.0\"",
            "XEN_NOTE {features}, .asciz \"pae_pgdir_above_4gb\"",
            "XEN_NOTE {virt_base}, .quad __virt_base",
            "XEN_NOTE {paddr_offset}, .quad __virt_base",
            "XEN_NOTE {entry}, .quad _start",
            "XEN_NOTE {hypercall_page}, .quad hypercall_page",
            ".popsection",
            ".purgem XEN_NOTE",
            ".pushsection .text.hypercall_page, \"ax\", @progbits",
            ".p2align 12",
            ".globl hypercall_page",
            "hypercall_page:",
            ".skip 4096, 0xcc",
            ".popsection",
            // For debuggers. An entry is the hypervisor's: its return address is the last thing on the stack, but for
            // one that begins by pushing RCX (0x51), and R11 after it: CFA = RSP + 8 + 16 * (byte at RIP & -32 == 0x51).
            ".pushsection .debug_frame, \"\", @progbits",
            "90: .long 92f - 91f",
            "91: .long 0xffffffff",
            ".byte 1, 0, 1, 0x78, 16",
            ".balign 8, 0",
            "92: .long 94f - 93f",
            "93: .long 90b",
            ".quad hypercall_page, 4096",
            ".byte 0x0f, 15, 0x77, 8, 0x80, 0, 0x09, 0xe0, 0x1a, 0x94, 1, 0x08, 0x51, 0x29, 0x40, 0x1e, 0x22",
            ".byte 0x90, 1",
            ".balign 8, 0",
            "94:",
            ".popsection",
            // The link script puts the stack above it, in the size that `build.rs` chose.
            ".pushsection .bss.paravane_stack_guard, \"aw\", @nobits",
            ".p2align 12",
            ".globl __paravane_stack_guard",
            "__paravane_stack_guard:",
            ".skip 4096",
            ".popsection",
            ".pushsection .text.entry, \"ax\", @progbits",
            ".globl _start",
            "_start:",
            "cld",
            "mov rdi, rsi",
            "mov rsi, rsp",
            "lea rsp, [rip + __paravane_boot_stack_top]",
            "xor ebp, ebp",
            "call __paravane_main",
            "ud2",
            ".popsection",
            guest_os = const $crate::abi::elfnote::XEN_ELFNOTE_GUEST_OS,
            guest_version = const $crate::abi::elfnote::XEN_ELFNOTE_GUEST_VERSION,
            loader = const $crate::abi::elfnote::XEN_ELFNOTE_LOADER,
            xen_version = const $crate::abi::elfnote::XEN_ELFNOTE_XEN_VERSION,
            features = const $crate::abi::elfnote::XEN_ELFNOTE_FEATURES,
            virt_base = const $crate::abi::elfnote::XEN_ELFNOTE_VIRT_BASE,
            paddr_offset = const $crate::abi::elfnote::XEN_ELFNOTE_PADDR_OFFSET,
            entry = const $crate::abi::elfnote::XEN_ELFNOTE_ENTRY,
            hypercall_page = const $crate::abi::elfnote::XEN_ELFNOTE_HYPERCALL_PAGE,
        );
    };
}

/// Makes a panic of this kernel print itself and end the domain as crashed.
#[macro_export]
macro_rules! panic_handler {
    () => {
        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::power::panicked(info)
        }
    };
}
