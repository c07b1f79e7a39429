//! The tables of one vCPU: its two roots, its GDT and its LDT.

use paravane_abi::Errno;

use super::state::Stop;
use super::update::is_guest_address;
use crate::machine::memory::{Mfn, PAGE_SIZE};

/// How many frames a guest's GDT may have.
pub const GDT_FRAMES: usize = 14;
/// The largest LDT (SDM vol. 3, 3.5.1).
const LDT_MAX: u32 = 8192;

/// The tables that one vCPU uses, each held by references.
///
/// Both roots are always validated L4 tables, and a vCPU walks no others.
#[derive(Debug)]
pub struct VcpuTables {
    pub(super) kernel: Mfn,
    pub(super) user: Option<Mfn>,
    pub(super) gdt: Gdt,
    pub(super) ldt: Ldt,
}

impl VcpuTables {
    /// Those of a vCPU that has none yet, and does not run.
    pub fn none() -> Self {
        Self { kernel: Mfn(0), user: None, gdt: Gdt::default(), ldt: Ldt::default() }
    }
    /// The root that the guest's kernel runs on.
    pub fn kernel_root(&self) -> Mfn {
        self.kernel
    }
    /// The root that the guest's user mode runs on; without it, user mode cannot be entered.
    pub fn user_root(&self) -> Option<Mfn> {
        self.user
    }
}

/// A vCPU's GDT: frames that hold descriptors.
#[derive(Debug, Default)]
pub(super) struct Gdt {
    pub(super) frames: [Option<Mfn>; GDT_FRAMES],
}

/// A vCPU's LDT, at the address that the guest gave.
#[derive(Debug, Default)]
pub(super) struct Ldt {
    base: u64,
    entries: u32,
}

impl Ldt {
    pub(super) fn set(&mut self, base: u64, entries: u32) -> Result<(), Stop> {
        let placed = entries == 0 || base.is_multiple_of(PAGE_SIZE) && is_guest_address(base);
        if entries > LDT_MAX || !placed {
            return Err(Errno::EINVAL.into());
        }
        *self = Self { base, entries };
        Ok(())
    }
}

impl VcpuTables {
    /// Linear address and number of entries of the LDT that the guest set; 0 entries without an LDT.
    pub fn ldt(&self) -> (u64, u32) {
        (self.ldt.base, self.ldt.entries)
    }
    /// The frames of the GDT that the guest set, in order.
    pub fn gdt_frames(&self) -> impl Iterator<Item = Mfn> {
        self.gdt.frames.iter().map_while(|f| *f)
    }
}
