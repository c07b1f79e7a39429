//! A bare guest's own page tables, as the processor walks them.
//!
//! A lookup does what a CPU's page walk does: it checks the rights under CR0.WP and EFER.NXE, says which fault the guest
//! must see, and sets accessed and dirty bits. Used by the shadow, which derives its tables from these, and by the
//! interpreter, which has no others. What may not be done here: caching a translation.

use paravane_abi::pte;

use crate::machine::memory::{MachineMemory, Maddr};
use crate::x86::walk;
use crate::x86::walk::{Access, PseudoPhysicalTables, Translation, WalkFault};

/// The bits of the guest's control registers that affect the meaning of its page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// CR0.WP: pages are read-only for the kernel, too.
    pub write_protect: bool,
    /// EFER.NXE: bit 63 forbids execution; otherwise it is reserved.
    pub no_execute: bool,
}

impl Default for Controls {
    fn default() -> Self {
        Self { write_protect: true, no_execute: true }
    }
}

/// The tables that a guest's CPU walks.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestTables {
    /// The address of the L4 table, in the guest's terms: CR3.
    pub root: u64,
    /// How entries are read.
    pub controls: Controls,
}

/// Why an access is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// A page fault with this error code.
    PageFault(u32),
    /// The linear address is not canonical: #GP(0), or #SS(0) for a stack access.
    NotCanonical,
}

/// The result of an allowed access.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    pub(super) translation: Translation,
    access: Access,
}

impl Lookup {
    /// The machine address; `None` where the guest has no memory.
    pub fn maddr(&self) -> Option<Maddr> {
        self.translation.maddr
    }
    /// Level of the entry that maps the page: 1 (4 KiB), 2 (2 MiB) or 3 (1 GiB).
    pub fn level(&self) -> u8 {
        self.translation.level
    }
    /// The guest-physical address.
    pub fn physical(&self) -> u64 {
        self.translation.physical
    }
    /// The guest's entry of `level` as this access left it.
    pub(super) fn entry(&self, level: u8) -> u64 {
        let value = self.translation.step(level).map_or(0, |step| step.value);
        value | self.bits_to_set(level)
    }
    fn bits_to_set(&self, level: u8) -> u64 {
        if self.access.write && level == self.translation.level {
            pte::ACCESSED | pte::DIRTY
        } else {
            pte::ACCESSED
        }
    }
}

/// Whether the guest's entries allow `access`, where CR0.WP may be clear (SDM vol. 3, 4.6.1).
fn allows(translation: &Translation, access: Access, controls: Controls) -> bool {
    let write = access.write && (access.user || controls.write_protect);
    translation.allows(Access { write, ..access })
}

impl GuestTables {
    /// Walks the guest's tables for `access`, setting accessed and dirty bits if it is allowed.
    pub fn lookup(&self, mem: &MachineMemory, va: u64, access: Access) -> Result<Lookup, LookupError> {
        // Without NXE a fetch is not told apart in error codes (SDM vol. 3, 4.7).
        let access = Access { fetch: access.fetch && self.controls.no_execute, ..access };
        let fault = |fault: WalkFault| match fault.error_code(access) {
            Some(code) => LookupError::PageFault(code),
            None => LookupError::NotCanonical,
        };
        let translation = walk::walk(mem, &PseudoPhysicalTables, self.root, va).map_err(fault)?;
        let mut steps = (translation.level..=4).filter_map(|level| translation.step(level));
        if !self.controls.no_execute && steps.any(|step| step.value & pte::NX != 0) {
            return Err(fault(WalkFault::Reserved { level: translation.level }));
        }
        if !allows(&translation, access, self.controls) {
            return Err(fault(WalkFault::Denied));
        }
        let found = Lookup { translation, access };
        for level in translation.level..=4 {
            let Some(step) = translation.step(level) else { continue };
            let bits = found.bits_to_set(level);
            if step.value & bits != bits {
                // The walk has just read this entry, so that it is there to be written.
                let _ = mem.fetch_or_u64(step.entry, bits);
            }
        }
        Ok(found)
    }
}
