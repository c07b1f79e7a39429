//! The parts of a kernel's image besides its code: entry point, boot stack, hypercall page, and the ELF notes by
//! which a domain builder recognises it. The link script (`paravane-guest-build`) places them.
//!
//! All of it is expanded in the kernel's own crate, whose object files the linker always takes.

/// Bytes of the stack that a kernel starts on; the domain builder's own has only a page.
pub const BOOT_STACK_SIZE: usize = 64 << 10;

/// Makes `$main`, a `fn(Boot) -> !`, the kernel's entry point, and makes the binary an image that a Xen domain
/// builder loads.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn __paravane_main(start_info: u64, stack_top: u64) -> ! {
            // SAFETY: symbols of the linker script; only their addresses are used.
            unsafe extern "C" {
                static __virt_base: u8;
                static __image_start: u8;
                static __paravane_stack_guard: u8;
            }
            let main: fn($crate::Boot) -> ! = $main;
            let state = $crate::boot::FirstState {
                start_info,
                stack_top,
                virt_base: (&raw const __virt_base).addr() as u64,
                image_start: (&raw const __image_start).addr() as u64,
                stack_guard: (&raw const __paravane_stack_guard).addr() as u64,
            };
            // SAFETY: called once, by `_start`, with the registers that the domain builder set.
            main(unsafe { $crate::Boot::new(state) })
        }
        $crate::__image!();
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
            ".pushsection .bss.page_aligned, \"aw\", @nobits",
            ".p2align 12",
            ".globl __paravane_stack_guard",
            "__paravane_stack_guard:",
            ".skip 4096",
            ".skip {stack}",
            "__paravane_boot_stack_top:",
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
            stack = const $crate::image::BOOT_STACK_SIZE,
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
