//! The transition itself: the only instruction sequence of the SDK that makes a hypercall. Nothing else belongs here.

use paravane_abi::hypercall::{HYPERCALL_ENTRIES, HYPERCALL_ENTRY_SIZE};

use super::interface::Hypercalls;

/// The hypervisor that this kernel runs on.
///
/// A build without `--cfg guest` has no hypervisor: every call returns `-ENOSYS`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hypervisor;

type Page = [[u8; HYPERCALL_ENTRY_SIZE]; HYPERCALL_ENTRIES];

// SAFETY: `entry!` reserves a page of this size under this name.
#[cfg(guest)]
unsafe extern "C" {
    /// The page of the image that the hypervisor fills: see [`crate::entry!`].
    pub(crate) static hypercall_page: Page;
}

/// Takes the place of the page, which only an image has.
#[cfg(not(guest))]
#[allow(non_upper_case_globals)]
pub(crate) static hypercall_page: Page = [[0xcc; HYPERCALL_ENTRY_SIZE]; HYPERCALL_ENTRIES];

#[cfg(guest)]
impl Hypercalls for Hypervisor {
    unsafe fn call(&mut self, number: u64, args: [u64; 6]) -> i64 {
        if number >= HYPERCALL_ENTRIES as u64 {
            return paravane_abi::Errno::ENOSYS.as_result();
        }
        let page = (&raw const hypercall_page).cast::<[u8; HYPERCALL_ENTRY_SIZE]>();
        let entry = page.wrapping_add(number as usize);
        let result: i64;
        // SAFETY: `entry` lies in the page that the hypervisor filled; the clobbered registers are those of the
        // calling convention (public/arch-x86/xen-x86_64.h); the effects are the caller's promise.
        unsafe {
            core::arch::asm!(
                "call rax",
                inlateout("rax") entry => result,
                inlateout("rdi") args[0] => _,
                inlateout("rsi") args[1] => _,
                inlateout("rdx") args[2] => _,
                inlateout("r10") args[3] => _,
                inlateout("r8") args[4] => _,
                inlateout("r9") args[5] => _,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        result
    }
}

#[cfg(not(guest))]
impl Hypercalls for Hypervisor {
    unsafe fn call(&mut self, _number: u64, _args: [u64; 6]) -> i64 {
        paravane_abi::Errno::ENOSYS.as_result()
    }
}
