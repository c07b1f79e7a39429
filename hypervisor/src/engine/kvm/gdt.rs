//! The processor's GDT: which selectors its descriptors have, on a software KVM and elsewhere.

use paravane_abi::segment::{FIRST_RESERVED_GDT_BYTE, FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64};

use super::host::HostKind;

/// Offsets of the gate's descriptors in its own page: selectors on a software KVM, where they are Linux's.
pub(super) mod offset {
    /// Ring 0 code.
    pub const KERNEL_CS: u16 = 0x10;
    /// Ring 0 stack.
    pub const KERNEL_SS: u16 = 0x18;
    /// 32-bit code at CPL 3: the base from which SYSRET counts.
    pub const USER32_CS: u16 = 0x23;
    /// Data at CPL 3.
    pub const USER_SS: u16 = 0x2b;
    /// 64-bit code at CPL 3.
    pub const USER_CS: u16 = 0x33;
    /// The TSS.
    pub const TSS: u16 = 0x40;
    /// Last valid one.
    pub const LIMIT: u16 = 0x4f;
}

/// Who has descriptors in the processor's GDT besides the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gdt {
    /// The gate's page alone. A software KVM shows the host's own selectors to CPL 3 code anyway.
    Gates,
    /// The guest's pages and then the gate's, where Xen has its own (public/arch-x86/xen.h, FIRST_RESERVED_GDT_PAGE):
    /// the descriptors of CPL 3 have the selectors that the ABI gives them.
    Guests,
}

impl Gdt {
    /// What serves on a kind of KVM.
    pub fn on(kind: HostKind) -> Self {
        if kind == HostKind::Software { Self::Gates } else { Self::Guests }
    }
    /// Whether the guest's own selectors can be loaded.
    pub fn is_guests(self) -> bool {
        self == Self::Guests
    }
    /// Selector of the gate's first descriptor, which is not used.
    pub(super) const fn first(self) -> u16 {
        match self {
            Self::Gates => 0,
            Self::Guests => FIRST_RESERVED_GDT_BYTE as u16,
        }
    }
    /// Linear address, where the gate's descriptors are at `gates`.
    pub fn base(self, gates: u64) -> u64 {
        gates - u64::from(self.first())
    }
    /// Last valid offset.
    pub fn limit(self) -> u16 {
        self.first() + offset::LIMIT
    }
    /// Ring 0 code.
    pub fn kernel_cs(self) -> u16 {
        self.first() + offset::KERNEL_CS
    }
    /// Ring 0 stack.
    pub fn kernel_ss(self) -> u16 {
        self.first() + offset::KERNEL_SS
    }
    /// 32-bit code at CPL 3: the base from which SYSRET counts.
    pub fn user32_cs(self) -> u16 {
        self.first() + offset::USER32_CS
    }
    /// Stack at CPL 3.
    pub fn user_ss(self) -> u16 {
        self.first() + offset::USER_SS
    }
    /// 64-bit code at CPL 3.
    pub fn user_cs(self) -> u16 {
        self.first() + offset::USER_CS
    }
    /// The TSS.
    pub fn tss(self) -> u16 {
        self.first() + offset::TSS
    }
}

const _: () = assert!(Gdt::Guests.first() + offset::USER_CS == FLAT_RING3_CS64);
const _: () = assert!(Gdt::Guests.first() + offset::USER32_CS == FLAT_RING3_CS32);
const _: () = assert!(Gdt::Guests.first() + offset::USER_SS == FLAT_RING3_SS64);
