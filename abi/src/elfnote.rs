//! ELF notes by which an image describes itself and how it is to be started.
//!
//! The notes lie in a segment of type PT_NOTE, their owner is [`XEN_ELFNOTE_OWNER`]. A number is 4 or 8 bytes long, a
//! text ends with a zero. Source: public/elfnote.h.

/// Owner of the notes, without the terminating zero.
pub const XEN_ELFNOTE_OWNER: &[u8] = b"Xen";

/// Text: a `NAME=VALUE` pair.
pub const XEN_ELFNOTE_INFO: u32 = 0;
/// Number: virtual address of the first instruction.
pub const XEN_ELFNOTE_ENTRY: u32 = 1;
/// Number: virtual address of the page to fill with hypercall entries.
pub const XEN_ELFNOTE_HYPERCALL_PAGE: u32 = 2;
/// Number: virtual address of pseudo-physical address 0; 0 when absent.
pub const XEN_ELFNOTE_VIRT_BASE: u32 = 3;
/// Number: what to subtract from the segments' physical addresses; 0 when absent.
pub const XEN_ELFNOTE_PADDR_OFFSET: u32 = 4;
/// Text: version of the interface: `xen-3.0`.
pub const XEN_ELFNOTE_XEN_VERSION: u32 = 5;
/// Text: name of the operating system.
pub const XEN_ELFNOTE_GUEST_OS: u32 = 6;
/// Text: version of the operating system.
pub const XEN_ELFNOTE_GUEST_VERSION: u32 = 7;
/// Text: kind of loader: `generic`.
pub const XEN_ELFNOTE_LOADER: u32 = 8;
/// Text: `yes`, `no` or `bimodal`, for 32-bit guests.
pub const XEN_ELFNOTE_PAE_MODE: u32 = 9;
/// Text: features supported, and required ones after `!`, separated by `|`; see [`crate::features`].
pub const XEN_ELFNOTE_FEATURES: u32 = 10;
/// Text: `yes` when the symbol table is to be loaded.
pub const XEN_ELFNOTE_BSD_SYMTAB: u32 = 11;
/// Number: the lowest address that the hypervisor's range may begin at.
pub const XEN_ELFNOTE_HV_START_LOW: u32 = 12;
/// Pairs of mask and value: which absent L1 entries hold frame numbers.
pub const XEN_ELFNOTE_L1_MFN_VALID: u32 = 13;
/// Number: not 0 when a suspend may be cancelled.
pub const XEN_ELFNOTE_SUSPEND_CANCEL: u32 = 14;
/// Number: virtual address that the first p2m list is to be mapped at.
pub const XEN_ELFNOTE_INIT_P2M: u32 = 15;
/// Number: not 0 when the module may lie outside the initial mapping.
pub const XEN_ELFNOTE_MOD_START_PFN: u32 = 16;
/// Number: bits of supported features.
pub const XEN_ELFNOTE_SUPPORTED_FEATURES: u32 = 17;
/// Number: physical address of the 32-bit entry without paging (PVH).
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// The highest type of note for a loader.
pub const XEN_ELFNOTE_MAX: u32 = 18;
