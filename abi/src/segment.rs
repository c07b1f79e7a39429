//! Segments: the flat selectors that every guest has, its descriptor tables, and bases.
//!
//! * `set_gdt(frames, entries)`: up to [`GDT_FRAMES`] machine frames, 512 entries each.
//! * `update_descriptor(maddr, descriptor)`: store one descriptor after validation.
//! * `set_segment_base(which, base)`: `SEGBASE_*`.
//! * `stack_switch(ss, rsp)`: the stack that the kernel is entered on from user mode.
//!
//! Sources: public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h.

/// Flat 32-bit code at CPL 3.
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// Flat 64-bit code at CPL 3.
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Flat 32-bit data at CPL 3.
pub const FLAT_RING3_DS32: u16 = 0xe02b;
/// Data for 64-bit code: the null selector.
pub const FLAT_RING3_DS64: u16 = 0;
/// Flat 32-bit stack at CPL 3.
pub const FLAT_RING3_SS32: u16 = 0xe02b;
/// Flat 64-bit stack at CPL 3.
pub const FLAT_RING3_SS64: u16 = 0xe02b;

/// Code of a guest's kernel.
pub const FLAT_KERNEL_CS: u16 = FLAT_RING3_CS64;
/// Data of a guest's kernel.
pub const FLAT_KERNEL_DS: u16 = FLAT_RING3_DS64;
/// Stack of a guest's kernel.
pub const FLAT_KERNEL_SS: u16 = FLAT_RING3_SS64;
/// Code of user mode.
pub const FLAT_USER_CS: u16 = FLAT_RING3_CS64;
/// Data of user mode.
pub const FLAT_USER_DS: u16 = FLAT_RING3_DS64;
/// Stack of user mode.
pub const FLAT_USER_SS: u16 = FLAT_RING3_SS64;

/// First page of the GDT that belongs to the hypervisor, which puts the flat descriptors there.
pub const FIRST_RESERVED_GDT_PAGE: u32 = 14;
/// First byte of that page.
pub const FIRST_RESERVED_GDT_BYTE: u32 = FIRST_RESERVED_GDT_PAGE * 4096;
/// First descriptor of that page: a guest's GDT has at most this many entries.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = FIRST_RESERVED_GDT_BYTE / 8;
/// Frames that a guest's GDT can have.
pub const GDT_FRAMES: usize = FIRST_RESERVED_GDT_PAGE as usize;
/// Descriptors in a frame.
pub const DESCRIPTORS_PER_FRAME: u32 = 512;
/// The most descriptors that an LDT can have.
pub const MAX_LDT_ENTRIES: u32 = 8192;

/// `set_segment_base`: FS.
pub const SEGBASE_FS: u32 = 0;
/// `set_segment_base`: GS as user mode sees it.
pub const SEGBASE_GS_USER: u32 = 1;
/// `set_segment_base`: GS as the kernel sees it.
pub const SEGBASE_GS_KERNEL: u32 = 2;
/// `set_segment_base`: load the selector in bits 0 to 15 into the GS of user mode.
pub const SEGBASE_GS_USER_SEL: u32 = 3;
