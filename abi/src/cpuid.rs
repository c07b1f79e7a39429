//! The CPUID leaves by which a guest detects the hypervisor.
//!
//! The leaves begin at the first free multiple of 0x100 from [`XEN_CPUID_FIRST_LEAF`] on. CPUID does not trap at
//! CPL 3 (unless the processor supports CPUID faulting), so a PV guest puts [`XEN_EMULATE_PREFIX`] before it.
//! Sources: public/arch-x86/cpuid.h, public/arch-x86/xen.h.

/// First leaf.
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// Distance between two possible first leaves.
pub const XEN_CPUID_LEAF_STRIDE: u32 = 0x100;
/// The highest leaf, relative to the first.
pub const XEN_CPUID_MAX_NUM_LEAVES: u32 = 5;

/// EBX of leaf 0; EAX is the highest leaf.
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
/// ECX of leaf 0.
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// EDX of leaf 0.
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;

/// Leaf 1: EAX is the version, as `XENVER_VERSION` returns it.
pub const XEN_CPUID_LEAF_VERSION: u32 = 1;
/// Leaf 2: EAX counts hypercall pages, EBX is the MSR to write a page's address to, ECX and EDX are features.
pub const XEN_CPUID_LEAF_HYPERCALL: u32 = 2;
/// Leaf 3: the TSC.
pub const XEN_CPUID_LEAF_TSC: u32 = 3;
/// Leaf 4: for hardware-virtualized guests.
pub const XEN_CPUID_LEAF_HVM: u32 = 4;
/// Leaf 5: for PV guests: EBX holds the width of machine addresses.
pub const XEN_CPUID_LEAF_PV: u32 = 5;

/// In ECX of leaf 2: `MMU_PT_UPDATE_PRESERVE_AD` is supported.
pub const XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: u32 = 1 << 0;
/// In EBX of leaf 5: bits in a machine address.
pub const XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK: u32 = 0xff;

/// The instruction before CPUID that asks the hypervisor to emulate it: UD2 and the letters `xen`.
pub const XEN_EMULATE_PREFIX: [u8; 5] = [0x0f, 0x0b, b'x', b'e', b'n'];
/// I/O port that prints each byte written to it on the hypervisor's console.
pub const XEN_HVM_DEBUGCONS_IOPORT: u16 = 0xe9;

const _: () = {
    let signature = *b"XenVMMXenVMM";
    let [a, b, c, d, e, f, g, h, i, j, k, l] = signature;
    assert!(XEN_CPUID_SIGNATURE_EBX == u32::from_le_bytes([a, b, c, d]));
    assert!(XEN_CPUID_SIGNATURE_ECX == u32::from_le_bytes([e, f, g, h]));
    assert!(XEN_CPUID_SIGNATURE_EDX == u32::from_le_bytes([i, j, k, l]));
};
