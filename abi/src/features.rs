//! Features of hypervisor and guest beyond the oldest interface.
//!
//! Each constant is a bit's number. `XENVER_get_features` returns them in groups of 32; a guest's ELF notes list
//! those that it supports, by [`feature_name`], separated by `|`, with `!` before a required one. Source:
//! public/features.h.

/// Groups of 32 features.
pub const XENFEAT_NR_SUBMAPS: u32 = 1;

macro_rules! features {
    ($($(#[$doc:meta])+ $name:ident = $value:literal => $text:literal;)+) => {
        $($(#[$doc])+ pub const $name: u32 = $value;)+

        /// The name of a feature in a guest's ELF notes, or `None` for a bit without one.
        #[must_use]
        pub const fn feature_name(bit: u32) -> Option<&'static str> {
            match bit {
                $($value => Some($text),)+
                _ => None,
            }
        }

        /// The bit of a feature named in a guest's ELF notes, or `None` for an unknown name.
        #[must_use]
        pub fn feature_bit(name: &str) -> Option<u32> {
            match name {
                $($text => Some($value),)+
                _ => None,
            }
        }
    };
}

features! {
    /// The guest may store to its page tables directly.
    XENFEAT_WRITABLE_PAGE_TABLES = 0 => "writable_page_tables";
    /// The guest may store to its descriptor tables directly.
    XENFEAT_WRITABLE_DESCRIPTOR_TABLES = 1 => "writable_descriptor_tables";
    /// The hypervisor translates pseudo-physical addresses; page tables hold no machine frames.
    XENFEAT_AUTO_TRANSLATED_PHYSMAP = 2 => "auto_translated_physmap";
    /// The guest kernel runs at CPL 0.
    XENFEAT_SUPERVISOR_MODE_KERNEL = 3 => "supervisor_mode_kernel";
    /// PAE page directories may lie above 4 GiB.
    XENFEAT_PAE_PGDIR_ABOVE_4GB = 4 => "pae_pgdir_above_4gb";
    /// `MMU_PT_UPDATE_PRESERVE_AD` is supported.
    XENFEAT_MMU_PT_UPDATE_PRESERVE_AD = 5 => "mmu_pt_update_preserve_ad";
    /// `MMUEXT_CLEAR_PAGE` and `MMUEXT_COPY_PAGE` are supported.
    XENFEAT_HIGHMEM_ASSIST = 6 => "highmem_assist";
    /// Mapping a grant can set the page-table bits available to software.
    XENFEAT_GNTTAB_MAP_AVAIL_BITS = 7 => "gnttab_map_avail_bits";
    /// Hardware-virtualized guests may have events delivered by a vector.
    XENFEAT_HVM_CALLBACK_VECTOR = 8 => "hvm_callback_vector";
    /// Hardware-virtualized guests may trust the paravirtual clock.
    XENFEAT_HVM_SAFE_PVCLOCK = 9 => "hvm_safe_pvclock";
    /// Hardware-virtualized guests may bind physical interrupts.
    XENFEAT_HVM_PIRQS = 10 => "hvm_pirqs";
    /// The guest can be, or is, the initial domain.
    XENFEAT_DOM0 = 11 => "dom0";
    /// Memory operations take a virtual NUMA node.
    XENFEAT_MEMORY_OP_VNODE_SUPPORTED = 13 => "memory_op_vnode_supported";
    /// Arm's SMC calling convention is supported.
    XENFEAT_ARM_SMCCC_SUPPORTED = 14 => "ARM_SMCCC_supported";
    /// The guest finds ACPI's root pointer anywhere in memory.
    XENFEAT_LINUX_RSDP_UNRESTRICTED = 15 => "linux_rsdp_unrestricted";
    /// Guest frame numbers differ from machine frame numbers.
    XENFEAT_NOT_DIRECT_MAPPED = 16 => "not_direct_mapped";
    /// Guest frame numbers equal machine frame numbers.
    XENFEAT_DIRECT_MAPPED = 17 => "direct_mapped";
}
