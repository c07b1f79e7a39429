//! Page tables: `mmu_update`, `mmuext_op`, `update_va_mapping`.
//!
//! * `mmu_update(updates, count, done, foreigndom)`: a list of [`MmuUpdate`].
//! * `mmuext_op(ops, count, done, foreigndom)`: a list of [`MmuextOp`].
//! * `update_va_mapping(va, entry, flags)`: one L1 entry of the current address space, and a flush (`UVMF_`).
//!
//! `done`, unless null, receives a 32-bit number: how many elements of the list were done before an error.
//! Source: public/xen.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of [`MmuUpdate::ptr`] that hold the command.
pub const MMU_COMMAND_MASK: u64 = 3;
/// Store `val` into the page-table entry at `ptr` after validation.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// Record `val` as the pseudo-physical page of the frame that holds `ptr`.
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
/// As [`MMU_NORMAL_PT_UPDATE`], keeping the accessed and dirty bits that are set in the old entry.
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
/// As [`MMU_NORMAL_PT_UPDATE`], with a frame number that is never translated. No difference for PV domains.
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;

/// In `foreigndom`: the domain that owns the frames mapped.
pub const FOREIGNDOM_FD_MASK: u32 = 0xffff;
/// In `foreigndom`: where the page tables' owner starts, stored plus one; 0 is the caller.
pub const FOREIGNDOM_PFD_SHIFT: u32 = 16;

/// One update of `mmu_update`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuUpdate {
    /// IN: machine address of the entry (8-byte aligned), with the command in bits 0 and 1.
    pub ptr: u64,
    /// IN: the new entry, or the page number for [`MMU_MACHPHYS_UPDATE`].
    pub val: u64,
}

layout!(MmuUpdate: 16 { ptr @ 0, val @ 8 });

impl MmuUpdate {
    /// The command in [`Self::ptr`]: `MMU_*`.
    #[must_use]
    pub const fn command(&self) -> u64 {
        self.ptr & MMU_COMMAND_MASK
    }

    /// The machine address in [`Self::ptr`], without the command.
    #[must_use]
    pub const fn maddr(&self) -> u64 {
        self.ptr & !MMU_COMMAND_MASK
    }
}

/// Pin frame `arg1` as an L1 table: validate it, and keep it a page table until unpinned.
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
/// Pin frame `arg1` as an L2 table.
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
/// Pin frame `arg1` as an L3 table.
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
/// Pin frame `arg1` as an L4 table.
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
/// Undo a pin of frame `arg1`.
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
/// Make L4 frame `arg1` the kernel's address space.
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
/// Flush the TLB of this vCPU.
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
/// Invalidate this vCPU's translation of address `arg1`.
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
/// Flush the TLBs of the vCPUs in the bitmap at `arg2`.
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
/// Invalidate the translation of address `arg1` on the vCPUs in the bitmap at `arg2`.
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
/// Flush the TLBs of all vCPUs.
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
/// Invalidate the translation of address `arg1` on all vCPUs.
pub const MMUEXT_INVLPG_ALL: u32 = 11;
/// Write back and invalidate the caches of this processor.
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
/// Use `arg2` entries at address `arg1` (page-aligned) as the local descriptor table.
pub const MMUEXT_SET_LDT: u32 = 13;
/// Make L4 frame `arg1` the address space of user mode; frame 0 leaves it without one.
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
/// Fill frame `arg1` with zeroes.
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
/// Copy frame `arg2` to frame `arg1`.
pub const MMUEXT_COPY_PAGE: u32 = 17;
/// Write back and invalidate the caches of all processors.
pub const MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18;
/// Allow the superpage at frame `arg1` to be mapped as one.
pub const MMUEXT_MARK_SUPER: u32 = 19;
/// Undo [`MMUEXT_MARK_SUPER`].
pub const MMUEXT_UNMARK_SUPER: u32 = 20;

/// One operation of `mmuext_op`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmuextOp {
    /// IN: `MMUEXT_*`.
    pub cmd: u32,
    /// Padding; ignored.
    pub _pad: u32,
    /// IN: a machine frame number or a virtual address, depending on the command.
    pub arg1: u64,
    /// IN: a count of entries (32 bits), the address of a vCPU bitmap, or a source frame, depending on the command.
    pub arg2: u64,
}

layout!(MmuextOp: 24 { cmd @ 0, arg1 @ 8, arg2 @ 16 });

impl MmuextOp {
    /// The number of descriptors of [`MMUEXT_SET_LDT`]: the low half of [`Self::arg2`], the only part that the caller
    /// writes.
    #[must_use]
    pub const fn nr_ents(&self) -> u32 {
        (self.arg2 & 0xffff_ffff) as u32
    }
}

/// `update_va_mapping`: no flush.
pub const UVMF_NONE: u64 = 0;
/// `update_va_mapping`: flush the TLB.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// `update_va_mapping`: invalidate the translation of the address only.
pub const UVMF_INVLPG: u64 = 2;
/// `update_va_mapping`: the bits of the kind of flush.
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
/// `update_va_mapping`: on the vCPUs of a bitmap, whose 8-byte aligned address is added to the flags.
pub const UVMF_MULTI: u64 = 0;
/// `update_va_mapping`: on this vCPU only: [`UVMF_MULTI`] without a bitmap.
pub const UVMF_LOCAL: u64 = 0;
/// `update_va_mapping`: on all vCPUs.
pub const UVMF_ALL: u64 = 1 << 2;
